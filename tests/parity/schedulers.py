"""Whole trajectories of diffusers' schedulers, as goldens for quell's.

    pip install diffusers torch numpy scipy
    python3 tests/parity/schedulers.py        # rewrites tests/parity/schedulers/

Every case is a scheduler_config.json, a trajectory as `quell convert --solver`
names it, and what the network reads at every call, with the end result. Noise is
injected: call i gets `noise[i]`. Two kinds of network:

- closed form, `m = w * (0.5 + t/T) + 0.6 * x / (1 + |x|)`, for all cases;
- a tiny MLPClassic with the weights in `network.json`, for those that quell's
  tests run from a `.quell` file.
"""

import json
import math
from pathlib import Path

import diffusers
import numpy as np
import torch

OUT = Path(__file__).parent / "schedulers"
N = 16
T = 1000

rng = np.random.default_rng(20)
PATTERN = rng.standard_normal(N).astype(np.float32)
INITIAL = rng.standard_normal(N).astype(np.float32)
NOISE = rng.standard_normal((64, N)).astype(np.float32)


def closed_form(x, t, total):
    """In f64, so that goldens have the scheduler's rounding alone."""
    x = x.double()
    return (torch.from_numpy(PATTERN).double() * (0.5 + t / total) + 0.6 * x / (1 + x.abs())).float()


def mlp(network):
    layers = [(torch.tensor(w).double(), torch.tensor(b).double()) for w, b in network["layers"]]

    def call(x, t, total):
        h = torch.cat([x.double(), torch.tensor([t / total]).double()])
        for i, (w, b) in enumerate(layers):
            h = w @ h + b
            if i + 1 < len(layers):
                h = h.relu()
        return h.float()

    return call


def cosine(t):
    return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2


def laplace(t):
    half = -0.5 * math.copysign(1, 0.5 - t) * math.log(1 - 2 * abs(0.5 - t) + 1e-6)
    return math.sqrt(math.exp(half) / (1 + math.exp(half)))


def in_f64(scheduler, bar, total):
    """diffusers holds 1 - beta and the cumulated product in f32. Where these schedules
    begin and end, that alone moves sigma by up to 7e-4, more than the tolerance."""
    bars = np.array([bar(i / total) for i in range(total + 1)])
    alphas = np.cumprod(1 - np.minimum(1 - bars[1:] / bars[:-1], 0.999))
    scheduler.alphas_cumprod = torch.from_numpy(alphas)
    if not scheduler.config.get("set_alpha_to_one", True):
        scheduler.initial_alpha_cumprod = scheduler.alphas_cumprod[0]


IN_F64 = {"squaredcos_cap_v2": cosine, "laplace": laplace}


def run(class_name, config, steps, call, model, initial):
    """Network inputs of every call, and the end result."""
    # As for a file that another class has written: unknown fields are kept, and some are used.
    scheduler = getattr(diffusers, class_name).from_config(config)
    total = config.get("num_train_timesteps", T)
    if config.get("beta_schedule") in IN_F64:
        in_f64(scheduler, IN_F64[config["beta_schedule"]], total)
    step_arguments = {k: v for k, v in call.items() if k == "eta"}
    scheduler.set_timesteps(steps, **{k: v for k, v in call.items() if k == "mu"})
    index = 0

    def injected(shape, **_):
        return torch.from_numpy(NOISE[index, : initial.shape[0]]).reshape(shape)

    module = __import__(scheduler.__module__, fromlist=["randn_tensor"])
    if hasattr(module, "randn_tensor"):
        module.randn_tensor = injected
    scale = float(getattr(scheduler, "init_noise_sigma", 1.0))
    x = torch.from_numpy(initial) * scale
    inputs, times = [], []
    for index, t in enumerate(scheduler.timesteps):
        read = x
        if hasattr(scheduler, "scale_model_input"):
            read = scheduler.scale_model_input(x, t)
        inputs.append(read.float().tolist())
        times.append(float(t))
        m = model(read, float(t), total)
        # Thresholding wants a batch and channels.
        out = scheduler.step(m.reshape(1, 1, -1), t, x.reshape(1, 1, -1), **step_arguments)
        x = out.prev_sample.reshape(-1).float()
    return inputs, times, x.tolist()


def compact(rows):
    return [[float(f"{v:.7g}") for v in row] for row in rows]


BASE = {"num_train_timesteps": T}
COSINE = {"beta_schedule": "squaredcos_cap_v2"}
SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
V = {"prediction_type": "v_prediction"}
X0 = {"prediction_type": "sample"}
BETAS = {"num_train_timesteps": 50, "trained_betas": [round(0.002 + 0.003 * i, 6) for i in range(50)]}
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
THRESHOLD = {"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.8}
NO_CLIP = {"clip_sample": False}
LEADING = {"timestep_spacing": "leading"}
TRAILING = {"timestep_spacing": "trailing"}
LINSPACE = {"timestep_spacing": "linspace"}
KARRAS = {"use_karras_sigmas": True}
EXPONENTIAL = {"use_exponential_sigmas": True}
BETA = {"use_beta_sigmas": True}
LU = {"use_lu_lambdas": True}
SDE = {"algorithm_type": "sde-dpmsolver++"}
RANGE = {"sigma_min": 0.05, "sigma_max": 40.0}
SIGMA_MIN = {"final_sigmas_type": "sigma_min"}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
DYNAMIC = {"use_dynamic_shifting": True}
PLMS = {"skip_prk_steps": True}
HEUN = {"solver_type": "heun"}



CASES = [
    # name, class, steps, config, options of the call
    ("ddpm", "DDPMScheduler", 10, {}, {}),
    ("ddpm", "DDPMScheduler", 8, NO_CLIP | TRAILING | V, {}),
    ("ddpm", "DDPMScheduler", 7, {"variance_type": "fixed_large"} | LINSPACE | X0, {}),
    ("ddpm", "DDPMScheduler", 6, {"variance_type": "fixed_small_log"} | COSINE, {}),
    ("ddpm", "DDPMScheduler", 5, {"variance_type": "fixed_large"} | TRAILING, {}),
    ("ddpm", "DDPMScheduler", 6, THRESHOLD | SCALED, {}),
    ("ddpm", "DDPMScheduler", 10, BETAS, {}),
    ("ddpm", "DDPMScheduler", 6, ZERO_SNR | V, {}),
    ("ddim", "DDIMScheduler", 10, {}, {}),
    ("ddim", "DDIMScheduler", 8, NO_CLIP | V | {"set_alpha_to_one": False, "steps_offset": 1}, {"eta": 0.5}),
    ("ddim", "DDIMScheduler", 6, TRAILING | X0 | COSINE, {"eta": 1.0}),
    ("ddim", "DDIMScheduler", 7, LINSPACE | SCALED | {"clip_sample_range": 2.0}, {}),
    ("ddim", "DDIMScheduler", 5, ZERO_SNR | V | NO_CLIP, {}),
    ("ddim", "DDIMScheduler", 5, ZERO_SNR | X0, {"eta": 0.3}),
    ("ddim", "DDIMScheduler", 6, THRESHOLD | V, {}),
    ("ddim", "DDIMScheduler", 5, BETAS | NO_CLIP, {}),
    ("ddim", "DDIMScheduler", 1, TRAILING, {}),
    ("ddim-inverse", "DDIMInverseScheduler", 8, NO_CLIP, {}),
    ("ddim-inverse", "DDIMInverseScheduler", 6, TRAILING | V | SCALED, {}),
    ("ddim-inverse", "DDIMInverseScheduler", 6, X0 | COSINE | {"set_alpha_to_one": False, "steps_offset": 1}, {}),
    ("euler", "EulerDiscreteScheduler", 8, {}, {}),
    ("euler", "EulerDiscreteScheduler", 7, KARRAS | SCALED, {}),
    ("euler", "EulerDiscreteScheduler", 6, LEADING | V | {"steps_offset": 1}, {}),
    # At the noisiest cosine timestep, sigma is 2e4, and diffusers' f32 loses x0 in it.
    ("euler", "EulerDiscreteScheduler", 6, LEADING | X0 | COSINE, {}),
    ("euler", "EulerDiscreteScheduler", 6, TRAILING | X0, {}),
    ("euler", "EulerDiscreteScheduler", 6, {"final_sigmas_type": "sigma_min"}, {}),
    ("euler", "EulerDiscreteScheduler", 5, KARRAS | {"sigma_min": 0.05, "sigma_max": 40.0}, {}),
    ("euler", "EulerDiscreteScheduler", 5, ZERO_SNR | V, {}),
    ("euler", "EulerDiscreteScheduler", 5, BETAS, {}),
    ("euler-ancestral", "EulerAncestralDiscreteScheduler", 8, {}, {}),
    ("euler-ancestral", "EulerAncestralDiscreteScheduler", 6, TRAILING | V | SCALED, {}),
    ("euler-ancestral", "EulerAncestralDiscreteScheduler", 6, LEADING | COSINE, {}),
    ("euler-ancestral", "EulerAncestralDiscreteScheduler", 5, ZERO_SNR | V, {}),
    ("heun", "HeunDiscreteScheduler", 6, {}, {}),
    ("heun", "HeunDiscreteScheduler", 5, KARRAS | V, {}),
    ("heun", "HeunDiscreteScheduler", 5, TRAILING | X0 | {"beta_start": 0.0001, "beta_end": 0.02}, {}),
    ("heun", "HeunDiscreteScheduler", 5, LEADING | {"clip_sample": True, "steps_offset": 1}, {}),
    ("heun", "HeunDiscreteScheduler", 1, TRAILING, {}),
    ("dpmsolver++", "DPMSolverMultistepScheduler", 8, {}, {}),
    ("dpmsolver++", "DPMSolverMultistepScheduler", 6, {"solver_order": 1}, {}),
    ("dpmsolver++", "DPMSolverMultistepScheduler", 9, {"solver_order": 3}, {}),
    ("dpmsolver++", "DPMSolverMultistepScheduler", 8, KARRAS, {}),
    ("dpmsolver++", "DPMSolverMultistepScheduler", 20, KARRAS | {"solver_order": 3} | SCALED, {}),
    ("dpmsolver++", "DPMSolverMultistepScheduler", 8, V | TRAILING | {"solver_type": "heun"}, {}),
    ("dpmsolver++", "DPMSolverMultistepScheduler", 7, X0 | LEADING | {"steps_offset": 1} | COSINE, {}),
    ("dpmsolver++", "DPMSolverMultistepScheduler", 7, {"final_sigmas_type": "sigma_min", "lower_order_final": False}, {}),
    ("dpmsolver++", "DPMSolverMultistepScheduler", 16, {"euler_at_final": True, "final_sigmas_type": "sigma_min"}, {}),
    ("dpmsolver++", "DPMSolverMultistepScheduler", 6, {"lambda_min_clipped": -3.0} | COSINE, {}),
    ("dpmsolver++", "DPMSolverMultistepScheduler", 7, {"algorithm_type": "sde-dpmsolver++"}, {}),
    ("dpmsolver++", "DPMSolverMultistepScheduler", 7, {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"} | KARRAS | V, {}),
    ("dpmsolver++", "DPMSolverMultistepScheduler", 6, {"algorithm_type": "sde-dpmsolver++", "solver_order": 1}, {}),
    ("dpmsolver++", "DPMSolverMultistepScheduler", 6, THRESHOLD, {}),
    ("dpmsolver++", "DPMSolverMultistepScheduler", 6, ZERO_SNR | V, {}),
    ("dpmsolver++", "DPMSolverMultistepScheduler", 5, BETAS, {}),
    ("unipc", "UniPCMultistepScheduler", 8, {}, {}),
    ("unipc", "UniPCMultistepScheduler", 8, {"solver_order": 3}, {}),
    ("unipc", "UniPCMultistepScheduler", 6, {"solver_order": 1} | V, {}),
    ("unipc", "UniPCMultistepScheduler", 8, {"solver_type": "bh1", "solver_order": 3, "final_sigmas_type": "sigma_min"} | SCALED, {}),
    ("unipc", "UniPCMultistepScheduler", 8, KARRAS, {}),
    ("unipc", "UniPCMultistepScheduler", 7, TRAILING | X0 | COSINE, {}),
    ("unipc", "UniPCMultistepScheduler", 7, LEADING | {"steps_offset": 1, "final_sigmas_type": "sigma_min", "lower_order_final": False}, {}),
    ("unipc", "UniPCMultistepScheduler", 8, {"disable_corrector": [0, 2]}, {}),
    ("unipc", "UniPCMultistepScheduler", 6, THRESHOLD, {}),
    ("unipc", "UniPCMultistepScheduler", 6, ZERO_SNR | V, {}),
    ("lcm", "LCMScheduler", 4, {}, {}),
    ("lcm", "LCMScheduler", 6, V | {"original_inference_steps": 20, "timestep_scaling": 0.01}, {}),
    ("lcm", "LCMScheduler", 3, X0 | {"clip_sample": True} | COSINE, {}),
    ("lcm", "LCMScheduler", 4, THRESHOLD, {}),
    ("tcd", "TCDScheduler", 4, {}, {}),
    ("tcd", "TCDScheduler", 6, V | {"original_inference_steps": 25}, {"eta": 0.8}),
    ("tcd", "TCDScheduler", 5, X0, {"eta": 0.0}),
    ("flow-euler", "FlowMatchEulerDiscreteScheduler", 6, {}, {}),
    ("flow-euler", "FlowMatchEulerDiscreteScheduler", 8, {"shift": 3.0}, {}),
    ("flow-euler", "FlowMatchEulerDiscreteScheduler", 5, {"stochastic_sampling": True}, {}),
    ("flow-euler", "FlowMatchEulerDiscreteScheduler", 5, {"shift_terminal": 0.1}, {}),
    ("flow-euler", "FlowMatchEulerDiscreteScheduler", 5, KARRAS, {}),
    ("flow-euler", "FlowMatchEulerDiscreteScheduler", 1, {}, {}),
    # Other schedules of betas.
    ("ddpm", "DDPMScheduler", 6, {"beta_schedule": "sigmoid"}, {}),
    ("ddpm", "DDPMScheduler", 6, {"beta_schedule": "laplace"} | NO_CLIP, {}),
    ("heun", "HeunDiscreteScheduler", 5, {"beta_schedule": "exp", "num_train_timesteps": 100} | LEADING | V, {}),
    # diffusers' Heun ignores this field.
    ("heun", "HeunDiscreteScheduler", 5, {"rescale_betas_zero_snr": True} | V, {}),
    # Noise levels of their own, and their ends.
    ("euler", "EulerDiscreteScheduler", 6, EXPONENTIAL, {}),
    ("euler", "EulerDiscreteScheduler", 6, BETA | V, {}),
    ("euler", "EulerDiscreteScheduler", 5, BETA | RANGE | LEADING, {}),
    ("heun", "HeunDiscreteScheduler", 5, EXPONENTIAL | V, {}),
    ("heun", "HeunDiscreteScheduler", 5, BETA, {}),
    ("dpmsolver++", "DPMSolverMultistepScheduler", 7, KARRAS | RANGE, {}),
    ("dpmsolver++", "DPMSolverMultistepScheduler", 7, KARRAS | COSINE | X0, {}),
    ("dpmsolver++", "DPMSolverMultistepScheduler", 7, LU | SCALED, {}),
    ("dpmsolver++", "DPMSolverMultistepScheduler", 7, EXPONENTIAL | RANGE | V, {}),
    ("dpmsolver++", "DPMSolverMultistepScheduler", 7, BETA | RANGE | SIGMA_MIN, {}),
    ("dpmsolver++", "DPMSolverMultistepScheduler", 8, FLOW, {}),
    ("dpmsolver++", "DPMSolverMultistepScheduler", 7, FLOW | SDE | {"solver_order": 3}, {}),
    ("dpmsolver++", "DPMSolverMultistepScheduler", 8, SDE | {"solver_order": 3}, {}),
    ("dpmsolver++", "DPMSolverMultistepScheduler", 6, {"solver_type": "bh2"}, {}),
    ("unipc", "UniPCMultistepScheduler", 7, KARRAS | RANGE | SIGMA_MIN, {}),
    ("unipc", "UniPCMultistepScheduler", 7, EXPONENTIAL | RANGE | V, {}),
    ("unipc", "UniPCMultistepScheduler", 7, BETA | RANGE | SIGMA_MIN, {}),
    ("unipc", "UniPCMultistepScheduler", 7, FLOW, {}),
    ("unipc", "UniPCMultistepScheduler", 7, FLOW | {"shift_terminal": 0.1} | SIGMA_MIN, {}),
    ("unipc", "UniPCMultistepScheduler", 6, FLOW | DYNAMIC, {"mu": 0.8}),
    ("unipc", "UniPCMultistepScheduler", 7, {"predict_x0": False} | SIGMA_MIN, {}),
    ("unipc", "UniPCMultistepScheduler", 8, {"predict_x0": False, "solver_order": 3, "solver_type": "bh1"} | SIGMA_MIN | V, {}),
    ("unipc", "UniPCMultistepScheduler", 6, {"predict_x0": False} | SIGMA_MIN | X0 | TRAILING, {}),
    ("flow-euler", "FlowMatchEulerDiscreteScheduler", 6, DYNAMIC, {"mu": 1.15}),
    ("flow-euler", "FlowMatchEulerDiscreteScheduler", 6, DYNAMIC | {"time_shift_type": "linear", "shift_terminal": 0.02}, {"mu": 1.5}),
    ("flow-euler", "FlowMatchEulerDiscreteScheduler", 6, {"invert_sigmas": True, "shift": 2.0}, {}),
    ("flow-euler", "FlowMatchEulerDiscreteScheduler", 5, EXPONENTIAL, {}),
    ("flow-euler", "FlowMatchEulerDiscreteScheduler", 5, BETA, {}),
    ("flow-heun", "FlowMatchHeunDiscreteScheduler", 5, {}, {}),
    ("flow-heun", "FlowMatchHeunDiscreteScheduler", 6, {"shift": 3.0}, {}),
    ("flow-heun", "FlowMatchHeunDiscreteScheduler", 1, {}, {}),
    ("pndm", "PNDMScheduler", 8, PLMS, {}),
    ("pndm", "PNDMScheduler", 6, PLMS | V | SCALED | {"steps_offset": 1}, {}),
    ("pndm", "PNDMScheduler", 7, PLMS | TRAILING | {"set_alpha_to_one": True}, {}),
    ("pndm", "PNDMScheduler", 2, PLMS, {}),
    ("pndm", "PNDMScheduler", 1, PLMS, {}),
    ("pndm", "PNDMScheduler", 8, {}, {}),
    ("pndm", "PNDMScheduler", 5, V | SCALED | {"steps_offset": 1, "set_alpha_to_one": True}, {}),
    ("pndm", "PNDMScheduler", 4, TRAILING, {}),
    ("unipc", "UniPCMultistepScheduler", 9, {"solver_order": 4} | SCALED, {}),
    ("unipc", "UniPCMultistepScheduler", 8, {"solver_order": 4, "predict_x0": False} | SIGMA_MIN | V, {}),
    ("lms", "LMSDiscreteScheduler", 8, {}, {}),
    ("lms", "LMSDiscreteScheduler", 7, KARRAS | V, {}),
    ("lms", "LMSDiscreteScheduler", 6, LEADING | X0 | COSINE, {}),
    ("lms", "LMSDiscreteScheduler", 6, EXPONENTIAL | RANGE | TRAILING | SCALED, {}),
    # diffusers' LMS ignores the range where the levels are those of Karras et al.
    ("lms", "LMSDiscreteScheduler", 6, KARRAS | RANGE, {}),
    ("lms", "LMSDiscreteScheduler", 2, BETA, {}),
    ("kdpm2", "KDPM2DiscreteScheduler", 6, {}, {}),
    ("kdpm2", "KDPM2DiscreteScheduler", 5, KARRAS | V, {}),
    ("kdpm2", "KDPM2DiscreteScheduler", 5, LEADING | {"steps_offset": 1}, {}),
    ("kdpm2", "KDPM2DiscreteScheduler", 5, TRAILING | EXPONENTIAL | RANGE, {}),
    ("kdpm2", "KDPM2DiscreteScheduler", 2, BETA | SCALED, {}),
    ("kdpm2-ancestral", "KDPM2AncestralDiscreteScheduler", 6, {}, {}),
    ("kdpm2-ancestral", "KDPM2AncestralDiscreteScheduler", 5, KARRAS | V, {}),
    ("kdpm2-ancestral", "KDPM2AncestralDiscreteScheduler", 5, LEADING | COSINE, {}),
    ("kdpm2", "KDPM2DiscreteScheduler", 5, COSINE | TRAILING, {}),
    ("deis", "DEISMultistepScheduler", 8, {}, {}),
    ("deis", "DEISMultistepScheduler", 8, {"solver_order": 3} | V, {}),
    ("deis", "DEISMultistepScheduler", 16, {"solver_order": 3} | SCALED | TRAILING, {}),
    ("deis", "DEISMultistepScheduler", 6, {"solver_order": 1, "lower_order_final": False} | X0 | LEADING, {}),
    ("deis", "DEISMultistepScheduler", 7, KARRAS | RANGE, {}),
    ("deis", "DEISMultistepScheduler", 7, EXPONENTIAL | RANGE | {"algorithm_type": "dpmsolver++", "solver_type": "bh2"}, {}),
    ("deis", "DEISMultistepScheduler", 7, FLOW, {}),
    ("deis", "DEISMultistepScheduler", 6, THRESHOLD, {}),
    ("sasolver", "SASolverScheduler", 8, {}, {}),
    ("sasolver", "SASolverScheduler", 7, {"predictor_order": 3, "corrector_order": 3} | V, {}),
    ("sasolver", "SASolverScheduler", 9, {"predictor_order": 1, "corrector_order": 4} | X0 | TRAILING, {}),
    ("sasolver", "SASolverScheduler", 6, {"predictor_order": 4, "corrector_order": 1} | SCALED | LEADING, {}),
    ("sasolver", "SASolverScheduler", 6, {"predictor_order": 1, "corrector_order": 1} | KARRAS, {}),
    ("sasolver", "SASolverScheduler", 7, {"algorithm_type": "noise_prediction", "lower_order_final": False}, {}),
    ("sasolver", "SASolverScheduler", 6, FLOW, {}),
    ("sasolver", "SASolverScheduler", 6, THRESHOLD | EXPONENTIAL, {}),
    ("dpmsolver-singlestep", "DPMSolverSinglestepScheduler", 8, {}, {}),
    ("dpmsolver-singlestep", "DPMSolverSinglestepScheduler", 9, {"solver_order": 3, "lower_order_final": True}, {}),
    ("dpmsolver-singlestep", "DPMSolverSinglestepScheduler", 7, {"solver_order": 3} | HEUN | V, {}),
    ("dpmsolver-singlestep", "DPMSolverSinglestepScheduler", 8, {"solver_order": 3} | X0, {}),
    ("dpmsolver-singlestep", "DPMSolverSinglestepScheduler", 6, {"solver_order": 1} | KARRAS | RANGE, {}),
    ("dpmsolver-singlestep", "DPMSolverSinglestepScheduler", 6, {"solver_order": 3} | SIGMA_MIN, {}),
    ("dpmsolver-singlestep", "DPMSolverSinglestepScheduler", 7, SIGMA_MIN | HEUN | SCALED, {}),
    ("dpmsolver-singlestep", "DPMSolverSinglestepScheduler", 7, SDE, {}),
    ("dpmsolver-singlestep", "DPMSolverSinglestepScheduler", 7, SDE | HEUN | {"solver_order": 3}, {}),
    ("dpmsolver-singlestep", "DPMSolverSinglestepScheduler", 7, SDE | {"solver_order": 3} | KARRAS, {}),
    ("dpmsolver-singlestep", "DPMSolverSinglestepScheduler", 7, FLOW | {"solver_order": 3}, {}),
    ("dpmsolver-singlestep", "DPMSolverSinglestepScheduler", 7, {"lambda_min_clipped": -3.0, "timestep_spacing": "leading"} | COSINE, {}),
    ("dpmsolver-singlestep", "DPMSolverSinglestepScheduler", 6, THRESHOLD, {}),
]

# Without noise, for files whose network is the MLP.
FILES = [
    ("ddim", "DDIMScheduler", 6, {}, {}),
    ("euler", "EulerDiscreteScheduler", 6, {}, {}),
    ("euler", "EulerDiscreteScheduler", 5, KARRAS | V, {}),
    ("heun", "HeunDiscreteScheduler", 5, KARRAS, {}),
    ("dpmsolver++", "DPMSolverMultistepScheduler", 8, KARRAS | {"solver_order": 3}, {}),
    ("unipc", "UniPCMultistepScheduler", 8, {"solver_order": 3}, {}),
    ("tcd", "TCDScheduler", 4, {}, {"eta": 0.0}),
    ("flow-euler", "FlowMatchEulerDiscreteScheduler", 6, {"shift": 3.0}, {}),
    ("pndm", "PNDMScheduler", 6, PLMS, {}),
    ("pndm", "PNDMScheduler", 5, {}, {}),
    ("lms", "LMSDiscreteScheduler", 6, KARRAS, {}),
    ("kdpm2", "KDPM2DiscreteScheduler", 5, V, {}),
    ("deis", "DEISMultistepScheduler", 7, {"solver_order": 3}, {}),
    ("dpmsolver-singlestep", "DPMSolverSinglestepScheduler", 7, {"solver_order": 3}, {}),
    ("unipc", "UniPCMultistepScheduler", 7, {"solver_order": 4}, {}),
    ("flow-heun", "FlowMatchHeunDiscreteScheduler", 5, {"shift": 3.0}, {}),
]


def saved(class_name, config):
    """All fields, as diffusers saves them; where nothing is asked for."""
    if config != BASE:
        return config
    fields = dict(getattr(diffusers, class_name)(**config).config)
    # JSON has no infinity.
    return {k: None if v == -np.inf else v for k, v in fields.items() if not k.startswith("_")}


def cases(definitions, model, initial):
    for name, class_name, steps, config, call in definitions:
        config = BASE | config
        inputs, times, end = run(class_name, config, steps, call, model, initial)
        assert np.isfinite(end).all(), (name, config)
        # In quell, thresholding is a trajectory's own.
        own = {key: config.pop(key) for key in THRESHOLD if key in config} | call
        options = "".join(f",{key}={json.dumps(value)}" for key, value in own.items())
        print(f"{name}:{steps}{options} {config}")
        yield {
            "trajectory": f"{name}:{steps}{options}",
            "class": class_name,
            "config": saved(class_name, config),
            "times": compact([times])[0],
            "inputs": compact(inputs),
            "end": compact([end])[0],
        }


def write(path, value, items):
    """One case a line."""
    lines = ",\n".join(json.dumps(item) for item in value.pop(items))
    head = json.dumps(value)[1:-1]
    comma = ", " if head else ""
    path.write_text(f'{{{head}{comma}"{items}": [\n{lines}\n]}}\n')


def network(pixels, hidden):
    sizes = [pixels + 1, hidden, pixels]
    layers = []
    for inputs, outputs in zip(sizes, sizes[1:]):
        weight = rng.standard_normal((outputs, inputs)) / inputs**0.5
        layers.append([compact(weight.astype(np.float32)), compact([0.2 * rng.standard_normal(outputs)])[0]])
    return {"sample_size": int(pixels**0.5), "hidden_sizes": [hidden], "layers": layers}


def main():
    OUT.mkdir(exist_ok=True)
    golden = {
        "diffusers": diffusers.__version__,
        "pattern": compact([PATTERN])[0],
        "initial": compact([INITIAL])[0],
        "noise": compact(NOISE[:20]),
        "cases": list(cases(CASES, closed_form, INITIAL)),
    }
    write(OUT / "closed_form.json", golden, "cases")
    net = network(4, 6)
    golden = {
        "diffusers": diffusers.__version__,
        "network": net,
        "initial": compact([INITIAL[:4]])[0],
        "cases": list(cases(FILES, mlp(net), INITIAL[:4])),
    }
    write(OUT / "network.json", golden, "cases")


main()
