#!/usr/bin/env python3
"""Makes the U-Net goldens: small random checkpoints, and what PyTorch says of them.

    pip install torch diffusers safetensors numpy
    python3 tests/parity/unet2d.py                      # tests/parity/unet2d/NN/
    python3 tests/parity/unet2d.py --bench FOLDER       # the model that is benchmarked

Every folder is a checkpoint as diffusers writes it (some as old versions wrote
it), with inputs, timesteps, classes (`context` where these are vectors) and
outputs of a few calls beside it in `calls.safetensors`. Together they touch every value of every field that
`UNet2DModel` has and quell supports. Seeds are fixed: the same versions of
PyTorch and diffusers give the same files.
"""

import argparse
import json
import math
import shutil
from pathlib import Path

import torch
from diffusers import UNet2DModel
from safetensors.torch import save_file

DOWN, ATTN_DOWN, RESNET_DOWN = "DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"
UP, ATTN_UP, RESNET_UP = "UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"

# What a case has unless it says otherwise.
BASE = dict(
    sample_size=8,
    in_channels=1,
    out_channels=1,
    block_out_channels=(4, 8),
    down_block_types=(DOWN, ATTN_DOWN),
    up_block_types=(ATTN_UP, UP),
    layers_per_block=1,
    norm_num_groups=4,
    attention_head_dim=4,
)
RESNETS = dict(down_block_types=(RESNET_DOWN, DOWN), up_block_types=(UP, RESNET_UP))
PLAIN = dict(down_block_types=(DOWN, DOWN), up_block_types=(UP, UP))

# Fields of UNet2DModel, and of this script: `timesteps` of the scheduler, `dtype`
# of the stored weights, `old` for the names of old versions, `shards`.
CASES = [
    dict(),
    dict(in_channels=3, out_channels=3),
    dict(sample_size=(8, 12), in_channels=2, out_channels=2, center_input_sample=True),
    dict(center_input_sample=True, flip_sin_to_cos=False, freq_shift=1, downsample_padding=0, old=True),
    dict(time_embedding_type="fourier", timesteps=50),
    dict(time_embedding_type="learned", num_train_timesteps=30, timesteps=30),
    dict(time_embedding_dim=20, timesteps=1000, num_train_timesteps=1000),
    dict(block_out_channels=(5, 10), norm_num_groups=5, attention_head_dim=5, timesteps=40),
    dict(RESNETS),
    dict(
        down_block_types=(ATTN_DOWN, ATTN_DOWN),
        up_block_types=(ATTN_UP, ATTN_UP),
        downsample_type="resnet",
        upsample_type="resnet",
    ),
    dict(down_block_types=(ATTN_DOWN, DOWN), up_block_types=(UP, ATTN_UP), downsample_padding=0),
    dict(mid_block_type=None, timesteps=200),
    dict(PLAIN, block_out_channels=(8, 16), dtype="f16"),
    dict(
        block_out_channels=(4, 8, 8),
        down_block_types=(DOWN, ATTN_DOWN, DOWN),
        up_block_types=(UP, ATTN_UP, UP),
        dtype="f16",
    ),
    dict(block_out_channels=(8,), down_block_types=(DOWN,), up_block_types=(UP,), layers_per_block=2),
    dict(layers_per_block=2, dtype="f16", num_class_embeds=3),
    dict(mid_block_scale_factor=math.sqrt(2), dropout=0.1),
    dict(act_fn="gelu", norm_eps=1e-6),
    dict(act_fn="mish", norm_num_groups=2),
    dict(act_fn="relu", norm_num_groups=1),
    dict(act_fn="swish", norm_eps=1e-3),
    dict(attention_head_dim=None, in_channels=4, out_channels=4),
    dict(attention_head_dim=3, attn_norm_num_groups=2),
    dict(resnet_time_scale_shift="scale_shift"),
    dict(resnet_time_scale_shift="scale_shift", attn_norm_num_groups=4, num_class_embeds=4, timesteps=1000),
    dict(PLAIN, add_attention=False, dtype="bf16"),
    dict(class_embed_type="timestep", num_class_embeds=7),
    dict(class_embed_type="timestep", timesteps=12, num_class_embeds=None),
    dict(num_class_embeds=11, shards=True, old=True, timesteps=1000),
    dict(  # groups across the border of two images, and more than one panel
        block_out_channels=(20,), down_block_types=(DOWN,), up_block_types=(UP,), norm_num_groups=5, dtype="f16"
    ),
    dict(RESNETS, time_embedding_type="fourier", num_class_embeds=2, mid_block_scale_factor=-2.0),
    dict(PLAIN, class_embed_type="identity", norm_num_groups=2),
    dict(class_embed_type="identity", time_embedding_dim=6, resnet_time_scale_shift="scale_shift", dtype="f16"),
]

# The model of the speed comparison: 687 473 parameters, 73.4 M multiply-accumulates.
BENCH = dict(
    sample_size=28,
    in_channels=1,
    out_channels=1,
    block_out_channels=(16, 32, 64),
    layers_per_block=1,
    down_block_types=(DOWN, DOWN, ATTN_DOWN),
    up_block_types=(ATTN_UP, UP, UP),
    norm_num_groups=8,
    attention_head_dim=16,
    num_class_embeds=11,
)

# How old versions of diffusers called the layers of an attention.
OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
WEIGHTS = "diffusion_pytorch_model"


def randomise(model, dtype):
    """Weights as far from special values as trained ones, exact in `dtype`."""
    for name, parameter in model.named_parameters():
        noise = torch.randn_like(parameter)
        if name == "time_proj.weight" and model.config.time_embedding_type == "fourier":
            noise *= 2.0
        elif parameter.dim() > 1:
            noise /= math.sqrt(parameter[0].numel())
        elif name.endswith("weight"):
            noise = 1.0 + 0.2 * noise
        else:
            noise *= 0.2
        parameter.data = noise.to(dtype).to(torch.float32)


def save(folder, model, case, timesteps):
    """Configuration, scheduler and weights, in the layout that the case asks for."""
    config = dict(model.config, _class_name="UNet2DModel")
    config = {key: value for key, value in config.items() if value != "_use_default_values"}
    config.pop("_use_default_values", None)
    tensors = {name: value.to(DTYPES[case.get("dtype", "f32")]) for name, value in model.state_dict().items()}
    if case.get("old"):
        given = {**BASE, **case}
        config = {key: value for key, value in config.items() if key in given or key == "_class_name"}
        for new, old in OLD_NAMES.items():
            tensors = {name.replace(f".{new}.", f".{old}."): value for name, value in tensors.items()}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    scheduler = {"_class_name": "DDPMScheduler", "num_train_timesteps": timesteps}
    (folder / "scheduler_config.json").write_text(json.dumps(scheduler) + "\n")
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    if not case.get("shards"):
        save_file(tensors, folder / f"{WEIGHTS}.safetensors")
        return
    files = [f"{WEIGHTS}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    where = {name: files[i % 2] for i, name in enumerate(tensors)}
    for file in files:
        save_file({n: t for n, t in tensors.items() if where[n] == file}, folder / file)
    index = {"metadata": {}, "weight_map": where}
    (folder / f"{WEIGHTS}.safetensors.index.json").write_text(json.dumps(index) + "\n")


@torch.no_grad()
def calls(model, timesteps, seed):
    """Inputs and outputs at early, middle and late timesteps."""
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    size = config.sample_size
    size = (size, size) if isinstance(size, int) else tuple(size)
    inputs = torch.randn(3, config.in_channels, *size, generator=generator)
    times = torch.tensor([1, timesteps // 2, timesteps - 1])
    classes = None
    identity = config.class_embed_type == "identity"
    if identity:
        width = config.time_embedding_dim or 4 * config.block_out_channels[0]
        classes = torch.randn(3, width, generator=generator)
    elif model.class_embedding is not None:
        classes = torch.arange(3) % (config.num_class_embeds or timesteps)
    outputs = [
        model(inputs[i : i + 1], times[i], None if classes is None else classes[i : i + 1]).sample for i in range(3)
    ]
    result = {"input": inputs, "timestep": times.to(torch.int32), "output": torch.cat(outputs)}
    if identity:
        result["context"] = classes
    elif classes is not None:
        result["class"] = classes.to(torch.int32)
    return result


def make(folder, case, seed):
    fields = {key: value for key, value in case.items() if key not in ("timesteps", "dtype", "old", "shards")}
    timesteps = case.get("timesteps", 20)
    torch.manual_seed(seed)
    model = UNet2DModel(**fields).eval()
    randomise(model, DTYPES[case.get("dtype", "f32")])
    folder.mkdir(parents=True)
    save(folder, model, case, timesteps)
    return model, timesteps


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--bench", type=Path, metavar="FOLDER", help="write the benchmarked model there instead")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.bench:
        make(arguments.bench, dict(BENCH, timesteps=1000), 0)
        return
    goldens = Path(__file__).parent / "unet2d"
    shutil.rmtree(goldens, ignore_errors=True)
    for i, case in enumerate(CASES):
        folder = goldens / f"{i:02}"
        model, timesteps = make(folder, {**BASE, **case}, i)
        save_file(calls(model, timesteps, 1000 + i), folder / "calls.safetensors")
        size = sum(file.stat().st_size for file in folder.iterdir())
        print(f"{i:02} {size:7} bytes", {key: value for key, value in case.items()})


if __name__ == "__main__":
    main()
