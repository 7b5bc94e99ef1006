#!/usr/bin/env python3
"""Makes the goldens of networks that read a condition beside the sample.

    pip install torch diffusers safetensors numpy
    python3 tests/parity/context.py                     # tests/parity/context/NN/

Every folder is a checkpoint as diffusers writes it, of a U-Net whose input is
`torch.cat([sample, condition], dim=1)`: super-resolution, inpainting, colorization,
classes as planes. Beside it, `calls.safetensors` has a few calls of the network, and
a whole run of a scheduler of diffusers: DDIM, or DDPM where variances are learned.
All noise is quell's own stream (`noise.py`).
"""

import json
import shutil
from pathlib import Path

import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from diffusers.schedulers import scheduling_ddpm
from safetensors.torch import save_file

from noise import Stream
from unet1d import DTYPES, randomise

GOLDENS = Path(__file__).parent / "context"
SCHEDULE = dict(num_train_timesteps=20, beta_schedule="linear", beta_start=0.005, beta_end=0.3)
BASE = dict(
    sample_size=8,
    block_out_channels=(4, 8),
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    layers_per_block=1,
    norm_num_groups=2,
    attention_head_dim=4,
)

# Fields of UNet2DModel, and of this script: `dtype` of the stored weights, `run` as
# (sampler, steps, guidance scale), `more` fields of the scheduler.
CASES = [
    # Classes as planes of their embedding, as a well-known course has them.
    dict(in_channels=5, out_channels=1, run=("ddim", 10, 1.0), more=dict(clip_sample=True)),
    # Super-resolution, of images that are not square.
    dict(
        in_channels=6,
        out_channels=3,
        sample_size=(4, 8),
        center_input_sample=True,
        dtype="f16",
        run=("ddim", 5, 1.0),
        more=dict(prediction_type="v_prediction", clip_sample=False),
    ),
    # Inpainting of latents: the mask, and what it leaves of the image.
    dict(
        in_channels=9,
        out_channels=4,
        resnet_time_scale_shift="scale_shift",
        dtype="bf16",
        run=("ddim", 10, 1.0),
        more=dict(clip_sample=False, timestep_spacing="trailing"),
    ),
    # As many outputs as inputs, since half of them are variances.
    dict(
        in_channels=6,
        out_channels=6,
        run=("ddpm", 5, 1.0),
        more=dict(variance_type="learned_range", clip_sample=True),
    ),
    # Classes, the last of which means none, beside a condition.
    dict(
        in_channels=2,
        out_channels=1,
        num_class_embeds=4,
        run=("ddim", 5, 3.0),
        more=dict(clip_sample=True),
    ),
]


def predict(model, x, context, t, class_):
    labels = None if class_ is None else torch.tensor([class_])
    return model(torch.cat([x, context], dim=1), t, labels).sample


@torch.no_grad()
def run(model, shape, context, sampler, steps, scale, more, rng):
    """A run from the seed's noise, guided away from the last class."""
    classes = model.config.num_class_embeds
    class_, null = (None, None) if classes is None else (1, classes - 1)
    scheduler = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler}[sampler](**SCHEDULE, **more)
    scheduler.set_timesteps(steps)
    x = rng.tensor(shape)
    scheduling_ddpm.randn_tensor = lambda *_, **__: rng.tensor(x.shape)
    for t in scheduler.timesteps:
        m = predict(model, x, context, t, class_)
        if scale != 1:
            without = predict(model, x, context, t, null)
            m = without + scale * (m - without)
        x = scheduler.step(m, t, x).prev_sample
    return x


@torch.no_grad()
def calls(model, shape, contexts):
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(3, *shape[1:], generator=generator)
    times = torch.tensor([0, 10, 19])
    class_ = None if model.config.num_class_embeds is None else 2
    pairs = zip(inputs.double(), contexts.double(), times)
    outputs = [predict(model, x[None], context[None], t, class_) for x, context, t in pairs]
    return {
        "input": inputs,
        "timestep": times.to(torch.int32),
        "output": torch.cat(outputs),
    }


def main():
    torch.set_num_threads(1)
    shutil.rmtree(GOLDENS, ignore_errors=True)
    for i, case in enumerate(CASES):
        fields = {**BASE, **case}
        (sampler, steps, scale), more = fields.pop("run"), fields.pop("more")
        dtype = DTYPES[fields.pop("dtype", "f32")]
        torch.manual_seed(i)
        model = UNet2DModel(**fields).eval()
        randomise(model, dtype)
        folder = GOLDENS / f"{i:02}"
        folder.mkdir(parents=True)
        config = dict(model.config, _class_name="UNet2DModel")
        config.pop("_use_default_values", None)
        if model.config.num_class_embeds:
            config["null_class_id"] = model.config.num_class_embeds - 1
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        scheduler = dict(_class_name=f"{sampler.upper()}Scheduler", **SCHEDULE, **more)
        (folder / "scheduler_config.json").write_text(json.dumps(scheduler) + "\n")
        state = {name: value.to(dtype).contiguous() for name, value in model.state_dict().items()}
        save_file(state, folder / "diffusion_pytorch_model.safetensors")

        learned = more.get("variance_type") is not None
        channels = model.config.out_channels // (2 if learned else 1)
        size = model.config.sample_size
        rows, columns = (size, size) if isinstance(size, int) else size
        shape = (1, channels, rows, columns)
        generator = torch.Generator().manual_seed(100 + i)
        others = model.config.in_channels - channels
        contexts = torch.randn(3, others, rows, columns, generator=generator)
        model = model.double()
        sample = run(
            model, shape, contexts[:1].double(), sampler, steps, scale, more, Stream(40 + i)
        )
        arrays = calls(model, shape, contexts) | {"context": contexts, "sample": sample}
        arrays["steps"] = torch.tensor([steps], dtype=torch.int32)
        arrays["scale"] = torch.tensor([scale])
        whole = lambda x: x.float() if x.is_floating_point() else x
        arrays = {name: whole(array).contiguous() for name, array in arrays.items()}
        save_file(arrays, folder / "calls.safetensors")
        print(f"{i:02} {sample.min():8.4f} to {sample.max():8.4f}", case)


if __name__ == "__main__":
    main()
