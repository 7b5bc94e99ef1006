#!/usr/bin/env python3
"""Makes the goldens of the trainer's networks: what PyTorch says of them.

    pip install torch diffusers safetensors numpy
    cargo build --release -p quell-trainer
    python3 tests/parity/trainer.py [--trainer target/release/quell-train]

Every U-Net is exported, untrained, by `quell-train --epochs 0`. diffusers must load the
export without a missing or an unexpected tensor. Then every tensor is filled by a
formula of its name and shape, which `trainer/tests/unet2d.rs` knows as well: so the
goldens, `tests/parity/trainer/NAME/`, hold the two configurations as exported and
`calls.safetensors`, inputs and outputs of a few calls, but no weights.

The classifier is the committed one, `examples/models/classifier`:
`tests/parity/classifier/calls.safetensors` holds its logits for noisy inputs, and the
gradient of the logarithm of a class's probability with respect to the input. The committed
U-Net, `examples/models/unet`, has its calls in `tests/parity/unet/`.
"""

import argparse
import json
import math
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from safetensors.torch import load_file, save_file

# Options of quell-train.
CASES = {
    "benchmark": [],
    "two-levels-plain": ["--levels", "2", "--no-attention"],
    "two-levels-attention": ["--levels", "2"],
    "three-levels-plain": ["--no-attention", "--timesteps", "200"],
    "without-classes": ["--levels", "2", "--unconditional"],
    "two-layers": ["--blocks", "2"],
    "wide": ["--hidden", "32", "--levels", "2"],
    "wide-three-levels-two-layers": ["--hidden", "32", "--blocks", "2", "--unconditional"],
}
WEIGHTS = "diffusion_pytorch_model.safetensors"
MASK = (1 << 64) - 1


def noise(name, count):
    """Numbers in [-1, 1) from FNV-1a of the name and SplitMix64 of the position."""
    state = 0xCBF29CE484222325
    for byte in name.encode():
        state = ((state ^ byte) * 0x100000001B3) & MASK
    with np.errstate(over="ignore"):
        z = np.uint64(state) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(40)).astype(np.float64) / 2**23 - 1.0


def fill(name, shape):
    """Weights as far from special values as trained ones."""
    value = noise(name, int(np.prod(shape)))
    if len(shape) > 1:
        value *= np.sqrt(3.0 / np.prod(shape[1:]))
    elif name.endswith("weight"):
        value = 1.0 + 0.35 * value
    else:
        value *= 0.35
    return torch.from_numpy(value.astype(np.float32).reshape(shape))


def inputs(timesteps):
    """Pictures of noise at early, middle and late timesteps."""
    pictures = torch.from_numpy(noise("input", 3 * 28 * 28).astype(np.float32)).reshape(3, 1, 28, 28) * 1.7
    return pictures, torch.tensor([1, timesteps // 2, timesteps - 1])


@torch.no_grad()
def calls(model):
    """What a U-Net answers; the last class is "no class"."""
    pictures, times = inputs(model.config.num_train_timesteps)
    result = {"input": pictures, "timestep": times.to(torch.int32)}
    classes = None
    if model.class_embedding is not None:
        classes = torch.tensor([0, 7, 10])
        result["class"] = classes.to(torch.int32)
    result["output"] = model(pictures, times, classes).sample
    return result


def load(folder):
    """The U-Net of a folder, which must have every tensor, and no others."""
    model, report = UNet2DModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


def make(trainer, options, folder, scratch):
    export = scratch / folder.name
    command = [trainer, "--model", "unet", "--epochs", "0", "--output", export, *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    load(export)
    exported = load_file(export / WEIGHTS)
    save_file({name: fill(name, tensor.shape) for name, tensor in exported.items()}, export / WEIGHTS)
    model = load(export)
    folder.mkdir(parents=True)
    for name in ("config.json", "scheduler_config.json"):
        shutil.copy(export / name, folder / name)
    save_file(calls(model), folder / "calls.safetensors")
    return sum(parameter.numel() for parameter in model.parameters())


def logits(config, weights, x, t):
    """The formula of `trainer/src/classifier.rs`."""

    def linear(name, x):
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    half = config["time_features"] // 2
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(half) / half)
    angles = t[:, None].float() * frequencies
    e = F.silu(linear("time_embedding", torch.cat([angles.cos(), angles.sin()], 1)))
    act = {"silu": F.silu, "relu": F.relu}[config["act_fn"]]
    h = x
    for i in range(len(config["block_out_channels"])):
        conv = [weights[f"blocks.{i}.conv.{part}"] for part in ("weight", "bias")]
        h = F.conv2d(h, *conv, stride=1 if i == 0 else 2, padding=1)
        h = act(h + linear(f"blocks.{i}.time_proj", e)[:, :, None, None])
    return linear("output", h.mean((2, 3)))


def classifier_calls(folder):
    config = json.loads((folder / "config.json").read_text())
    x, t = inputs(config["num_train_timesteps"])
    x.requires_grad_()
    classes = torch.tensor([3, 0, 9])
    output = logits(config, load_file(folder / WEIGHTS), x, t)
    (gradient,) = torch.autograd.grad(F.log_softmax(output, 1)[range(3), classes].sum(), x)
    result = {"input": x, "timestep": t.to(torch.int32), "class": classes.to(torch.int32)}
    return {**result, "output": output, "gradient": gradient}


def committed(goldens):
    """The calls of the committed models."""
    models = goldens.parent.parent / "examples/models"
    for name, answers in [
        ("unet", lambda folder: calls(load(folder))),
        ("classifier", classifier_calls),
    ]:
        tensors = {key: tensor.detach().contiguous() for key, tensor in answers(models / name).items()}
        (goldens / name).mkdir(exist_ok=True)
        save_file(tensors, goldens / name / "calls.safetensors")
        print(f"examples/models/{name}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--trainer", type=Path, default=Path("target/release/quell-train"), metavar="PROGRAM")
    parser.add_argument("--committed", action="store_true", help="only the calls of the committed models")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    committed(Path(__file__).resolve().parent)
    if arguments.committed:
        return
    goldens = Path(__file__).parent / "trainer"
    shutil.rmtree(goldens, ignore_errors=True)
    with tempfile.TemporaryDirectory() as scratch:
        for name, options in CASES.items():
            parameters = make(arguments.trainer, options, goldens / name, Path(scratch))
            print(f"{name}: {parameters} parameters", *options)


if __name__ == "__main__":
    main()
