#!/usr/bin/env python3
"""One denoising step of mlp-classic: quell beside ONNX Runtime, in one run.

Both get one thread on one core and batch 1. Rounds are interleaved, so that a
drift of the machine's speed hits both alike; printed are medians and their ratio.
ONNX Runtime runs the committed checkpoint as exported here (f32), and quantized by
its own tool (int8 weights per channel, uint8 activations, calibrated on noise).

    pip install numpy onnx onnxruntime safetensors
    cargo build --release -p quell-converter
    python3 tests/peers/mlp.py
"""

import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / "examples/models/mlp-classic"
QUELL = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release/quell"
ROUNDS = 15
SECONDS = 0.3


def export(path):
    weights = load_file(CHECKPOINT / "diffusion_pytorch_model.safetensors")
    nodes, tensors, value = [], [], "x"
    for i in range(3):
        tensors.append(numpy_helper.from_array(weights[f"layers.{i}.weight"].T.copy(), f"w{i}"))
        tensors.append(numpy_helper.from_array(weights[f"layers.{i}.bias"], f"b{i}"))
        out = "y" if i == 2 else f"h{i}"
        nodes.append(helper.make_node("Gemm", [value, f"w{i}", f"b{i}"], [out]))
        if i < 2:
            nodes.append(helper.make_node("Relu", [out], [f"r{i}"]))
            value = f"r{i}"
    graph = helper.make_graph(
        nodes,
        "mlp-classic",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 785])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 784])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.save(model, path)


class Noise(CalibrationDataReader):
    def __init__(self):
        rng = np.random.default_rng(0)
        self.inputs = iter(
            np.append(rng.standard_normal(784), t / 200).astype(np.float32)[None]
            for t in range(0, 200, 4)
        )

    def get_next(self):
        x = next(self.inputs, None)
        return None if x is None else {"x": x}


def session(path):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def measure_ort(run, x):
    times, start = [], time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        before = time.perf_counter()
        run.run(None, {"x": x})
        times.append(time.perf_counter() - before)
    return statistics.median(times) * 1e3


def measure_quell(model):
    command = [QUELL, "bench", model, "--json", "--seconds", str(SECONDS)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output)["ms_per_step"]["median"]


def main():
    core = sorted(os.sched_getaffinity(0))[-1]
    os.sched_setaffinity(0, {core})  # children inherit it
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        export(folder / "f32.onnx")
        quantize_static(
            folder / "f32.onnx", folder / "int8.onnx", Noise(), quant_format=QuantFormat.QDQ,
            per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )
        peers = {kind: session(folder / f"{kind}.onnx") for kind in ("f32", "int8")}
        for kind in ("f32", "f16", "int8"):
            convert = [QUELL, "convert", CHECKPOINT, "-o", folder / f"{kind}.quell", "--weights", kind]
            subprocess.run(convert, check=True, capture_output=True)
        x = np.random.default_rng(1).standard_normal((1, 785)).astype(np.float32)
        columns = {}
        for _ in range(ROUNDS):
            for kind, peer in peers.items():
                columns.setdefault(f"onnxruntime {kind}", []).append(measure_ort(peer, x))
            for kind in ("f32", "f16", "int8"):
                columns.setdefault(f"quell {kind}", []).append(measure_quell(folder / f"{kind}.quell"))
    print(f"ONNX Runtime {ort.__version__}, one thread on core {core}, {ROUNDS} interleaved rounds")
    for name, times in columns.items():
        print(f"{name:18} {statistics.median(times):.4f} ms  ({min(times):.4f} to {max(times):.4f})")
    for kind in ("f32", "int8"):
        pairs = zip(columns[f"onnxruntime {kind}"], columns[f"quell {kind}"])
        ratio = statistics.median(a / b for a, b in pairs)
        print(f"{kind}: quell is {ratio:.2f} times as fast")


if __name__ == "__main__":
    main()
