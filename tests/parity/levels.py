#!/usr/bin/env python3
"""Makes the goldens of models that are told a function of the noise level: EDM,
consistency models, IPNDM.

    pip install torch diffusers safetensors numpy
    python3 tests/parity/levels.py                      # tests/parity/levels/NN/

Every folder is a checkpoint as diffusers writes it: a small random U-Net and the
scheduler that it belongs to. Beside it, `calls.safetensors` has whole runs of that
scheduler, named as quell names them, and for EDM and consistency models what the
scheduler makes of the network's answer at a few levels: the clean sample. All noise is
quell's own stream (`noise.py`).
"""

import json
import shutil
from pathlib import Path

import diffusers
import torch
from diffusers import UNet2DModel
from diffusers.schedulers import scheduling_consistency_models, scheduling_edm_dpmsolver_multistep
from safetensors.torch import save_file

from noise import Stream
from unet1d import randomise

GOLDENS = Path(__file__).parent / "levels"
SHAPE = (1, 2, 8, 8)

# The scheduler, its fields, and the runs.
CASES = [
    ("CMStochasticIterativeScheduler", {}, [f"consistency:{n}" for n in (1, 2, 4, 40)]),
    (
        "CMStochasticIterativeScheduler",
        dict(num_train_timesteps=18, sigma_max=20.0, sigma_data=0.7, clip_denoised=False, s_noise=0.8),
        ["consistency:1", "consistency:3"],
    ),
    ("EDMEulerScheduler", {}, ["edm-euler:1", "edm-euler:10"]),
    (
        "EDMEulerScheduler",
        dict(
            num_train_timesteps=100,
            sigma_schedule="exponential",
            prediction_type="v_prediction",
            sigma_max=40.0,
            final_sigmas_type="sigma_min",
        ),
        ["edm-euler:8"],
    ),
    ("EDMDPMSolverMultistepScheduler", {}, ["edm-dpmsolver++:8"]),
    (
        "EDMDPMSolverMultistepScheduler",
        dict(num_train_timesteps=200, solver_order=3, rho=5.0, sigma_min=0.01, sigma_data=1.0),
        ["edm-dpmsolver++:9"],
    ),
    (
        "EDMDPMSolverMultistepScheduler",
        dict(algorithm_type="sde-dpmsolver++", solver_type="heun", sigma_schedule="exponential"),
        ["edm-dpmsolver++:6"],
    ),
    ("IPNDMScheduler", {}, [f"ipndm:{n}" for n in (2, 7, 20)]),
    ("IPNDMScheduler", dict(num_train_timesteps=50), ["ipndm:12"]),
]


def network(seed):
    torch.manual_seed(seed)
    model = UNet2DModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        block_out_channels=(4, 8),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=2,
        attention_head_dim=4,
    ).eval()
    randomise(model, torch.float32)
    return model.double()


@torch.no_grad()
def run(model, scheduler, steps, seed):
    rng = Stream(seed)
    scheduler.set_timesteps(steps)
    x = rng.tensor(SHAPE) * float(scheduler.init_noise_sigma)
    last = scheduler.timesteps[-1]
    now = [None]
    # quell draws no noise where none is added.
    draw = lambda *_, **__: torch.zeros(SHAPE) if now[0] == last else rng.tensor(SHAPE)
    scheduling_consistency_models.randn_tensor = draw
    scheduling_edm_dpmsolver_multistep.randn_tensor = draw
    for t in scheduler.timesteps:
        now[0] = t
        m = model(scheduler.scale_model_input(x, t), t.double()).sample
        x = scheduler.step(m, t, x).prev_sample.double()
    return x


@torch.no_grad()
def calls(model, scheduler, name):
    """Of samples of unit variance at three of the scheduler's own levels."""
    total = scheduler.config.num_train_timesteps
    consistent = name.startswith("CM")
    # EDM's have one level more than asked for at first: they are spread anew here.
    scheduler.set_timesteps(total)
    sigmas = scheduler.sigmas[:-1].double()
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(3, *SHAPE[1:], generator=generator).double()
    indices = [0, total // 2, total - 1]
    outputs = []
    for x, index in zip(inputs, indices):
        # They fall; quell's timesteps rise.
        sigma = sigmas[total - 1 - index]
        told = scheduler.timesteps[total - 1 - index]
        x = x[None] * (1 + sigma**2) ** 0.5
        data = scheduler.config.sigma_data
        m = model(x / (sigma**2 + data**2) ** 0.5, told.double()).sample
        if consistent:
            skip, out = scheduler.get_scalings_for_boundary_condition(sigma)
            outputs.append(skip * x + out * m)
        else:
            outputs.append(scheduler.precondition_outputs(x, m, sigma))
    return dict(
        input=inputs, timestep=torch.tensor(indices, dtype=torch.int32), output=torch.cat(outputs)
    )


def main():
    torch.set_num_threads(1)
    shutil.rmtree(GOLDENS, ignore_errors=True)
    for i, (name, fields, specs) in enumerate(CASES):
        model, scheduler = network(i), getattr(diffusers, name)(**fields)
        folder = GOLDENS / f"{i:02}"
        folder.mkdir(parents=True)
        config = dict(model.config, _class_name="UNet2DModel")
        config.pop("_use_default_values", None)
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        own = {k: v for k, v in scheduler.config.items() if not k.startswith("_")}
        own = dict(_class_name=name, **own)
        (folder / "scheduler_config.json").write_text(json.dumps(own) + "\n")
        state = {k: v.float().contiguous() for k, v in model.state_dict().items()}
        save_file(state, folder / "diffusion_pytorch_model.safetensors")
        arrays = {} if name.startswith("IPNDM") else calls(model, scheduler, name)
        for spec in specs:
            steps = int(spec.split(":")[1])
            arrays[spec] = run(model, scheduler, steps, 80 + i)
            assert arrays[spec].isfinite().all()
            print(f"{i:02} {spec:20} {arrays[spec].min():9.3f} to {arrays[spec].max():9.3f}")
        whole = lambda x: x.float() if x.is_floating_point() else x
        arrays = {name: whole(array).contiguous() for name, array in arrays.items()}
        save_file(arrays, folder / "calls.safetensors")


if __name__ == "__main__":
    main()
