#!/usr/bin/env python3
"""Makes the few-step goldens: small random checkpoints, and what PyTorch says of them.

    pip install torch diffusers safetensors numpy
    python3 tests/parity/few_step.py                    # tests/parity/few_step/NN/

The network is that of `trainer/tests/few_step.py`: diffusers' `UNet2DModel` between
`pixel_unshuffle` and `pixel_shuffle`, with a second time. Every folder is a checkpoint.
`calls.safetensors` has single answers at pairs of time and gap (both 0 to 1), and what
whole runs of 1, 2, 4 and 8 steps make of the same input. Seeds are fixed.
"""

import json
import math
import shutil
import sys
from pathlib import Path

import torch
from diffusers import UNet2DModel
from safetensors.torch import save_file

HERE = Path(__file__).resolve().parent
# Before this folder: the script there has the name of this one.
sys.path.insert(0, str(HERE.parents[1] / "trainer/tests"))
from few_step import TIMESTEPS, FewStep, sample  # noqa: E402

# The first is as the trainer makes it; the second has a middle, attention and colours.
CASES = [
    dict(
        sample_size=4,
        in_channels=4,
        out_channels=4,
        mid_block_type=None,
        add_attention=False,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        num_class_embeds=4,
    ),
    dict(
        sample_size=(4, 6),
        in_channels=12,
        out_channels=12,
        center_input_sample=True,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ),
]
BASE = dict(
    block_out_channels=(8, 12),
    layers_per_block=1,
    norm_num_groups=4,
    attention_head_dim=4,
    num_train_timesteps=TIMESTEPS,
)
# Time and gap: of all training timesteps, of runs of 1, 4 and 8 steps.
PAIRS = [(0.333, 0.0), (1.0, 1.0), (0.75, 0.25), (1.0, 0.125)]
STEPS = [1, 2, 4, 8]


def filled(shape, generator):
    """Weights as far from special values as trained ones, exact in f16."""
    noise = torch.randn(shape, generator=generator)
    if len(shape) > 1:
        return (noise / math.sqrt(noise[0].numel())).half().float()
    return (0.2 * noise).half().float()


@torch.no_grad()
def make(folder, case, seed):
    generator = torch.Generator().manual_seed(seed)
    model = UNet2DModel(**BASE, **case).eval()
    for name, parameter in model.named_parameters():
        parameter.data = filled(parameter.shape, generator)
        if "norm" in name and name.endswith("weight"):
            parameter.data += 1.0
    features = BASE["block_out_channels"][0]
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    tensors["gap_embedding.weight"] = filled((4 * features, features), generator)
    tensors["gap_embedding.bias"] = filled((4 * features,), generator)
    folder.mkdir(parents=True)
    config = {key: value for key, value in model.config.items() if key != "_use_default_values"}
    config.update(_class_name="UNet2DModel", pixel_unshuffle=2, second_timestep=True)
    if model.class_embedding is not None:
        config["null_class_id"] = case["num_class_embeds"] - 1
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    scheduler = {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "num_train_timesteps": TIMESTEPS,
        "shift": 1.0,
        "use_dynamic_shifting": False,
        "objective": "soflow",
    }
    (folder / "scheduler_config.json").write_text(json.dumps(scheduler) + "\n")
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    save_file(calls(model, tensors, case, generator), folder / "calls.safetensors")


def calls(model, tensors, case, generator):
    size = case["sample_size"]
    rows, columns = (size, size) if isinstance(size, int) else size
    shape = (len(PAIRS), case["in_channels"] // 4, 2 * rows, 2 * columns)
    x = torch.randn(shape, generator=generator)
    time, gap = (torch.tensor(numbers) for numbers in zip(*PAIRS))
    classes = None if model.class_embedding is None else torch.arange(len(PAIRS))
    network = FewStep(model, tensors)
    result = {"input": x, "time": time, "gap": gap, "output": network(x, time, gap, classes)}
    for steps in STEPS:
        result[f"drawn.{steps}"] = sample(network, x, classes, steps)
    if classes is not None:
        result["class"] = classes.to(torch.int32)
    return {name: tensor.contiguous() for name, tensor in result.items()}


def main():
    torch.set_num_threads(1)
    goldens = HERE / "few_step"
    shutil.rmtree(goldens, ignore_errors=True)
    for i, case in enumerate(CASES):
        folder = goldens / f"{i:02}"
        make(folder, case, i)
        print(f"{i:02} {sum(file.stat().st_size for file in folder.iterdir()):7} bytes")


if __name__ == "__main__":
    main()
