#!/usr/bin/env python3
"""Makes the golden of the few-step network: what diffusers' `UNet2DModel` says of it.

    pip install torch diffusers safetensors numpy
    cargo build --release -p quell-trainer
    python3 trainer/tests/few_step.py

The network is exported, untrained, by `quell-train --model few-step --epochs 0`. Apart from
`gap_embedding`, diffusers must load the folder without a missing or an unexpected tensor.
Then every tensor is filled as `tests/parity/trainer.py` does it, and the weights of the fast
time features are set to zero, as in every few-step checkpoint. `tests/golden/few-step/` gets
the two configurations and `calls.safetensors`: single answers, and pictures after four steps.
`tests/golden/few-step-committed.safetensors` has those of the committed `trainer/models/few-step`.
"""

import argparse
import math
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from diffusers.models.embeddings import get_timestep_embedding
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/parity"))
from trainer import WEIGHTS, fill, noise  # noqa: E402

TIMESTEPS = 1000


def weights(folder):
    tensors = load_file(folder / WEIGHTS)
    filled = {name: fill(name, tensor.shape) for name, tensor in tensors.items()}
    for name in ("time_embedding.linear_1.weight", "gap_embedding.weight"):
        half = filled[name].shape[1] // 2
        frequency = torch.exp(-math.log(10000.0) * torch.arange(half) / half)
        fast = frequency * TIMESTEPS > 5 * 2 * math.pi
        filled[name][:, torch.cat([fast, fast])] = 0
    return filled


class FewStep(torch.nn.Module):
    """`UNet2DModel` between two shuffles of pixels, with a second time."""

    def __init__(self, model, tensors):
        super().__init__()
        self.model, self.gap = model, None
        weight, bias = tensors["gap_embedding.weight"], tensors["gap_embedding.bias"]
        first = model.time_embedding

        class Both(torch.nn.Module):
            def forward(both, features, condition=None):
                gap = get_timestep_embedding(
                    self.gap * TIMESTEPS, weight.shape[1], flip_sin_to_cos=True, downscale_freq_shift=0
                )
                return first(features, condition) + F.linear(gap, weight, bias)

        model.time_embedding = Both()

    def forward(self, x, time, gap, classes):
        self.gap = gap
        inside = self.model(F.pixel_unshuffle(x, 2), time * TIMESTEPS, classes).sample
        return F.pixel_shuffle(inside, 2)


def sample(network, x, classes, steps):
    """Steps of equal length from noise, each with the mean velocity over it."""
    for i in reversed(range(steps)):
        time = torch.full((len(x),), (i + 1) / steps)
        x = x - network(x, time, torch.full((len(x),), 1 / steps), classes) / steps
    return x


def build(folder, tensors, scratch):
    """diffusers' network of a folder's configuration, with these weights."""
    inside = {name: tensor for name, tensor in tensors.items() if not name.startswith("gap_")}
    copy = scratch / "inside"
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    save_file(inside, copy / WEIGHTS)
    model, report = UNet2DModel.from_pretrained(copy, output_loading_info=True)
    assert not any(report.values()), report
    return FewStep(model.eval(), tensors)


def calls(network):
    """Single answers, and pictures after four steps."""
    x = torch.from_numpy(noise("input", 4 * 28 * 28)).float().reshape(4, 1, 28, 28) * 1.7
    times = {"time": torch.tensor([1.0, 0.75, 0.3331, 1.0]), "gap": torch.tensor([1.0, 0.25, 0.0, 0.125])}
    classes = torch.tensor([0, 7, 10, 9])
    output = network(x, *times.values(), classes).contiguous()
    drawn = sample(network, x, classes, 4).contiguous()
    return {"input": x, **times, "class": classes.to(torch.int32), "output": output, "drawn": drawn}


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--trainer", type=Path, default=ROOT / "target/release/quell-train", metavar="PROGRAM")
    arguments = parser.parse_args()
    goldens = Path(__file__).parent / "golden"
    golden = goldens / "few-step"
    shutil.rmtree(golden, ignore_errors=True)
    golden.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        folder = scratch / "few-step"
        command = [arguments.trainer, "--model", "few-step", "--epochs", "0", "--output", folder]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        for name in ("config.json", "scheduler_config.json"):
            shutil.copy(folder / name, golden / name)
        save_file(calls(build(folder, weights(folder), scratch)), golden / "calls.safetensors")
        committed = ROOT / "trainer/models/few-step"
        network = build(committed, load_file(committed / WEIGHTS), scratch)
        save_file(calls(network), goldens / "few-step-committed.safetensors")


if __name__ == "__main__":
    main()
