#!/usr/bin/env python3
"""One denoiser call of a small U-Net: quell beside ONNX Runtime, OpenVINO and PyTorch.

All get one thread on one core and batch 1, f32. Rounds are interleaved, so that a
drift of the machine's speed hits all alike; printed are medians, multiply-accumulates
per second, and their share of the core's FMA peak, which the convolutions' bench
measures on the same core. The multiply-accumulates are the network's, 73.4 M, for all:
who gets by with fewer (quell makes 65.4 M, since it convolves images before it enlarges
them) may come closer to the peak than its arithmetic does.

    pip install diffusers numpy onnx onnxruntime onnxscript openvino torch
    cargo build --release -p quell-converter
    python3 tests/peers/unet.py
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
QUELL = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release/quell"
ROUNDS = 11
SECONDS = 0.4
MACS = 73.4e6


def pin():
    core = sorted(os.sched_getaffinity(0))[-1]
    os.sched_setaffinity(0, {core})  # children inherit it
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    return core


def network():
    import torch
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    torch.set_num_threads(1)
    return UNet2DModel(
        sample_size=28, in_channels=1, out_channels=1, block_out_channels=(16, 32, 64),
        layers_per_block=1, norm_num_groups=8, attention_head_dim=16, num_class_embeds=11,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    ).eval()


def peers(model, folder):
    """Functions that run one call, by name."""
    import numpy as np
    import onnxruntime
    import openvino
    import torch

    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x, t, c):
            return self.model(x, t, c, return_dict=False)[0]

    x, t, c = torch.randn(1, 1, 28, 28), torch.tensor([500]), torch.tensor([3])
    path = str(folder / "unet.onnx")
    torch.onnx.export(
        Plain().eval(), (x, t, c), path, input_names=["x", "t", "c"], output_names=["y"], dynamo=False
    )
    feeds = {"x": x.numpy(), "t": t.numpy(), "c": c.numpy()}

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    core = openvino.Core()
    hints = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(core.read_model(path), "CPU", hints).create_infer_request()

    def run_torch():
        with torch.inference_mode():
            return model(x, t, c, return_dict=False)[0].numpy()

    runs = {
        f"onnxruntime {onnxruntime.__version__}": lambda: session.run(None, feeds)[0],
        f"openvino {openvino.__version__.split('-')[0]}": lambda: request.infer(feeds)["y"],
        f"torch {torch.__version__.split('+')[0]}": run_torch,
    }
    expected = run_torch()
    for name, run in runs.items():
        assert np.abs(run() - expected).max() < 1e-3, f"{name} computes something else"
    return runs


def measure(run):
    times, start = [], time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        before = time.perf_counter()
        run()
        times.append(time.perf_counter() - before)
    return statistics.median(times) * 1e3


def measure_quell(model):
    command = [QUELL, "bench", model, "--json", "--seconds", str(SECONDS)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output)["ms_per_step"]["median"]


def measure_peak():
    """GMAC/s of independent fused multiply-adds in registers."""
    command = ["cargo", "bench", "-q", "-p", "quell-kernels", "--bench", "conv", "--", "nothing"]
    output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return float(re.search(r"peak of the core: ([\d.]+) GMAC/s", output)[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peak", type=float, help="the core's FMA peak in GMAC/s, if it is known")
    peak = parser.parse_args().peak
    core = pin()
    peak = peak or measure_peak()
    from diffusers import DDPMScheduler

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        model = network()
        model.save_pretrained(folder / "unet")
        DDPMScheduler(clip_sample=True).save_pretrained(folder / "scheduler")
        runs = {name: (lambda run=run: measure(run)) for name, run in peers(model, folder).items()}
        for weights in ("f32", "f16"):
            file = folder / f"{weights}.quell"
            convert = [QUELL, "convert", folder, "-o", file, "--weights", weights]
            subprocess.run(convert, check=True, capture_output=True)
            runs[f"quell {weights}"] = lambda file=file: measure_quell(file)
        columns = {name: [] for name in runs}
        for _ in range(ROUNDS):
            for name, run in runs.items():
                columns[name].append(run())
    print(f"one thread on core {core}, batch 1, {ROUNDS} interleaved rounds, {MACS / 1e6:.1f} M MACs")
    print(f"FMA peak of the core: {peak:.1f} GMAC/s")
    for name, times in columns.items():
        median = statistics.median(times)
        rate = MACS / median / 1e6
        share = f"{rate:.1f} GMAC/s, {rate / peak:.0%} of the peak"
        print(f"{name:20} {median:.3f} ms  ({min(times):.3f} to {max(times):.3f})  {share}")
    best = min(statistics.median(times) for name, times in columns.items() if "quell" not in name)
    ours = statistics.median(columns["quell f32"])
    print(f"quell f32 is {best / ours:.2f} times as fast as the best of the others")


if __name__ == "__main__":
    main()
