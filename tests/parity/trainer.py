#!/usr/bin/env python3
"""Makes the goldens of the trainer's U-Net: what PyTorch says of the same network.

    pip install torch diffusers safetensors numpy
    cargo build --release -p quell-trainer
    python3 tests/parity/trainer.py [--trainer target/release/quell-train]

Every case is exported, untrained, by `quell-train --epochs 0`. diffusers must load the
export without a missing or an unexpected tensor. Then every tensor is filled by a
formula of its name and shape, which `trainer/tests/unet2d.rs` knows as well: so the
goldens, `tests/parity/trainer/NAME/`, hold the two configurations as exported and
`calls.safetensors`, inputs and outputs of a few calls, but no weights.
"""

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
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


@torch.no_grad()
def calls(model, timesteps):
    """Inputs and outputs at early, middle and late timesteps; the last class is "no class"."""
    inputs = torch.from_numpy(noise("input", 3 * 28 * 28).astype(np.float32)).reshape(3, 1, 28, 28) * 1.7
    times = torch.tensor([1, timesteps // 2, timesteps - 1])
    result = {"input": inputs, "timestep": times.to(torch.int32)}
    classes = None
    if model.class_embedding is not None:
        classes = torch.tensor([0, 7, 10])
        result["class"] = classes.to(torch.int32)
    result["output"] = model(inputs, times, classes).sample
    return result


def make(trainer, options, folder, scratch):
    export = scratch / folder.name
    command = [trainer, "--model", "unet", "--epochs", "0", "--output", export, *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    model, report = UNet2DModel.from_pretrained(export, output_loading_info=True)
    assert not any(report.values()), report
    exported = load_file(export / WEIGHTS)
    save_file({name: fill(name, tensor.shape) for name, tensor in exported.items()}, export / WEIGHTS)
    model, report = UNet2DModel.from_pretrained(export, output_loading_info=True)
    assert not any(report.values()), report
    folder.mkdir(parents=True)
    for name in ("config.json", "scheduler_config.json"):
        shutil.copy(export / name, folder / name)
    timesteps = model.config.num_train_timesteps
    save_file(calls(model.eval(), timesteps), folder / "calls.safetensors")
    return sum(parameter.numel() for parameter in model.parameters())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--trainer", type=Path, default=Path("target/release/quell-train"), metavar="PROGRAM")
    trainer = parser.parse_args().trainer
    torch.set_num_threads(1)
    goldens = Path(__file__).parent / "trainer"
    shutil.rmtree(goldens, ignore_errors=True)
    with tempfile.TemporaryDirectory() as scratch:
        for name, options in CASES.items():
            parameters = make(trainer, options, goldens / name, Path(scratch))
            print(f"{name}: {parameters} parameters", *options)


if __name__ == "__main__":
    main()
