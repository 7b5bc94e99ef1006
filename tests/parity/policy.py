#!/usr/bin/env python3
"""Makes the goldens of diffusion policies: random checkpoints, and what PyTorch says.

    pip install torch diffusers safetensors numpy
    python3 tests/parity/policy.py                      # tests/parity/policy/NN/

The network is written down here after the paper (Chi et al. 2023, section III) in
plain PyTorch, with the names that its own code and LeRobot give to the parts. Every
folder is a checkpoint of one of the two, with a few calls and a whole run of a
scheduler of diffusers in `calls.safetensors`. All noise is quell's own stream
(`noise.py`).
"""

import json
import math
import shutil
from pathlib import Path

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.schedulers import scheduling_ddpm
from safetensors.torch import save_file
from torch import nn

from noise import Stream
from unet1d import DTYPES, randomise

GOLDENS = Path(__file__).parent / "policy"


class Waves(nn.Module):
    """Sines, then cosines, of frequencies from 1 to 1/10000."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, t):
        steps = torch.arange(self.size // 2) / (self.size // 2 - 1)
        angles = t.float()[:, None] * torch.exp(-math.log(10000.0) * steps)[None]
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class ConvBlock(nn.Module):
    def __init__(self, inputs, outputs, kernel, groups=8):
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2),
            nn.GroupNorm(groups, outputs),
            nn.Mish(),
        )

    def forward(self, x):
        return self.block(x)


class Block(nn.Module):
    """Two convolutions, FiLM between them, and the input added."""

    def __init__(self, inputs, outputs, condition, kernel, groups, scale, lerobot):
        super().__init__()
        convs = [ConvBlock(inputs, outputs, kernel, groups), ConvBlock(outputs, outputs, kernel, groups)]
        if lerobot:
            self.conv1, self.conv2 = convs
        else:
            self.blocks = nn.ModuleList(convs)
        self.convs, self.scale, self.outputs = lambda: convs, scale, outputs
        self.cond_encoder = nn.Sequential(
            nn.Mish(), nn.Linear(condition, outputs * (2 if scale else 1))
        )
        same = inputs == outputs
        self.residual_conv = nn.Identity() if same else nn.Conv1d(inputs, outputs, 1)

    def forward(self, x, condition):
        first, second = self.convs()
        h = first(x)
        film = self.cond_encoder(condition)[..., None]
        if self.scale:
            h = film[:, : self.outputs] * h + film[:, self.outputs :]
        else:
            h = h + film
        return second(h) + self.residual_conv(x)


class Resampler(nn.Module):
    """The paper's code has the convolution one name deeper."""

    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x):
        return self.conv(x)


class Policy(nn.Module):
    def __init__(self, actions, condition, features, dims, kernel, groups, scale, lerobot):
        super().__init__()
        self.diffusion_step_encoder = nn.Sequential(
            Waves(features),
            nn.Linear(features, 4 * features),
            nn.Mish(),
            nn.Linear(4 * features, features),
        )
        wrap = (lambda conv: conv) if lerobot else Resampler
        block = lambda i, o: Block(i, o, features + condition, kernel, groups, scale, lerobot)
        levels = list(zip([actions, *dims[:-1]], dims))
        self.down_modules = nn.ModuleList()
        for n, (i, o) in enumerate(levels):
            last = n + 1 == len(levels)
            down = nn.Identity() if last else wrap(nn.Conv1d(o, o, 3, 2, 1))
            self.down_modules.append(nn.ModuleList([block(i, o), block(o, o), down]))
        self.mid_modules = nn.ModuleList([block(dims[-1], dims[-1]) for _ in range(2)])
        self.up_modules = nn.ModuleList()
        for i, o in reversed(levels[1:]):
            up = wrap(nn.ConvTranspose1d(i, i, 4, 2, 1))
            self.up_modules.append(nn.ModuleList([block(2 * o, i), block(i, i), up]))
        self.final_conv = nn.Sequential(
            ConvBlock(dims[0], dims[0], kernel), nn.Conv1d(dims[0], actions, 1)
        )

    def forward(self, x, t, condition):
        """x is [n, horizon, actions]."""
        x = x.transpose(1, 2)
        condition = torch.cat([self.diffusion_step_encoder(t), condition], dim=-1)
        skips = []
        for first, second, down in self.down_modules:
            x = second(first(x, condition), condition)
            skips.append(x)
            x = down(x)
        for middle in self.mid_modules:
            x = middle(x, condition)
        for first, second, up in self.up_modules:
            x = torch.cat([x, skips.pop()], dim=1)
            x = up(second(first(x, condition), condition))
        return self.final_conv(x).transpose(1, 2)



# The run is a sampler and its steps; `clip` bounds the predicted actions.
CASES = [
    dict(
        lerobot=False, actions=2, condition=10, features=16, dims=[8, 16, 24], kernel=5, groups=8,
        scale=True, horizon=16, run=("ddpm", 20), timesteps=20, dtype="f32", clip=4.0,
    ),
    dict(
        lerobot=False, actions=7, condition=12, features=8, dims=[8, 16], kernel=3, groups=4,
        scale=False, horizon=8, run=("ddim", 10), timesteps=50, dtype="f16", clip=1.0,
    ),
    # No observation at all.
    dict(
        lerobot=False, actions=3, condition=0, features=12, dims=[16], kernel=5, groups=8,
        scale=True, horizon=5, run=("ddim", 5), timesteps=20, dtype="f32", clip=None,
    ),
    dict(
        lerobot=True, actions=2, condition=2 * 6, features=16, dims=[8, 24, 16], kernel=5, groups=8,
        scale=True, horizon=16, run=("ddpm", 20), timesteps=20, dtype="f32", clip=3.0,
    ),
    dict(
        lerobot=True, actions=6, condition=2 * 9, features=12, dims=[16, 16], kernel=7, groups=2,
        scale=False, horizon=12, run=("ddim", 10), timesteps=50, dtype="bf16", clip=None,
    ),
]


def schedule(case):
    fields = dict(num_train_timesteps=case["timesteps"], beta_schedule="squaredcos_cap_v2")
    clip = case["clip"]
    return fields | dict(clip_sample=clip is not None, clip_sample_range=clip or 1.0)


def network_of_lerobot(case, steps):
    """The policy's own file; what is not of the network is as LeRobot writes it."""
    state = case["condition"] // 2
    return dict(
        type="diffusion",
        n_obs_steps=2,
        input_features={
            "observation.state": dict(type="STATE", shape=[state]),
            "observation.environment_state": dict(type="ENV", shape=[1]),
        },
        output_features={"action": dict(type="ACTION", shape=[case["actions"]])},
        normalization_mapping=dict(STATE="MIN_MAX", ACTION="MIN_MAX"),
        horizon=case["horizon"],
        n_action_steps=case["horizon"] // 2,
        vision_backbone="resnet18",
        crop_shape=None,
        down_dims=case["dims"],
        kernel_size=case["kernel"],
        n_groups=case["groups"],
        diffusion_step_embed_dim=case["features"],
        use_film_scale_modulation=case["scale"],
        noise_scheduler_type=case["run"][0].upper(),
        beta_start=1e-4,
        beta_end=0.02,
        prediction_type="epsilon",
        num_inference_steps=steps,
        optimizer_lr=1e-4,
        **schedule(case),
    )


def save(folder, case, model):
    dtype = DTYPES[case["dtype"]]
    state = {name: value.to(dtype).contiguous() for name, value in model.state_dict().items()}
    if case["lerobot"]:
        state = {f"diffusion.unet.{name}": value for name, value in state.items()}
        state["normalize_inputs.buffer_observation_state.min"] = torch.zeros(3)
        state["unnormalize_outputs.buffer_action.max"] = torch.ones(case["actions"])
        config, name = network_of_lerobot(case, case["run"][1]), "model.safetensors"
    else:
        config = dict(
            _class_name="ConditionalUnet1D",
            input_dim=case["actions"],
            global_cond_dim=case["condition"] or None,
            diffusion_step_embed_dim=case["features"],
            down_dims=case["dims"],
            kernel_size=case["kernel"],
            n_groups=case["groups"],
            cond_predict_scale=case["scale"],
            horizon=case["horizon"],
        )
        name = "diffusion_pytorch_model.safetensors"
        scheduler = dict(
            _class_name=f"{case['run'][0].upper()}Scheduler",
            **schedule(case),
        )
        (folder / "scheduler_config.json").write_text(json.dumps(scheduler) + "\n")
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_file(state, folder / name)


@torch.no_grad()
def calls(model, case, seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(3, case["horizon"], case["actions"], generator=generator)
    contexts = torch.randn(3, case["condition"], generator=generator)
    last = case["timesteps"] - 1
    times = torch.tensor([0, last // 2, last])
    output = model(inputs, times, contexts)
    arrays = dict(input=inputs, timestep=times.to(torch.int32), output=output)
    return arrays | (dict(context=contexts) if case["condition"] else {})


@torch.no_grad()
def run(model, case, context, rng):
    sampler, steps = case["run"]
    scheduler = dict(ddpm=DDPMScheduler, ddim=DDIMScheduler)[sampler]
    scheduler = scheduler(**schedule(case))
    scheduler.set_timesteps(steps)
    shape = (1, case["horizon"], case["actions"])
    scheduling_ddpm.randn_tensor = lambda *_, **__: rng.tensor(shape).float()
    x = rng.tensor(shape).float()
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, t[None], context), t, x).prev_sample
    return x


def main():
    torch.set_num_threads(1)
    shutil.rmtree(GOLDENS, ignore_errors=True)
    for i, case in enumerate(CASES):
        torch.manual_seed(i)
        names = ["actions", "condition", "features", "dims", "kernel", "groups", "scale", "lerobot"]
        model = Policy(**{name: case[name] for name in names}).eval()
        randomise(model, DTYPES[case["dtype"]])
        folder = GOLDENS / f"{i:02}"
        folder.mkdir(parents=True)
        save(folder, case, model)
        arrays = calls(model, case, 1000 + i)
        context = arrays.get("context", torch.zeros(1, 0))[:1]
        arrays["sample"] = run(model, case, context, Stream(60 + i))
        arrays["steps"] = torch.tensor([case["run"][1]], dtype=torch.int32)
        arrays = {name: array.contiguous() for name, array in arrays.items()}
        save_file(arrays, folder / "calls.safetensors")
        size = sum(file.stat().st_size for file in folder.iterdir())
        sample = arrays["sample"]
        print(f"{i:02} {size:7} bytes, {sample.min():.3f} to {sample.max():.3f}", case)


if __name__ == "__main__":
    main()
