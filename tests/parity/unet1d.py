#!/usr/bin/env python3
"""Makes the goldens of one-dimensional U-Nets: random checkpoints, and what PyTorch says.

    pip install torch diffusers safetensors numpy
    python3 tests/parity/unet1d.py                      # tests/parity/unet1d/NN/

Every folder is a checkpoint as diffusers writes it, with inputs, timesteps and
outputs of a few calls, and the sequences' length, beside it in
`calls.safetensors`. Seeds are fixed: the same versions of PyTorch and diffusers
give the same files.
"""

import argparse
import json
import math
import shutil
from pathlib import Path

import torch
from diffusers import UNet1DModel
from safetensors.torch import save_file

DOWN, UP = "DownResnetBlock1D", "UpResnetBlock1D"

# What a case has unless it says otherwise: a planner's network (Janner et al. 2022)
# as it is published, but small.
BASE = dict(
    in_channels=6,
    out_channels=6,
    time_embedding_type="positional",
    use_timestep_embedding=True,
    flip_sin_to_cos=False,
    freq_shift=1,
    block_out_channels=(8, 16, 16),
    down_block_types=(DOWN, DOWN, DOWN),
    mid_block_type="MidResTemporalBlock1D",
    up_block_types=(UP, UP),
    out_block_type="OutConv1DBlock",
    act_fn="mish",
    layers_per_block=1,
)

# Fields of UNet1DModel, and of this script: `length` of the sequences, `timesteps`
# of the scheduler, `dtype` of the stored weights.
CASES = [
    dict(length=32),
    dict(
        length=8,
        in_channels=3,
        out_channels=3,
        time_embedding_type="fourier",
        flip_sin_to_cos=True,
        block_out_channels=(8, 24),
        down_block_types=(DOWN, DOWN),
        up_block_types=(UP, UP),
        norm_num_groups=4,
        layers_per_block=2,
        act_fn="silu",
        sample_size=8,
        dtype="f16",
    ),
    dict(
        length=5,
        in_channels=8,
        out_channels=8,
        block_out_channels=(16,),
        down_block_types=(DOWN,),
        up_block_types=(UP,),
        out_block_type=None,
        flip_sin_to_cos=True,
        freq_shift=0,
        act_fn="gelu",
        timesteps=100,
    ),
    dict(
        length=4,
        in_channels=1,
        out_channels=1,
        time_embedding_type="fourier",
        time_embedding_dim=12,
        norm_num_groups=None,
        act_fn="relu",
        sample_rate=16000,
        dtype="bf16",
    ),
    # A condition beside the sample: the channels that are not predicted.
    dict(length=8, extra_in_channels=4),
    dict(length=12, in_channels=5, out_channels=3, block_out_channels=(8, 16), down_block_types=(DOWN, DOWN), up_block_types=(UP,)),
]

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def randomise(model, dtype):
    """Weights as far from special values as trained ones, exact in `dtype`."""
    for name, parameter in model.named_parameters():
        noise = torch.randn_like(parameter)
        if name == "time_proj.weight":
            noise *= 0.3
        elif parameter.dim() > 1:
            noise /= math.sqrt(parameter[0].numel())
        elif name.endswith("weight"):
            noise = 1.0 + 0.2 * noise
        else:
            noise *= 0.2
        parameter.data = noise.to(dtype).to(torch.float32)


def save(folder, model, dtype, timesteps):
    config = dict(model.config, _class_name="UNet1DModel")
    config.pop("_use_default_values", None)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    scheduler = {"_class_name": "DDPMScheduler", "num_train_timesteps": timesteps}
    (folder / "scheduler_config.json").write_text(json.dumps(scheduler) + "\n")
    tensors = {name: value.to(dtype).contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")


@torch.no_grad()
def calls(model, length, timesteps, seed):
    """Inputs and outputs at early, middle and late timesteps."""
    generator = torch.Generator().manual_seed(seed)
    channels = model.config.in_channels + model.config.extra_in_channels
    inputs = torch.randn(3, channels, length, generator=generator)
    times = torch.tensor([0, timesteps // 2, timesteps - 1])
    outputs = [model(inputs[i : i + 1], times[i]).sample for i in range(3)]
    own = model.config.out_channels
    condition = {"context": inputs[:, own:].contiguous()} if own < channels else {}
    return condition | {
        "length": torch.tensor([length], dtype=torch.int32),
        "input": inputs[:, :own].contiguous(),
        "timestep": times.to(torch.int32),
        "output": torch.cat(outputs),
    }


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    torch.set_num_threads(1)
    goldens = Path(__file__).parent / "unet1d"
    shutil.rmtree(goldens, ignore_errors=True)
    for i, case in enumerate(CASES):
        fields = {**BASE, **case}
        length, timesteps = fields.pop("length"), fields.pop("timesteps", 20)
        dtype = DTYPES[fields.pop("dtype", "f32")]
        torch.manual_seed(i)
        model = UNet1DModel(**fields).eval()
        randomise(model, dtype)
        folder = goldens / f"{i:02}"
        folder.mkdir(parents=True)
        save(folder, model, dtype, timesteps)
        save_file(calls(model, length, timesteps, 1000 + i), folder / "calls.safetensors")
        size = sum(file.stat().st_size for file in folder.iterdir())
        print(f"{i:02} {size:7} bytes", case)


if __name__ == "__main__":
    main()
