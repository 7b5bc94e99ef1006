#!/usr/bin/env python3
"""A second implementation of int8 files: the bytes of a run, from FORMAT.md and what it names.

Reads a `.quell` file and computes what the runtime computes, in NumPy and without any of
quell's code. Integers are i64 here, and every layer's weights are asserted to keep the
sums within an i32. f32 operations are NumPy's, one at a time, never fused.

    pip install numpy
    python3 tests/golden/int8.py FILE                # the run of the file's self-test
    python3 tests/golden/int8.py FILE --steps 2      # another one
    python3 tests/golden/int8.py FILE --table 0      # the run of a solver table
    python3 tests/golden/int8.py FILE --call 10      # one call at timestep 10, operator by operator

Prints the digest of what it computed, and the one that the file's self-test states; exits
with 1 where they differ. With other arguments there is only the first. A file without a
self-test is called once, with noise as its input.
"""

import argparse
import math
import sys

import numpy as np

from quell_file import File
from quell_math import F, Noise, clamp


class Run:
    """One call of a graph."""

    def __init__(self, file, row, class_row, graph=0):
        self.file, self.graph = file, file.graphs[graph]
        self.row, self.class_row = row, class_row

    def zero_point(self, tensor):
        return self.graph.tensors[tensor].zero_point

    def call(self, *inputs, trace=lambda op, value: None):
        tensors = self.graph.tensors
        assert len(inputs) == 1 + self.graph.context, "graph.context is true; expected one input"
        values = [x.reshape(t.shape) for x, t in zip(inputs, tensors)]
        for op in self.graph.operators:
            y = tensors[len(values)]
            value = op.kind[0](self, op, [values[i] for i in op.inputs], y)
            if y.type != F:
                fits = np.abs(value).max() <= np.iinfo(y.type).max
                assert fits, f"{op.name}: a result does not fit {y.type}"
            value = np.ascontiguousarray(value.astype(y.type).reshape(y.shape))
            values += [value] + [None] * (op.outputs - 1)
            trace(op, value)
        return values[self.graph.output]


def half_even(a, b):
    q, r = divmod(a, b)
    return q + (2 * r > b or (2 * r == b and q % 2))


def timestep(file, steps, i):
    left, total = steps - i, file.timesteps
    if file.spacing == 0:
        return (left - 1) * (total // steps) + file.steps_offset
    if file.spacing == 1:
        return half_even(total * left, steps) - 1
    return half_even((total - 1) * (left - 1), steps - 1) if steps > 1 else 0


def ddim(file, steps, t, eta, a):
    """Coefficients of x0, epsilon, x and noise."""
    before = t - file.timesteps // steps
    a_prev = file.alphas[before] if before >= 0 else F(1) if file.set_alpha_to_one else file.alphas[0]
    variance = (F(1) - a_prev) / (F(1) - a) * (F(1) - a / a_prev)
    sigma = F(eta) * np.sqrt(variance)
    direction = np.maximum(F(1) - a_prev - sigma * sigma, F(0))
    return np.sqrt(a_prev), np.sqrt(direction), F(0), sigma


def ddpm(file, before, t, a):
    """The same; `before` is the timestep visited next, none behind the last one."""
    a_prev = F(1) if before is None else file.alphas[before]
    alpha = a / a_prev
    beta, remaining, remaining_prev = F(1) - alpha, F(1) - a, F(1) - a_prev
    assert file.variance < 2, f"schedule.variance is {file.variance}; learned variances are not written down here"
    sigma = F(0) if t == 0 else np.sqrt([remaining_prev / remaining * beta, beta][file.variance])
    return np.sqrt(a_prev) * beta / remaining, F(0), np.sqrt(alpha) * remaining_prev / remaining, sigma


def from_schedule(file, options, noise):
    """A run whose coefficients follow from the schedule."""
    steps, x = options.steps, noise.normal(math.prod(file.shape))
    for i in range(steps):
        t = timestep(file, steps, i)
        m = Run(file, t, options.class_row).call(x).ravel()[: x.size]
        a = file.alphas[t]
        signal, rest = np.sqrt(a), np.sqrt(F(1) - a)
        (a0, b0), (ae, be) = [
            ((F(1) / signal, -rest / signal), (F(0), F(1))),
            ((F(0), F(1)), (F(1) / rest, -signal / rest)),
            ((signal, -rest), (rest, signal)),
        ][file.prediction]
        x0, epsilon = a0 * x + b0 * m, ae * x + be * m
        if file.clip is not None:
            x0 = clamp(x0, -file.clip, file.clip)
        if options.ddpm:
            next_ = timestep(file, steps, i + 1) if i + 1 < steps else None
            c0, ce, cx, sigma = ddpm(file, next_, t, a)
        else:
            c0, ce, cx, sigma = ddim(file, steps, t, options.eta, a)
        z = noise.normal(x.size) if sigma != 0 else F(0)
        x = c0 * x0 + ce * epsilon + cx * x + sigma * z
    return x


def threshold(x0, ratio, largest):
    """Dynamic thresholding: s is a quantile of |x0|, between 1 and `largest`."""
    ordered = np.sort(np.abs(x0))
    position = ratio * F(x0.size - 1)
    below = int(position)
    low, high = ordered[below], ordered[min(below + 1, x0.size - 1)]
    share = position - F(below)
    s = low + (high - low) * share if share > 0 else low
    s = clamp(s, 1, largest)
    return clamp(x0, -s, s) / s


def from_table(file, table, options, noise):
    """A run that the file carries."""
    x = noise.normal(math.prod(file.shape)) * table.noise_scale
    slots = np.zeros((table.slots, x.size), F)
    for row in table.rows:
        number = row.view(F)
        m = Run(file, int(row[0]), options.class_row).call(x).ravel()[: x.size]
        x0 = number[2] * x + number[3] * m
        if table.limit == 1:
            x0 = clamp(x0, -table.bounds[0], table.bounds[0])
        if table.limit == 2:
            x0 = threshold(x0, *table.bounds)

        def mix(c):
            total = c[0] * x0 + c[1] * m + c[2] * x
            for coefficient, slot in zip(c[3:], slots):
                total = total + coefficient * slot if coefficient != 0 else total
            return total

        z = noise.normal(x.size) if number[11] != 0 else F(0)
        after = mix(number[4:11]) + number[11] * z
        saves = [(row[i], mix(number[i + 1 : i + 8])) for i in (12, 20) if row[i] != 0xFFFF_FFFF]
        for slot, value in saves:
            slots[slot] = value
        x = after
    return x


def digest(array):
    """FNV-1a, 64 bits."""
    value = 0xCBF2_9CE4_8422_2325
    for byte in array.tobytes():
        value = (value ^ byte) * 0x0000_0100_0000_01B3 % 2**64
    return f"{value:016x}"


def options_of(file, arguments):
    """What the arguments ask for; what they leave open is as in the file's self-test."""
    options = argparse.Namespace(**vars(arguments))
    seed, steps, class_, _ = file.self_test or (0, 0, None, 0)
    options.seed = seed if options.seed is None else options.seed
    options.steps = steps if options.steps is None else options.steps
    class_ = class_ if options.class_ is None else options.class_
    options.class_row = file.null_class if class_ is None or options.no_class else class_
    return options


def call(file, options):
    """One call of a graph: a line for every operator."""
    x = Noise(options.seed).normal(math.prod(file.shape))
    run = Run(file, options.call or 0, options.class_row, options.graph)

    def line(op, value):
        if options.call is not None:
            kind = op.kind[0].__name__
            print(f"{digest(value)} {kind} {op.name} {value.dtype} {'x'.join(map(str, value.shape))}")

    print(f"{digest(run.call(x, trace=line))} output")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("--steps", type=int, metavar="N", help="steps of the run")
    parser.add_argument("--seed", type=int, metavar="N", help="seed of the noise")
    parser.add_argument("--class", type=int, metavar="N", dest="class_", help="class")
    parser.add_argument("--no-class", action="store_true", help="no class, where the self-test has one")
    parser.add_argument("--eta", type=float, metavar="X", default=0.0, help="eta of DDIM (default: 0)")
    parser.add_argument("--ddpm", action="store_true", help="DDPM instead of DDIM")
    parser.add_argument("--table", type=int, metavar="I", help="solver table I instead of DDIM")
    parser.add_argument("--call", type=int, metavar="TIMESTEP", help="one call with noise, operator by operator")
    parser.add_argument("--graph", type=int, metavar="I", default=0, help="graph that --call calls (default: 0)")
    arguments = parser.parse_args()
    file = File(arguments.file)
    options = options_of(file, arguments)
    if options.call is not None or (options.table is None and not options.steps):
        return call(file, options)
    noise = Noise(options.seed)
    if options.table is not None:
        x = from_table(file, file.tables[options.table], options, noise)
    else:
        x = from_schedule(file, options, noise)
    computed = digest(x)
    print(f"{computed} computed")
    if len(sys.argv) == 2 and file.self_test:
        stated = f"{file.self_test[3]:016x}"
        print(f"{stated} stated", flush=True)
        if computed != stated:
            sys.exit(f"{arguments.file}: self_test.digest is {stated}; expected {computed}")


if __name__ == "__main__":
    try:
        main()
    except (AssertionError, OSError) as error:
        sys.exit(f"{sys.argv[1]}: {error}")
