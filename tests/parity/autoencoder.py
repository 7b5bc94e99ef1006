#!/usr/bin/env python3
"""Makes the autoencoder goldens: small random checkpoints, and what PyTorch says.

    pip install torch diffusers safetensors numpy
    python3 tests/parity/autoencoder.py                 # tests/parity/autoencoder/NN/

Every folder is a checkpoint as diffusers writes it (one as old versions wrote
it), with images and their latents (`encode`), and latents and their images
(`decode`) beside it in `calls.safetensors`, and the images' size, for whose
choice the configuration of an `AutoencoderTiny` has no field. Seeds are fixed:
the same versions of PyTorch and diffusers give the same files.
"""

import argparse
import json
import math
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from safetensors.torch import save_file

# Fields of the classes, and of this script: `size` of the images, `dtype` of the
# stored weights, `old` for the names of old versions, `shards`.
TINY = dict(latent_channels=4)
KL = dict(norm_num_groups=4, latent_channels=2)
CASES = [
    (
        AutoencoderTiny,
        dict(
            TINY,
            encoder_block_out_channels=(8, 8, 8),
            decoder_block_out_channels=(8, 8, 8),
            num_encoder_blocks=(1, 2, 1),
            num_decoder_blocks=(2, 1, 1),
            size=(16, 16),
        ),
    ),
    (
        AutoencoderTiny,
        dict(
            in_channels=1,
            out_channels=2,
            latent_channels=3,
            encoder_block_out_channels=(6, 6),
            decoder_block_out_channels=(10, 10),
            num_encoder_blocks=(0, 2),
            num_decoder_blocks=(1, 0),
            upsampling_scaling_factor=4,
            act_fn="mish",
            latent_magnitude=2.0,
            scaling_factor=0.5,
            size=(8, 16),
            dtype="bf16",
        ),
    ),
    (
        AutoencoderTiny,
        dict(
            encoder_block_out_channels=(8,),
            decoder_block_out_channels=(8,),
            num_encoder_blocks=(1,),
            num_decoder_blocks=(1,),
            upsampling_scaling_factor=1,
            latent_channels=1,
            act_fn="gelu",
            size=(6, 5),
            shards=True,
        ),
    ),
    (
        AutoencoderKL,
        dict(
            KL,
            block_out_channels=(4, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            sample_size=16,
            size=(16, 16),
        ),
    ),
    (
        AutoencoderKL,
        dict(
            KL,
            in_channels=1,
            out_channels=1,
            block_out_channels=(6, 6, 12),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            norm_num_groups=3,
            layers_per_block=2,
            latent_channels=4,
            mid_block_add_attention=False,
            use_quant_conv=False,
            use_post_quant_conv=False,
            act_fn="gelu",
            shift_factor=0.1,
            sample_size=8,
            size=(8, 16),
            dtype="f16",
        ),
    ),
    (
        AutoencoderKL,
        dict(
            KL,
            block_out_channels=(8,),
            sample_size=8,
            latents_mean=(0.5, 1.0),
            latents_std=(2.0, 3.0),
            size=(8, 8),
            old=True,
        ),
    ),
]

# How old versions of diffusers called the layers of an attention.
OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
WEIGHTS = "diffusion_pytorch_model"
OWN = ("size", "dtype", "old", "shards")


def randomise(model, dtype):
    """Weights as far from special values as trained ones, exact in `dtype`."""
    for name, parameter in model.named_parameters():
        noise = torch.randn_like(parameter)
        if parameter.dim() > 1:
            noise /= math.sqrt(parameter[0].numel())
        elif name.endswith("weight"):
            noise = 1.0 + 0.2 * noise
        else:
            noise *= 0.2
        parameter.data = noise.to(dtype).to(torch.float32)


def save(folder, model, case):
    """Configuration and weights, in the layout that the case asks for."""
    config = dict(model.config, _class_name=type(model).__name__)
    config.pop("_use_default_values", None)
    tensors = {name: value.to(DTYPES[case.get("dtype", "f32")]) for name, value in model.state_dict().items()}
    if case.get("old"):
        config = {key: value for key, value in config.items() if key in case or key == "_class_name"}
        for new, old in OLD_NAMES.items():
            tensors = {name.replace(f".{new}.", f".{old}."): value for name, value in tensors.items()}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
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
def calls(model, case, seed):
    """Two images and their latents, two latents and their images."""
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    height, width = case["size"]
    images = torch.randn(2, config.in_channels, height, width, generator=generator)
    encoded = model.encode(images)
    if isinstance(model, AutoencoderKL):
        encoded = encoded.latent_dist.mode()
        factor = 2 ** (len(config.block_out_channels) - 1)
    else:
        encoded = encoded.latents
        factor = config.upsampling_scaling_factor ** (len(config.num_decoder_blocks) - 1)
    # Large enough that the bound of an AutoencoderTiny shows.
    latents = 2.0 * torch.randn(2, config.latent_channels, height // factor, width // factor, generator=generator)
    return {
        "size": torch.tensor(case["size"], dtype=torch.int32),
        "encoder.input": images,
        "encoder.output": encoded.contiguous(),
        "decoder.input": latents,
        "decoder.output": model.decode(latents).sample.contiguous(),
    }


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    torch.set_num_threads(1)
    goldens = Path(__file__).parent / "autoencoder"
    shutil.rmtree(goldens, ignore_errors=True)
    for i, (kind, case) in enumerate(CASES):
        torch.manual_seed(i)
        model = kind(**{key: value for key, value in case.items() if key not in OWN}).eval()
        randomise(model, DTYPES[case.get("dtype", "f32")])
        folder = goldens / f"{i:02}"
        folder.mkdir(parents=True)
        save(folder, model, case)
        save_file(calls(model, case, 1000 + i), folder / "calls.safetensors")
        size = sum(file.stat().st_size for file in folder.iterdir())
        print(f"{i:02} {size:7} bytes", kind.__name__, case)


if __name__ == "__main__":
    main()
