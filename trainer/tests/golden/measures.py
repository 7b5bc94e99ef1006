#!/usr/bin/env python3
"""Prints the numbers that tests of the trainer expect: metrics by NumPy and SciPy, AdamW by PyTorch.

    pip install numpy scipy torch
    python3 trainer/tests/golden/measures.py
"""

import numpy as np
import torch
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist


def features(n, phase):
    """Rows of 64 numbers; the same formula in `evaluate/metrics.rs`."""
    i, j = np.mgrid[0:n, 0:64]
    return np.sin(0.37 * i * (j + 1) + phase) + 0.1 * phase * j / 64 + np.cos(i * i * 0.11 + j)


def frechet(a, b):
    c1, c2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    mean = ((a.mean(0) - b.mean(0)) ** 2).sum()
    return mean + np.trace(c1 + c2 - 2 * sqrtm(c1 @ c2).real)


def kernel_distance(a, b):
    scale = (b**2).sum(1).mean()

    def kernel(x, y):
        return (x @ y.T / scale + 1) ** 3

    def within(x):
        gram = kernel(x, x)
        return (gram.sum() - np.trace(gram)) / (len(x) * (len(x) - 1))

    return within(a) + within(b) - 2 * kernel(a, b).mean()


def coverage(a, of):
    radii = np.sort(cdist(of, of), axis=1)[:, 3]
    return (cdist(a, of) <= radii).any(1).mean()


def adamw():
    w = torch.tensor([1.0, -2.0, 0.5], requires_grad=True)
    optimizer = torch.optim.AdamW([w], lr=0.1, weight_decay=0.01)
    for i in range(5):
        w.grad = torch.tensor([0.3 * i - 1, 2.0, 0.01 * (i + 1)])
        torch.nn.utils.clip_grad_norm_([w], 1.0)
        optimizer.step()
    return w.tolist()


a, b = features(200, 0.0), features(150, 2.0)
print("frechet", frechet(a, b))
print("kernel", kernel_distance(a, b))
print("coverage", coverage(a, b), coverage(b, a))
print("adamw", adamw())
