"""Random schedulers and networks, against diffusers, through the `quell` command.

    pip install diffusers torch numpy scipy safetensors
    cargo build -p quell-converter
    python3 tests/parity/fuzz.py --schedulers 1000 --networks 100 --seed 1

Exploratory and in no gate: what it finds becomes a named golden. Every case is one of

- agrees: both run, and the results are the same within the tolerance;
- refused: quell says why, in one line that names a field;
- impossible: diffusers itself fails, or its result is not finite;
- unstable: diffusers' own runs in f32 and f64, and with a network whose last bits are
  others, differ by more than the tolerance;
- FOUND: quell crashes, or gives another result without a word.

A scheduler's case is a scheduler_config.json of one class, read by the same class or by
another one as `from_config` does, and a run from a seed: initial and fresh noise are quell's
own stream, so that stochastic samplers are compared, too.
"""

import argparse
import collections
import json
import math
import random
import re
import subprocess
import tempfile
import warnings
from pathlib import Path

import diffusers
import numpy as np
import torch
from safetensors.numpy import save_file

ROOT = Path(__file__).resolve().parents[2]
SIDE = 2
PIXELS = SIDE * SIDE
HIDDEN = 6
TOLERANCE = 2e-3

NAMES = {
    "DDPMScheduler": "ddpm",
    "DDIMScheduler": "ddim",
    "DPMSolverMultistepScheduler": "dpmsolver++",
    "DPMSolverSinglestepScheduler": "dpmsolver-singlestep",
    "UniPCMultistepScheduler": "unipc",
    "DEISMultistepScheduler": "deis",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler-ancestral",
    "HeunDiscreteScheduler": "heun",
    "KDPM2DiscreteScheduler": "kdpm2",
    "KDPM2AncestralDiscreteScheduler": "kdpm2-ancestral",
    "LMSDiscreteScheduler": "lms",
    "PNDMScheduler": "pndm",
    "LCMScheduler": "lcm",
    "TCDScheduler": "tcd",
    "FlowMatchEulerDiscreteScheduler": "flow-euler",
    "FlowMatchHeunDiscreteScheduler": "flow-heun",
}
SOLVERS = {"DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"}
# Trajectories' own in quell, or arguments of a call in diffusers.
THRESHOLD = ("thresholding", "dynamic_thresholding_ratio", "sample_max_value")


class Stream:
    """quell's noise: Xoshiro128++ seeded by SplitMix64, and Box & Muller's Gaussians."""

    def __init__(self, seed):
        words = []
        z = seed
        for _ in range(2):
            z = (z + 0x9E3779B97F4A7C15) % 2**64
            x = z
            x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
            x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
            x ^= x >> 31
            words += [x % 2**32, x >> 32]
        self.s = words
        self.spare = None

    def bits(self):
        s = self.s
        rotated = lambda x, k: ((x << k) | (x >> (32 - k))) % 2**32
        result = (rotated((s[0] + s[3]) % 2**32, 7) + s[0]) % 2**32
        t = (s[1] << 9) % 2**32
        s[2] ^= s[0]
        s[3] ^= s[1]
        s[1] ^= s[2]
        s[0] ^= s[3]
        s[2] ^= t
        s[3] = rotated(s[3], 11)
        return result

    def normal(self):
        if self.spare is not None:
            spare, self.spare = self.spare, None
            return spare
        u = ((self.bits() >> 8) + 1) / 2**24
        turn = 2 * math.pi * (self.bits() >> 8) / 2**24
        radius = math.sqrt(-2 * math.log(u))
        self.spare = radius * math.sin(turn)
        return radius * math.cos(turn)

    def fill(self, shape):
        count = math.prod(shape)
        return torch.tensor([self.normal() for _ in range(count)], dtype=torch.float32).reshape(shape)


def maybe(rng, fields, name, values, share=0.35):
    if rng.random() < share:
        fields[name] = rng.choice(values)


def scheduler_fields(rng, name):
    """Fields that this class has, with values that people could write."""
    total = rng.choice([20, 50, 100, 1000, 1000, 1000])
    fields = {"num_train_timesteps": total}
    known = set(getattr(diffusers, name)().config)

    def put(field, values, share=0.35):
        if field in known:
            maybe(rng, fields, field, values, share)

    put("beta_start", [0.0001, 0.00085, 0.001])
    put("beta_end", [0.012, 0.02, 0.05])
    put("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"], 0.5)
    put("prediction_type", ["epsilon", "sample", "v_prediction"], 0.6)
    put("timestep_spacing", ["leading", "trailing", "linspace"], 0.5)
    put("steps_offset", [0, 1], 0.3)
    put("set_alpha_to_one", [True, False])
    put("clip_sample", [True, False])
    put("clip_sample_range", [1.0, 2.0])
    put("rescale_betas_zero_snr", [True], 0.2)
    put("variance_type", ["fixed_small", "fixed_large", "fixed_small_log"])
    put("solver_order", [1, 2, 3, 4] if name == "UniPCMultistepScheduler" else [1, 2, 3], 0.6)
    put("algorithm_type", ["dpmsolver++", "sde-dpmsolver++"] if "DPM" in name else ["deis"], 0.5)
    put("solver_type", {"UniPCMultistepScheduler": ["bh1", "bh2"], "DEISMultistepScheduler": ["logrho"]}.get(name, ["midpoint", "heun"]), 0.5)
    put("lower_order_final", [True, False])
    put("euler_at_final", [True, False])
    put("final_sigmas_type", ["zero", "sigma_min"], 0.4)
    put("predict_x0", [True, False], 0.2)
    put("lambda_min_clipped", [-5.1, -3.0], 0.1)
    put("sigma_min", [0.03, 0.1], 0.2)
    put("sigma_max", [5.0, 30.0], 0.2)
    put("original_inference_steps", [20], 0.3)
    put("timestep_scaling", [1.0, 10.0], 0.3)
    put("shift", [1.0, 3.0, 0.5], 0.5)
    put("shift_terminal", [0.02, 0.1], 0.2)
    put("stochastic_sampling", [True], 0.2)
    put("invert_sigmas", [True], 0.1)
    put("time_shift_type", ["exponential"], 0.2)
    put("skip_prk_steps", [True, False], 1.0)
    for spread in rng.sample(["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas"], 1):
        put(spread, [True], 0.4)
    if "use_flow_sigmas" in known and rng.random() < 0.15:
        fields |= {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": rng.choice([1.0, 3.0])}
    if rng.random() < 0.1 and "thresholding" in known:
        fields |= {"thresholding": True, "dynamic_thresholding_ratio": 0.8, "sample_max_value": rng.choice([1.0, 1.5])}
    return fields


class Mlp:
    """MLPClassic, as a folder and in f64."""

    def __init__(self, rng):
        sizes = [PIXELS + 1, HIDDEN, PIXELS]
        draw = np.random.default_rng(rng.randrange(2**32))
        self.layers = []
        for inputs, outputs in zip(sizes, sizes[1:]):
            weight = draw.standard_normal((outputs, inputs)) / inputs**0.5
            self.layers.append((weight.astype(np.float32), (0.2 * draw.standard_normal(outputs)).astype(np.float32)))

    def __call__(self, x, time):
        h = np.concatenate([x, [np.float32(time)]]).astype(np.float64)
        (w0, b0), (w1, b1) = self.layers
        return w1.astype(np.float64) @ np.maximum(w0 @ h + b0, 0) + b1

    def write(self, folder, total):
        tensors = {}
        for i, (weight, bias) in enumerate(self.layers):
            tensors |= {f"layers.{i}.weight": weight, f"layers.{i}.bias": bias}
        save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
        config = {
            "_class_name": "MLPClassic", "sample_size": SIDE, "in_channels": 1, "out_channels": 1, "hidden_sizes": [HIDDEN],
            "act_fn": "relu", "num_train_timesteps": total, "num_class_embeds": None,
        }
        (folder / "config.json").write_text(json.dumps(config))


def cosine_in_f64(scheduler, total):
    """In f32, sigma is off by up to 7e-4 where this schedule begins and ends."""
    bar = np.cos((np.arange(total + 1) / total + 0.008) / 1.008 * np.pi / 2) ** 2
    scheduler.alphas_cumprod = torch.from_numpy(np.cumprod(1 - np.minimum(1 - bar[1:] / bar[:-1], 0.999)))
    for name in ("initial_alpha_cumprod", "final_alpha_cumprod"):
        if hasattr(scheduler, name) and not scheduler.config.get("set_alpha_to_one", True):
            setattr(scheduler, name, scheduler.alphas_cumprod[0])


def diffusers_run(scheduler, steps, call, network, total, seed, dtype):
    if scheduler.config.get("beta_schedule") == "squaredcos_cap_v2" and not scheduler.config.get("rescale_betas_zero_snr"):
        cosine_in_f64(scheduler, total)
    stream = Stream(seed)
    module = __import__(scheduler.__module__, fromlist=["randn_tensor"])
    if hasattr(module, "randn_tensor"):
        module.randn_tensor = lambda shape, **_: stream.fill(shape).to(dtype)
    scheduler.set_timesteps(steps, **{k: v for k, v in call.items() if k == "mu"})
    spread = any(scheduler.config.get(f"use_{name}") for name in ("karras_sigmas", "exponential_sigmas", "beta_sigmas", "lu_lambdas"))
    if spread and type(scheduler).__name__ in SOLVERS and int(scheduler.timesteps[0]) == total - 2:
        # Noise levels of their own: cut off from 998.9999, which is 999 but for f32.
        scheduler.timesteps[0] += 1
    step = {k: v for k, v in call.items() if k == "eta"}
    x = stream.fill((1, 1, SIDE, SIDE)).to(dtype) * float(getattr(scheduler, "init_noise_sigma", 1.0))
    for t in scheduler.timesteps:
        read = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        output = network(read.reshape(-1).double().numpy(), float(t) / total)
        output = torch.from_numpy(output).to(dtype).reshape(x.shape)
        x = scheduler.step(output, t, x, **step).prev_sample.to(dtype)
    return x.reshape(-1).numpy()


def quell(binary, *arguments):
    done = subprocess.run([binary, *map(str, arguments)], capture_output=True, text=True)
    return done.returncode, done.stderr.strip()


def is_refusal(code, said):
    """One line after whatever was warned of, and no crash."""
    lines = [line for line in said.splitlines() if not line.startswith("warning: ")]
    return code == 1 and len(lines) == 1 and lines[0].startswith("error: ")


def relative(got, expected):
    return float(np.linalg.norm(got - expected) / max(np.linalg.norm(expected), 1e-6))


def scheduler_case(rng, binary, folder):
    """What came of one random scheduler: a word, and what there is to say."""
    written = rng.choice(list(NAMES))
    reader = rng.choice(list(NAMES)) if rng.random() < 0.4 else written
    steps, seed = rng.randint(1, 12), rng.randrange(2**32)
    fields = scheduler_fields(rng, written)
    call = {}
    if reader in ("DDIMScheduler", "TCDScheduler") and rng.random() < 0.5:
        call["eta"] = rng.choice([0.0, 0.3, 1.0])
    if fields.get("use_dynamic_shifting"):
        call["mu"] = 0.8
    own = {}
    if reader == "PNDMScheduler" and written != reader:
        own["skip_prk_steps"] = rng.random() < 0.7
    label = f"{written} {json.dumps(fields)} -> {reader}:{steps} {json.dumps(call | own)}"
    network, total = Mlp(rng), fields["num_train_timesteps"]
    try:
        first = getattr(diffusers, written)(**fields)
        # What is in a file: all fields, whether they are defaults or not.
        config = {k: v for k, v in first.config.items() if not k.startswith("_")}
        runs = []
        shaken = lambda x, time: network(x, time) * (1 + 3e-7 * np.array([1, -1, -1, 1]))
        for dtype, model in [(torch.float32, network), (torch.float64, network), (torch.float32, shaken)]:
            scheduler = getattr(diffusers, reader).from_config(config, **own)
            runs.append(diffusers_run(scheduler, steps, call, model, total, seed, dtype))
        expected = runs[0]
    except Exception as error:
        return "impossible", label, repr(error)[:80]
    if not (np.isfinite(expected).all() and np.abs(expected).max() < 1e6):
        return "impossible", label, "not finite"
    config = {k: v for k, v in config.items() if v != -math.inf}
    # Thresholds are trajectories' own where they are above 1.
    if config.get("sample_max_value", 1.0) > 1:
        own |= {k: config.pop(k) for k in THRESHOLD}
    config["_class_name"] = written
    network.write(folder, total)
    (folder / "scheduler_config.json").write_text(json.dumps(config))
    options = "".join(f",{k}={json.dumps(v)}" for k, v in (call | own).items())
    model, out = folder / "model.quell", folder / "x.npy"
    code, said = quell(binary, "convert", folder, "--weights", "f32", "-o", model, "--solver", f"{NAMES[reader]}:{steps}{options}")
    if is_refusal(code, said):
        return "refused", label, said
    if code:
        return "FOUND", label, said
    sampler = f"{NAMES[reader]}:{steps}{options}"
    code, said = quell(binary, "sample", model, "--seed", seed, "--count", 1, "--npy", out, "--sampler", sampler)
    if code:
        return "FOUND", label, said
    got = np.load(out).reshape(-1)
    error = min(relative(got, run) for run in runs[:2])
    if error <= TOLERANCE:
        return "agrees", label, f"{error:.1e}"
    apart = max(relative(a, b) for a in runs for b in runs)
    if float(scheduler.sigmas.max() if hasattr(scheduler, "sigmas") else 0) > 1e3:
        # Differences of numbers that are 1e3 times the sample's: f32 has no more digits.
        apart += 10 * TOLERANCE if error <= 10 * TOLERANCE else 0
    return ("unstable" if apart > TOLERANCE else "FOUND"), label, f"{error:.1e}"


def unet_fields(rng):
    levels = rng.randint(1, 3)
    groups = rng.choice([1, 2, 4])
    channels = [groups * rng.choice([4, 8]) for _ in range(levels)]
    side = 2 ** (levels - 1) * rng.choice([2, 4, 5])
    downs = [rng.choice(["DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"]) for _ in channels]
    ups = [rng.choice(["UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"]) for _ in channels]
    fields = {
        "sample_size": rng.choice([side, [side, side]]), "in_channels": rng.randint(1, 4), "block_out_channels": channels,
        "down_block_types": downs, "up_block_types": ups, "layers_per_block": rng.randint(1, 2), "norm_num_groups": groups,
        "attention_head_dim": rng.choice([None, 2, 4]),
    }
    fields["out_channels"] = fields["in_channels"]
    maybe(rng, fields, "mid_block_type", [None], 0.1)
    maybe(rng, fields, "add_attention", [False], 0.2)
    maybe(rng, fields, "act_fn", ["silu", "gelu", "mish", "relu", "swish"])
    maybe(rng, fields, "time_embedding_type", ["positional", "fourier"])
    maybe(rng, fields, "flip_sin_to_cos", [False, True])
    maybe(rng, fields, "freq_shift", [0, 1])
    maybe(rng, fields, "center_input_sample", [True], 0.2)
    maybe(rng, fields, "resnet_time_scale_shift", ["scale_shift"])
    maybe(rng, fields, "downsample_padding", [0, 1])
    maybe(rng, fields, "downsample_type", ["conv", "resnet"])
    maybe(rng, fields, "upsample_type", ["conv", "resnet"])
    maybe(rng, fields, "mid_block_scale_factor", [2.0, 0.7], 0.2)
    maybe(rng, fields, "norm_eps", [1e-6, 1e-3])
    maybe(rng, fields, "attn_norm_num_groups", [1, 2], 0.2)
    maybe(rng, fields, "num_class_embeds", [3], 0.3)
    if "num_class_embeds" in fields:
        maybe(rng, fields, "class_embed_type", ["timestep"], 0.3)
    return fields


def network_case(rng, binary, folder):
    fields = unet_fields(rng)
    label = json.dumps(fields)
    torch.manual_seed(rng.randrange(2**32))
    try:
        unet = diffusers.UNet2DModel(**fields).eval()
        with torch.no_grad():
            for parameter in unet.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        size = fields["sample_size"]
        size = size if isinstance(size, list) else [size, size]
        x = torch.randn(2, fields["in_channels"], *size)
        time, label_class = rng.randrange(1, 1000), rng.randrange(3)
        labels = torch.full((2,), label_class) if "num_class_embeds" in fields else None
        with torch.no_grad():
            expected = unet(x, time, class_labels=labels).sample.numpy()
    except Exception as error:
        return "impossible", label, repr(error)[:80]
    if not np.isfinite(expected).all():
        return "impossible", label, "not finite"
    unet.save_pretrained(folder)
    (folder / "scheduler_config.json").unlink(missing_ok=True)
    np.save(folder / "in.npy", x.numpy())
    model, out = folder / "model.quell", folder / "out.npy"
    code, said = quell(binary, "convert", folder, "--weights", "f32", "-o", model)
    if is_refusal(code, said):
        return "refused", label, said
    if code:
        return "FOUND", label, said
    classes = ["--class", label_class] if "num_class_embeds" in fields else []
    code, said = quell(binary, "run", model, "--sample", folder / "in.npy", "--timestep", time, "-o", out, *classes)
    if code:
        return "FOUND", label, said
    error = relative(np.load(out), expected)
    return ("agrees" if error <= TOLERANCE else "FOUND"), label, f"{error:.1e}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedulers", type=int, default=200)
    parser.add_argument("--networks", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="run the case of this number alone")
    parser.add_argument("--quell", default=ROOT / "target/debug/quell")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    diffusers.utils.logging.set_verbosity(diffusers.utils.logging.CRITICAL)
    for what, count, case in [("schedulers", args.schedulers, scheduler_case), ("networks", args.networks, network_case)]:
        counts, reasons = collections.Counter(), collections.Counter()
        for i in range(count):
            if args.only not in (None, i):
                continue
            with tempfile.TemporaryDirectory() as folder:
                verdict, label, said = case(random.Random(f"{what} {args.seed} {i}"), args.quell, Path(folder))
            counts[verdict] += 1
            if verdict == "refused":
                field = re.search("`([^`]*)`", said)
                reasons[field.group(1) if field else said.split(": ")[-1]] += 1
            if verdict == "FOUND" or args.only is not None:
                print(f"{what} {i} {verdict}: {label}\n    {said}", flush=True)
        print(f"{what}: {dict(counts)}")
        for reason, times in reasons.most_common():
            print(f"    refused {times} times: {reason}")


if __name__ == "__main__":
    main()
