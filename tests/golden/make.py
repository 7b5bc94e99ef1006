#!/usr/bin/env python3
"""Golden samples from an implementation that shares nothing with quell.

NumPy, float64, written from the papers' formulas (Ho et al. 2020; Song et al.
2021, equation 12, eta = 0) and the checkpoints' own configurations. Writes, for
each committed checkpoint, `NAME-noise.npy` and `NAME-sample.npy`, f32 [4, 1, 28, 28].

    pip install numpy safetensors
    python3 tests/golden/make.py
"""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

HERE = Path(__file__).parent
MODELS = HERE / "../../examples/models"
STEPS = 4
COUNT = 4


def silu(x):
    return x / (1 + np.exp(-x))


def layer_norm(x, weights, name, eps):
    x = (x - x.mean()) / np.sqrt(x.var() + eps)
    return x * weights[name + ".weight"] + weights[name + ".bias"]


def linear(x, weights, name):
    return weights[name + ".weight"] @ x + weights[name + ".bias"]


def classic(x, t, _class, weights, config):
    x = np.append(x, t / config["num_train_timesteps"])
    layers = len(config["hidden_sizes"])
    for i in range(layers):
        x = np.maximum(linear(x, weights, f"layers.{i}"), 0)
    return linear(x, weights, f"layers.{layers}")


def residual(x, t, class_, weights, config):
    half = config["time_features"] // 2
    angles = t * np.exp(-np.log(10_000) * np.arange(half) / half)
    features = np.concatenate([np.sin(angles), np.cos(angles)])
    e = linear(features, weights, "time_embed")
    if config["num_class_embeds"] is not None:
        e = e + weights["class_embed.weight"][class_]
    e = silu(e)
    h = linear(x, weights, "input")
    for i in range(config["num_blocks"]):
        u = layer_norm(h, weights, f"blocks.{i}.norm", config["norm_eps"])
        u = linear(u, weights, f"blocks.{i}.fc1") + weights[f"blocks.{i}.cond.weight"] @ e
        h = h + linear(silu(u), weights, f"blocks.{i}.fc2")
    return linear(layer_norm(h, weights, "norm", config["norm_eps"]), weights, "output")


def alphas_cumprod(config):
    n = config["num_train_timesteps"]
    if config["beta_schedule"] == "linear":
        betas = np.linspace(config["beta_start"], config["beta_end"], n)
    elif config["beta_schedule"] == "squaredcos_cap_v2":
        bar = np.cos((np.arange(n + 1) / n + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - bar[1:] / bar[:-1], 0.999)
    else:
        raise SystemExit(f"beta_schedule {config['beta_schedule']}: not written down here")
    return np.cumprod(1 - betas)


def timesteps(config):
    n = config["num_train_timesteps"]
    if config["timestep_spacing"] == "trailing":
        return (np.round(np.arange(n, 0, -n / STEPS)) - 1).astype(int)
    if config["timestep_spacing"] == "leading":
        return (np.arange(STEPS) * (n // STEPS))[::-1] + config["steps_offset"]
    raise SystemExit(f"timestep_spacing {config['timestep_spacing']}: not written down here")


def ddim(x, class_, network, weights, config, scheduler):
    alphas = alphas_cumprod(scheduler)
    for t in timesteps(scheduler):
        before = t - scheduler["num_train_timesteps"] // STEPS
        a, a_prev = alphas[t], alphas[before] if before >= 0 else 1.0
        m = network(x, t, class_, weights, config)
        if scheduler["prediction_type"] == "epsilon":
            x0, eps = (x - np.sqrt(1 - a) * m) / np.sqrt(a), m
        elif scheduler["prediction_type"] == "sample":
            x0, eps = m, (x - np.sqrt(a) * m) / np.sqrt(1 - a)
        else:
            x0 = np.sqrt(a) * x - np.sqrt(1 - a) * m
            eps = np.sqrt(1 - a) * x + np.sqrt(a) * m
        if scheduler["clip_sample"]:
            x0 = np.clip(x0, -scheduler["clip_sample_range"], scheduler["clip_sample_range"])
        x = np.sqrt(a_prev) * x0 + np.sqrt(1 - a_prev) * eps
    return x


def main():
    networks = {"mlp": residual, "mlp-classic": classic}
    for name, network in networks.items():
        folder = MODELS / name
        config = json.loads((folder / "config.json").read_text())
        scheduler = json.loads((folder / "scheduler_config.json").read_text())
        weights = load_file(folder / "diffusion_pytorch_model.safetensors")
        weights = {key: value.astype(np.float64) for key, value in weights.items()}
        noise = np.random.default_rng(7).standard_normal((COUNT, 1, 28, 28)).astype(np.float32)
        # Sample i is of class i, where there are classes.
        samples = [
            ddim(z.astype(np.float64).ravel(), i, network, weights, config, scheduler)
            for i, z in enumerate(noise)
        ]
        np.save(HERE / f"{name}-noise.npy", noise)
        samples = np.array(samples, dtype=np.float32).reshape(noise.shape)
        np.save(HERE / f"{name}-sample.npy", samples)
        print(f"{name}: {STEPS} steps, mean {samples.mean():.4f}")


if __name__ == "__main__":
    main()
