#!/usr/bin/env python3
"""Training the few-step network: quell-train beside PyTorch, pictures a second.

Both train the same network (diffusers' `UNet2DModel` over squares of four pixels, 336,692
parameters) by flow matching in batches of 128, with AdamW, clipped gradients and an average of
the weights, on as many threads. Rounds are interleaved, so that a drift of the machine's speed
hits both alike; printed are medians. Times are CPU times divided by the threads, so that other
work on the machine counts less.

    pip install diffusers numpy torch
    cargo build --release -p quell-trainer --features avx512
    python3 tests/peers/training.py [--threads 1]
"""

import argparse
import gzip
import os
import resource
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TRAINER = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release/quell-train"
DATA = Path("/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz")
BATCH = 128
STEPS = 30
ROUNDS = 5
# Without these the allocator gives every large tensor back to the system and asks for it anew.
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
    "MALLOC_TOP_PAD_": str(1 << 28),
}


def ours(threads):
    """Seconds of CPU for one step, start-up excluded by a run of half as many."""

    def seconds(steps):
        with tempfile.TemporaryDirectory() as folder:
            command = [TRAINER, "--model", "few-step", "--plain-share", "1", "--jumps-from", "1", "--epochs", "1"]
            command += ["--parts", "1", "--valid-limit", "1", "--limit", str(steps * BATCH)]
            command += ["--output", Path(folder) / "out", "--stop-after", "1"]
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            environment = {**os.environ, **MALLOC, "RAYON_NUM_THREADS": str(threads)}
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return (seconds(2 * STEPS) - seconds(STEPS)) / STEPS / threads


class PyTorch:
    def __init__(self, threads):
        import numpy as np
        import torch
        from diffusers import UNet2DModel

        torch.manual_seed(0)
        torch.set_num_threads(threads)
        self.torch, self.threads = torch, threads
        self.model = UNet2DModel(
            sample_size=14, in_channels=4, out_channels=4, block_out_channels=(32, 48), layers_per_block=1,
            norm_num_groups=8, num_class_embeds=11, add_attention=False, mid_block_type=None,
            down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
        ).to(memory_format=torch.channels_last)
        self.parameters = list(self.model.parameters())
        self.average = [parameter.detach().clone() for parameter in self.parameters]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=2e-3, weight_decay=0.01, fused=True)
        raw = np.frombuffer(gzip.open(DATA).read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)
        self.data = torch.from_numpy(raw[: STEPS * BATCH].copy()).float() / 127.5 - 1

    def step(self, i):
        torch = self.torch
        data = self.data[i * BATCH : (i + 1) * BATCH]
        t = torch.sigmoid(torch.randn(BATCH))
        classes = torch.randint(0, 11, (BATCH,))
        noise = torch.randn_like(data)
        velocity = torch.nn.functional.pixel_unshuffle(noise - data, 2)
        x = torch.nn.functional.pixel_unshuffle(data + t[:, None, None, None] * (noise - data), 2)
        x = x.contiguous(memory_format=torch.channels_last)
        answer = self.model(x, t * 1000, classes).sample
        loss = (answer - velocity).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.parameters, 1e-3)

    def __call__(self):
        began = time.process_time()
        for i in range(STEPS):
            self.step(i)
        return (time.process_time() - began) / STEPS / self.threads


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    threads = parser.parse_args().threads
    peer = PyTorch(threads)
    peer()
    rounds = [(ours(threads), peer()) for _ in range(ROUNDS)]
    for name, times in zip(("quell-train", "PyTorch"), zip(*rounds)):
        median = statistics.median(times)
        spread = max(times) / min(times) - 1
        print(f"{name:12} {BATCH / median:6.0f} pictures/s  ({1000 * median:.0f} ms a step, spread {100 * spread:.0f} %)")


if __name__ == "__main__":
    main()
