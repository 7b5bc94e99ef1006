#!/usr/bin/env python3
"""Makes the golden of the network that measures: what PyTorch says of it.

    pip install torch safetensors numpy
    python3 trainer/tests/evaluator.py

`tests/golden/evaluator.safetensors` gets two pictures, and their features and logits by the
formula of `src/evaluate/network.rs` with the committed weights.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/parity"))
from trainer import WEIGHTS, noise  # noqa: E402

weights = load_file(ROOT / "trainer/evaluator" / WEIGHTS)
x = torch.from_numpy(noise("input", 2 * 28 * 28)).float().reshape(2, 1, 28, 28)
h = x
for i, stride in enumerate([1, 2, 1, 2, 1]):
    parts = [weights[f"convs.{i}.{part}"] for part in ("weight", "bias")]
    h = F.relu(F.conv2d(h, *parts, stride=stride, padding=1))
flat = h.permute(0, 2, 3, 1).flatten(1)
features = F.relu(F.linear(flat, weights["feature.weight"], weights["feature.bias"]))
logits = F.linear(features, weights["output.weight"], weights["output.bias"])
golden = {"input": x, "features": features, "logits": logits}
save_file(golden, Path(__file__).parent / "golden/evaluator.safetensors")
