"""Functions of f32 with the constants and the order of runtime/kernels/src/math.rs, and noise.

NumPy rounds every operation to f32, one after the other, and never fuses two.
"""

import math

import numpy as np

F = np.float32


def polynomial(x, *coefficients):
    p = F(coefficients[0])
    for coefficient in coefficients[1:]:
        p = F(coefficient) + x * p
    return p


def clamp(x, low, high):
    """NaN becomes the lower one."""
    low, high = F(low), F(high)
    x = np.where(x > low, x, low)
    return np.where(x < high, x, high)


def exp(x):
    x = clamp(x, -87, 88)
    big = F(12_582_912)
    shifted = x * F(math.log2(math.e)) + big
    n = shifted - big
    r = x - n * F(355 / 512) - n * F(-2.121_944_4e-4)
    p = polynomial(r, 1.987_6e-4, 1.388_9e-3, 8.333_334e-3, 4.166_666_4e-2, 0.166_666_67, 0.5)
    p = r + r * r * p
    scale = ((shifted.view(np.uint32) + np.uint32(127)) << np.uint32(23)).view(F)
    return scale + scale * p


def relu(x):
    return np.where(x > 0, x, F(0))


def silu(x):
    return x / (F(1) + exp(-x))


def gelu(x):
    z = np.abs(x) * F(math.sqrt(0.5))
    t = F(1) / (F(1) + F(0.327_591_1) * z)
    p = polynomial(t, 1.061_405_4, -1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6)
    tail = F(0.5) * t * p * exp(-z * z)
    return x * np.where(x > 0, F(1) - tail, tail)


def mish(x):
    e = exp(np.where(x < 20, x, F(20)))
    n = e * (e + F(2))
    return x * (n / (n + F(2)))


def tanh(x):
    a = np.abs(x)
    z = a * a
    p = polynomial(z, -5.704_988_7e-3, 2.063_909e-2, -5.373_971_5e-2, 0.133_314_42, -0.333_332_8)
    near = a + a * (z * p)
    far = F(1) - F(2) / (exp(F(2) * a) + F(1))
    y = np.where(a < F(0.6), near, far)
    return np.where(x < 0, -y, y)


FUNCTIONS = [relu, silu, gelu, mish, tanh]


def log(x):
    least = 0x3F35_04F3
    bits = x.view(np.int32) - np.int32(least)
    n = (bits >> 23).astype(F)
    m = ((bits & 0x007F_FFFF) + np.int32(least)).view(F)
    s = (m - F(1)) / (m + F(1))
    z = s * s
    p = polynomial(z, 0.111_111_11, 0.142_857_15, 0.2, 0.333_333_34)
    return n * F(math.log(2)) + F(2) * (s + s * (z * p))


def sin_cos_turn(turn):
    quadrant = (turn + (1 << 21)) >> 22
    a = (turn - (quadrant << 22)).astype(F) * F(1 / (1 << 22)) * F(math.pi / 2)
    z = a * a
    s = polynomial(z, 2.755_732e-6, -1.984_127e-4, 8.333_334e-3, -0.166_666_67)
    s = a + a * (z * s)
    c = polynomial(z, 2.480_158_7e-5, -1.388_888_9e-3, 4.166_667e-2, -0.5, 1.0)
    cases = [quadrant & 3 == k for k in range(4)]
    return np.select(cases, [s, c, -s, -c]), np.select(cases, [c, -s, -c, s])


def in_order(rows):
    """The sum of rows, one after the other, from 0."""
    total = np.zeros(rows.shape[1:], F)
    for row in rows:
        total = total + row
    return total


def sum_of_lanes(x):
    """Element i in lane i mod 8, then by halves. A lane that is short ends with +0."""
    lanes = in_order(np.pad(x, (0, -len(x) % 8)).reshape(-1, 8))
    a, b, c, d, e, f, g, h = lanes
    return ((a + e) + (c + g)) + ((b + f) + (d + h))


class Noise:
    """Stream version 1: Xoshiro128++ seeded by SplitMix64, and Box-Muller."""

    def __init__(self, seed):
        self.state, self.spare = [], np.zeros(0, F)
        for i in (1, 2):
            x = (seed + i * 0x9E37_79B9_7F4A_7C15) % 2**64
            x = (x ^ (x >> 30)) * 0xBF58_476D_1CE4_E5B9 % 2**64
            x = (x ^ (x >> 27)) * 0x94D0_49BB_1331_11EB % 2**64
            x ^= x >> 31
            self.state += [x % 2**32, x >> 32]

    def next(self):
        rotate = lambda x, by: (x << by | x >> (32 - by)) % 2**32
        a, b, c, d = self.state
        result = (rotate((a + d) % 2**32, 7) + a) % 2**32
        c, d = c ^ a, d ^ b
        self.state = [a ^ d, b ^ c, (c ^ b << 9) % 2**32, rotate(d, 11)]
        return result

    def normal(self, count):
        pairs = max(0, -(-(count - len(self.spare)) // 2))
        bits = np.array([self.next() >> 8 for _ in range(2 * pairs)], np.int64).reshape(-1, 2)
        u = (bits[:, 0] + 1).astype(F) / F(1 << 24)
        sin, cos = sin_cos_turn(bits[:, 1])
        radius = np.sqrt(F(-2) * log(u))
        fresh = np.stack([radius * cos, radius * sin], 1).ravel()
        values = np.concatenate([self.spare, fresh])
        self.spare = values[count:]
        return values[:count]
