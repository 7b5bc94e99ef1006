"""quell's stream of noise, written down a second time: what other scripts start runs from."""

import math

import torch


class Stream:
    """Xoshiro128++ (Blackman & Vigna) seeded by SplitMix64, and Box & Muller."""

    def __init__(self, seed):
        words = []
        for _ in range(2):
            seed = (seed + 0x9E3779B97F4A7C15) % 2**64
            x = seed
            x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
            x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
            x ^= x >> 31
            words += [x % 2**32, x >> 32]
        self.s, self.spare = words, None

    def bits(self):
        s = self.s
        rotate = lambda x, k: (x << k | x >> 32 - k) % 2**32
        result = (rotate((s[0] + s[3]) % 2**32, 7) + s[0]) % 2**32
        t = s[1] << 9 & 0xFFFFFFFF
        s[2] ^= s[0]
        s[3] ^= s[1]
        s[1] ^= s[2]
        s[0] ^= s[3]
        s[2] ^= t
        s[3] = rotate(s[3], 11)
        return result

    def normal(self):
        if self.spare is not None:
            spare, self.spare = self.spare, None
            return spare
        u = ((self.bits() >> 8) + 1) / 2**24
        angle = 2 * math.pi * (self.bits() >> 8) / 2**24
        radius = math.sqrt(-2 * math.log(u))
        self.spare = radius * math.sin(angle)
        return radius * math.cos(angle)

    def tensor(self, shape):
        values = [self.normal() for _ in range(math.prod(shape))]
        return torch.tensor(values, dtype=torch.float64).reshape(shape)
