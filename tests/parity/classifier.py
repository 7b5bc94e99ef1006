#!/usr/bin/env python3
"""Makes the goldens of classifier guidance: gradients by PyTorch's autograd.

    pip install torch diffusers transformers safetensors numpy
    python3 tests/parity/classifier.py                  # tests/parity/classifier/NAME/

Small random `NoisyClassifier`s (the formula is in the trainer's `classifier` module), the
gradients of a class's logarithmic probability, and a whole run of DDIM that one of
them guides (Dhariwal & Nichol 2021, algorithm 2). After `editing.py`, whose U-Net it
guides.
"""

import json
import math
import shutil
from pathlib import Path

import torch
from diffusers import DDIMScheduler
from editing import SCHEDULE, Stream, network
from safetensors.torch import save_file
from torch import nn

HERE = Path(__file__).parent / "classifier"
CASES = dict(
    silu=dict(sample_size=8, in_channels=1, num_classes=4, block_out_channels=[5, 8, 12]),
    relu=dict(sample_size=9, in_channels=2, num_classes=3, block_out_channels=[4, 6]),
)


class NoisyClassifier(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        features = config["time_features"]
        self.time_embedding = nn.Linear(features, features)
        channels = [config["in_channels"], *config["block_out_channels"]]
        self.blocks = nn.ModuleList()
        for i, (before, after) in enumerate(zip(channels, channels[1:])):
            block = nn.Module()
            block.conv = nn.Conv2d(before, after, 3, stride=1 if i == 0 else 2, padding=1)
            block.time_proj = nn.Linear(features, after)
            self.blocks.append(block)
        self.output = nn.Linear(channels[-1], config["num_classes"])
        self.act = dict(silu=nn.functional.silu, relu=nn.functional.relu)[config["act_fn"]]

    def forward(self, x, t):
        half = self.config["time_features"] // 2
        frequencies = torch.exp(-math.log(10_000) * torch.arange(half, dtype=x.dtype) / half)
        angles = t * frequencies
        embedding = self.time_embedding(torch.cat([angles.cos(), angles.sin()]))
        embedding = nn.functional.silu(embedding)
        for block in self.blocks:
            x = self.act(block.conv(x) + block.time_proj(embedding)[None, :, None, None])
        return self.output(x.mean(dim=(2, 3)))

    def gradient(self, x, t, class_):
        x = x.detach().requires_grad_()
        score = self(x, t).log_softmax(dim=1)[0, class_]
        return torch.autograd.grad(score, x)[0]


def case(name, sizes):
    torch.manual_seed(11)
    timesteps = SCHEDULE["num_train_timesteps"]
    config = dict(
        _class_name="NoisyClassifier",
        **sizes,
        act_fn=name,
        time_features=16,
        num_train_timesteps=timesteps,
    )
    model = NoisyClassifier(config)
    # Strong enough to matter.
    with torch.no_grad():
        model.output.weight *= 8
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    scheduler = dict(_class_name="DDPMScheduler", prediction_type="epsilon", **SCHEDULE)
    (folder / "scheduler_config.json").write_text(json.dumps(scheduler, indent=2) + "\n")
    weights = {key: value.detach().contiguous() for key, value in model.state_dict().items()}
    save_file(weights, folder / "diffusion_pytorch_model.safetensors")
    model = model.double()
    shape = (1, config["in_channels"], config["sample_size"], config["sample_size"])
    calls = 4
    samples = torch.cat([Stream(100 + i).tensor(shape) for i in range(calls)])
    times = torch.tensor([0, 3, 11, timesteps - 1])
    classes = torch.arange(calls) % config["num_classes"]
    gradients = [
        model.gradient(samples[i : i + 1], times[i], classes[i]) for i in range(calls)
    ]
    tensors = dict(
        samples=samples.float(),
        timesteps=times.float(),
        classes=classes.float(),
        gradients=torch.cat(gradients).float(),
    )
    print(f"{name}: gradients up to {tensors['gradients'].abs().max():.4f}")
    save_file(tensors, folder / "calls.safetensors")
    return model


@torch.no_grad()
def guided(model, classifier, rng, scale, steps, class_, target):
    scheduler = DDIMScheduler(**SCHEDULE)
    scheduler.set_timesteps(steps)
    x = rng.tensor((1, 1, 8, 8))
    for t in scheduler.timesteps:
        m = model(x, t, torch.tensor([class_])).sample
        with torch.enable_grad():
            gradient = classifier.gradient(x, t, target)
        m = m - scale * (1 - scheduler.alphas_cumprod[t]) ** 0.5 * gradient
        x = scheduler.step(m, t, x).prev_sample
    return x


def main():
    classifiers = {name: case(name, sizes) for name, sizes in CASES.items()}
    run = guided(network(), classifiers["silu"], Stream(10), 2.0, 10, 1, 3)
    save_file(dict(guided=run.float().contiguous()), HERE / "runs.safetensors")


if __name__ == "__main__":
    main()
