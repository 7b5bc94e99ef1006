#!/usr/bin/env python3
"""Makes the goldens of guidance and editing: whole runs of diffusers.

    pip install torch diffusers transformers safetensors numpy
    python3 tests/parity/editing.py                     # tests/parity/editing/

A small random U-Net with classes, the last of which stands for "no class", and what
diffusers' schedulers make of it when it is guided, starts from an image, keeps a
part of one or runs backwards. All noise is quell's own stream (`noise.py`), so that
a test can start from nothing but the seed.
"""

import json
import shutil
from pathlib import Path

import torch
from diffusers import (
    DDIMInverseScheduler,
    DDIMScheduler,
    DDPMScheduler,
    RePaintScheduler,
    UNet2DModel,
)
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from diffusers.schedulers import scheduling_ddpm, scheduling_repaint
from safetensors.torch import save_file

from noise import Stream

HERE = Path(__file__).parent / "editing"
CLASSES = 4  # and a row for "no class"
SCHEDULE = dict(
    num_train_timesteps=20,
    beta_schedule="linear",
    beta_start=0.005,
    beta_end=0.3,
    clip_sample=True,
)


def network(out_channels=1):
    torch.manual_seed(5)
    model = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=out_channels,
        block_out_channels=(4, 8),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        num_class_embeds=CLASSES + 1,
    )
    # As it is, an untrained network hardly listens to its class.
    with torch.no_grad():
        model.class_embedding.weight *= 10
        for block in [*model.down_blocks, model.mid_block, *model.up_blocks]:
            for resnet in block.resnets:
                resnet.time_emb_proj.weight *= 5
        # Most variances positive, as those of a trained network.
        model.conv_out.bias[1:] = 0.5
    return model.eval().double()


@torch.no_grad()
def guided(model, rng, scale, rescale, steps, class_):
    """The loop of diffusers' guided pipelines."""
    scheduler = DDIMScheduler(**SCHEDULE)
    scheduler.set_timesteps(steps)
    x = rng.tensor((1, 1, 8, 8))
    for t in scheduler.timesteps:
        without = model(x, t, torch.tensor([CLASSES])).sample
        with_ = model(x, t, torch.tensor([class_])).sample
        m = without + scale * (with_ - without)
        if rescale > 0:
            m = rescale_noise_cfg(m, with_, guidance_rescale=rescale)
        x = scheduler.step(m, t, x).prev_sample
    return x


@torch.no_grad()
def image_to_image(model, rng, image, strength, steps, class_, eta):
    """The loop of diffusers' image-to-image pipelines."""
    scheduler = DDIMScheduler(**SCHEDULE)
    scheduler.set_timesteps(steps)
    first = steps - min(int(steps * strength), steps)
    timesteps = scheduler.timesteps[first:]
    noise = rng.tensor(image.shape)
    x = scheduler.add_noise(image, noise, timesteps[:1])
    for t in timesteps:
        m = model(x, t, torch.tensor([class_])).sample
        # diffusers adds no noise in the last step, and this stream draws none.
        z = rng.tensor(image.shape) if eta > 0 and t > 0 else torch.zeros_like(x)
        x = scheduler.step(m, t, x, eta=eta, variance_noise=z if eta > 0 else None).prev_sample
    return x


@torch.no_grad()
def repaint(model, rng, image, mask, steps, jump_length, jump_n_sample, class_, eta):
    """RePaintPipeline's loop; a jump's many draws are one draw of the stream."""
    scheduler = RePaintScheduler(**SCHEDULE, eta=eta)
    scheduler.set_timesteps(steps, jump_length, jump_n_sample)
    stride = SCHEDULE["num_train_timesteps"] // steps
    x = rng.tensor(image.shape)
    timesteps = scheduler.timesteps.tolist()
    queue = []
    scheduling_repaint.randn_tensor = lambda *_, **__: queue.pop(0)
    t_last = timesteps[0] + 1
    for i, t in enumerate(timesteps):
        if t < t_last:
            m = model(x, t, torch.tensor([class_])).sample
            # Nothing is random about arriving at the clean image.
            queue.append(rng.tensor(x.shape) if t >= stride else torch.zeros_like(x))
            x = scheduler.step(m, t, x, image, mask).prev_sample
        else:
            if timesteps[i - 1] < (timesteps[i - 2] if i > 1 else t_last):
                # A jump begins: all its draws but the last are 0, and that one is scaled to
                # what all of them together amount to.
                ups = next(k for k in range(i, len(timesteps)) if timesteps[k] <= timesteps[k - 1])
                betas = scheduler.betas[t_last : t_last + (ups - i) * stride].double()
                total = (1 - torch.prod(1 - betas)) ** 0.5
                queue += [torch.zeros_like(x)] * (len(betas) - 1)
                queue.append(rng.tensor(x.shape) * total / betas[-1] ** 0.5)
            x = scheduler.undo_step(x, t_last)
        t_last = t
    assert not queue
    return x


@torch.no_grad()
def inverted(model, image, steps, class_):
    scheduler = DDIMInverseScheduler(**SCHEDULE)
    scheduler.set_timesteps(steps)
    x = image
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, t, torch.tensor([class_])).sample, t, x).prev_sample
    return x


@torch.no_grad()
def learned(model, rng, variance_type, steps, class_):
    """DDPM with variances of the network's own."""
    scheduler = DDPMScheduler(**SCHEDULE, variance_type=variance_type)
    scheduler.set_timesteps(steps)
    x = rng.tensor((1, 1, 8, 8))
    scheduling_ddpm.randn_tensor = lambda *_, **__: rng.tensor(x.shape)
    for t in scheduler.timesteps:
        m = model(x, t, torch.tensor([class_])).sample
        # A negative variance has no root; quell takes it for none.
        m[:, 1:] = m[:, 1:].clamp(min=0) if variance_type == "learned" else m[:, 1:]
        x = scheduler.step(m, t, x).prev_sample
    return x


def save(model, folder, scheduler, **more):
    folder.mkdir(parents=True)
    model.float().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["null_class_id"] = CLASSES
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    scheduler = dict(_class_name=scheduler, prediction_type="epsilon", **SCHEDULE, **more)
    (folder / "scheduler_config.json").write_text(json.dumps(scheduler, indent=2) + "\n")
    model.double()


def main():
    shutil.rmtree(HERE, ignore_errors=True)
    model, variances = network(), network(out_channels=2)
    save(model, HERE, "DDIMScheduler", timestep_spacing="leading", steps_offset=0)
    for kind in ["learned", "learned_range"]:
        save(variances, HERE / kind, "DDPMScheduler", variance_type=kind)

    rows = torch.linspace(-1, 1, 8, dtype=torch.float64)
    image = torch.sin(3 * rows[:, None] + 5 * rows[None, :] ** 2)[None, None]
    mask = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    mask[..., :3] = 1
    mask[..., 3] = 0.5
    runs = dict(
        noise=Stream(1).tensor((1, 1, 8, 8)),
        image=image,
        mask=mask,
        guided=guided(model, Stream(1), 3.0, 0.0, 5, 2),
        rescaled=guided(model, Stream(2), 4.0, 0.7, 10, 1),
        from_image=image_to_image(model, Stream(3), image, 0.6, 10, 0, 0.0),
        from_image_noisy=image_to_image(model, Stream(4), image, 0.55, 5, 3, 0.5),
        repaint=repaint(model, Stream(5), image, mask, 20, 3, 4, 1, 0.0),
        repaint_strides=repaint(model, Stream(6), image, mask, 10, 2, 3, 2, 1.0),
        repaint_plain=repaint(model, Stream(7), image, mask, 5, 5, 5, 0, 0.3),
        inverted=inverted(model, image, 10, 2),
        learned=learned(variances, Stream(8), "learned", 20, 1),
        learned_range=learned(variances, Stream(9), "learned_range", 5, 2),
    )
    runs = {name: run.float().contiguous() for name, run in runs.items()}
    save_file(runs, HERE / "runs.safetensors")
    for name, run in runs.items():
        print(f"{name:18} {run.min():8.4f} to {run.max():8.4f}")


if __name__ == "__main__":
    main()
