"""What every kind of operator computes, from FORMAT.md.

A function gets the run, the operator, its inputs as arrays, and the tensor that it
defines. It returns the elements; the run gives them their type and shape.
"""

import math

import numpy as np

from quell_math import FUNCTIONS, F, clamp, exp, in_order, sum_of_lanes

WEIGHTS = [F, np.float16, np.int8]
INT8 = 2
I32_MAX = 2**31 - 1


def padded(count, to):
    return -(-count // to) * to


def view(run, op, x, y):
    return np.concatenate([part.ravel() for part in x])


def embed(run, op, x, y):
    row = run.row if op.index == 0 else run.class_row
    table = run.file.slab(op.slabs[0], WEIGHTS[op.weights], op.slabs[0][1] // np.dtype(WEIGHTS[op.weights]).itemsize)
    row = table.reshape(-1, math.prod(y.shape))[row].astype(F).reshape(y.shape)
    return x[0] + row if x else row


def quantize(run, op, x, y):
    v = x[0] * run.file.slab(op.slabs[0], F, y.shape[2])
    if y.type == np.int16:
        return np.rint(clamp(v, -32767, 32767))
    return np.clip(np.rint(clamp(v, -300, 300)).astype(np.int64) + y.zero_point, -127, 127)


def row_blocks(run, op, outputs, inputs):
    """Int8 weights [outputs, inputs], and the slabs of bias and multipliers or scales."""
    o, i = padded(outputs, 8), padded(inputs, 8)
    data = run.file.slab(op.slabs[0], np.uint8, o // 8, i // 8, 8, 8)
    data = data.transpose(0, 2, 1, 3).reshape(o, i)
    w = data.view(np.int8).astype(np.int64)
    w[:, ::2] = data[:, ::2].astype(np.int64) - 128
    assert not w[outputs:].any() and not w[:, inputs:].any(), f"{op.name}: padding is not 0"
    return w[:outputs, :inputs]


def integer_product(run, op, x, w, y, residual, largest=127):
    """Windows [..., inputs], of at most `largest`, by weights [outputs, inputs]."""
    outputs = len(w)
    bias = run.file.slab(op.slabs[1], np.int32, padded(outputs, 8))[:outputs].astype(np.int64)
    bound = (np.abs(bias) + largest * np.abs(w).sum(1)) << op.shift
    assert bound.max() <= I32_MAX, f"{op.name}: sums leave an i32"
    acc = x.astype(np.int64) @ w.T + bias
    if y.type == np.int8:
        m = run.file.slab(op.slabs[2], np.int32, padded(outputs, 8))[:outputs].astype(np.int64)
        acc = y.zero_point + (((acc << op.shift) * m + 2**31) >> 32)
        return np.clip(acc, op.min, 127)
    scale = run.file.slab(op.slabs[2], F, padded(outputs, 8))[:outputs]
    value = (acc.astype(F) * scale).reshape(y.shape)
    return value if residual is None else value + residual.reshape(y.shape)


def float_product(run, op, x, w, y, residual):
    """The same in f32, one input after the other from the bias on, without fusing."""
    outputs = len(w)
    total = run.file.slab(op.slabs[1], F, padded(outputs, 16))[:outputs]
    for k in range(w.shape[1]):
        total = total + x[..., k, None] * w[:, k]
    total = total.reshape(y.shape)
    return total if residual is None else total + residual.reshape(y.shape)


def panels(run, op, outputs, inputs):
    data = run.file.slab(op.slabs[0], WEIGHTS[op.weights], padded(outputs, 16) // 16, inputs, 16)
    return data.transpose(0, 2, 1).reshape(-1, inputs)[:outputs].astype(F)


def linear(run, op, x, y):
    residual = x[1] if len(x) > 1 else None
    inputs, outputs = x[0].size, math.prod(y.shape)
    load, product = (row_blocks, integer_product) if op.weights == INT8 else (panels, float_product)
    return product(run, op, x[0].ravel(), load(run, op, outputs, inputs), y, residual)


def windows(run, op, x, y, kernel, pads):
    """Windows of `kernel` rows and columns, [h, w, rows * columns * channels]."""
    (h, w, _), (rows, columns) = y.shape, kernel
    zero_point = run.zero_point(op.inputs[0])  # 0 for floats
    pads = [(pad, op.stride * n + 3) for pad, n in zip(pads, (h, w))] + [(0, 0)]
    x = np.pad(x, pads, constant_values=zero_point)
    span = lambda start, n: slice(start, start + op.stride * (n - 1) + 1, op.stride)
    taps = [x[span(i, h), span(j, w)] for i in range(rows) for j in range(columns)]
    return np.stack(taps, 2).reshape(h, w, -1)


def window_blocks(run, op, outputs, kernel, channels):
    """Int8 weights of a conv2d, [outputs, taps * channels]."""
    groups = padded(channels, 8) // 8
    if channels < 8:
        return row_blocks(run, op, outputs, kernel * kernel * channels)
    i, j, k = np.ogrid[:kernel, :kernel, :channels]
    place = ((i * groups + k // 8) * kernel + j) * 8 + k % 8
    weights = row_blocks(run, op, outputs, kernel * kernel * groups * 8)
    assert np.count_nonzero(weights) == np.count_nonzero(weights[:, place.ravel()]), f"{op.name}: padding is not 0"
    return weights[:, place.ravel()]


def conv2d(run, op, x, y):
    patches = windows(run, op, x[0], y, (op.kernel, op.kernel), (op.pad_top, op.pad_left))
    residual = x[1] if len(x) > 1 else None
    if op.weights != INT8:
        return float_product(run, op, patches, panels(run, op, y.shape[2], patches.shape[2]), y, residual)
    weights = window_blocks(run, op, y.shape[2], op.kernel, x[0].shape[2])
    return integer_product(run, op, patches, weights, y, residual)


def conv1d(run, op, x, y):
    patches = windows(run, op, x[0], y, (1, op.kernel), (0, op.padding))
    load, product = (row_blocks, integer_product) if op.weights == INT8 else (panels, float_product)
    weights = load(run, op, y.shape[2], patches.shape[2])
    return product(run, op, patches, weights, y, x[1] if len(x) > 1 else None)


def conv2d_i16(run, op, x, y):
    patches = windows(run, op, x[0], y, (op.kernel, op.kernel), (op.pad_top, op.pad_left))
    weights = run.file.slab(op.slabs[0], np.int16, patches.shape[2], padded(y.shape[2], 8))
    assert not weights[:, y.shape[2] :].any(), f"{op.name}: padding is not 0"
    weights = weights[:, : y.shape[2]].T.astype(np.int64)
    return integer_product(run, op, patches, weights, y, None, largest=2**15)


def layer_norm(run, op, x, y):
    x, n = x[0].ravel(), F(x[0].size)
    mean = sum_of_lanes(x) / n
    variance = sum_of_lanes((x - mean) * (x - mean)) / n
    return (x - mean) * (F(1) / np.sqrt(variance + op.epsilon))


def activation(run, op, x, y):
    return FUNCTIONS[op.function](x[0])


def scale(run, op, x, y):
    factor = x[1].ravel()[0] if op.stored else op.factor
    value = x[0].reshape(y.shape) * factor + op.offset
    residual = x[1 + op.stored :]
    return residual[0].reshape(y.shape) + value if residual else value


def add(run, op, x, y):
    return x[0] + x[1].reshape(y.shape)


def broadcast(run, op, x, y):
    return np.broadcast_to(x[0], y.shape) + (x[1] if len(x) > 1 else F(0))


def upsample(run, op, x, y):
    return x[0].repeat(2, 0).repeat(2, 1)


def zero_insertion(run, op, x, y):
    value = np.full(y.shape, y.zero_point)
    value[::2, ::2] = x[0]
    return value


def average_pool(run, op, x, y):
    h, w, _ = y.shape
    a, b, c, d = (x[0][i : 2 * h : 2, j : 2 * w : 2] for i in (0, 1) for j in (0, 1))
    if y.type == F:
        return ((a + b) + (c + d)) * F(0.25)
    return (a.astype(np.int64) + b + c + d + 2) >> 2


def global_average_pool(run, op, x, y):
    x = x[0].reshape(-1, x[0].shape[2])
    return in_order(x) * (F(1) / F(len(x)))


def depth_to_space(run, op, x, y):
    h, w, c = y.shape
    return x[0].reshape(2, 2, h // 2, w // 2, c).transpose(2, 0, 3, 1, 4)


def transpose(run, op, x, y):
    return x[0].transpose(2, 0, 1) if op.to_planar else x[0].transpose(1, 2, 0)


def dequantize(run, op, x, y):
    value = x[0].astype(np.int64) - run.zero_point(op.inputs[0])
    return value.astype(F) * run.file.slab(op.slabs[0], F, y.shape[2])


def step_function(q, factor, offset, y, curve):
    """The integers of a norm or a function: straight, or along 65 points."""
    u = offset + ((q.astype(np.int64) * factor + 64) >> 7)
    if curve is None:
        return np.clip((u + 8) >> 4, -127, 127)
    points, multipliers = (array.astype(np.int64) for array in curve)
    u = np.clip(u, 0, 4095)
    i, f = u >> 6, u & 63
    v = points[i] + (((points[i + 1] - points[i]) * f + 32) >> 6)
    return np.clip(y.zero_point + ((v * multipliers + 2**14) >> 15), -127, 127)


def curve(run, slabs, channels):
    return run.file.slab(slabs[0], np.int16, 65), run.file.slab(slabs[1], np.int16, channels)


def activation_i8(run, op, x, y):
    factor, offset = (run.file.slab(slab, np.int16, y.shape[2]).astype(np.int64) for slab in op.slabs[:2])
    return step_function(x[0], factor, offset, y, curve(run, op.slabs[2:], y.shape[2]))


def group_norm_i8(run, op, x, y):
    channels = y.shape[2]
    weight, bias, s, o = (run.file.slab(slab, F, channels) for slab in op.slabs[:4])
    image = np.concatenate(x[: 1 + op.second], 2).astype(np.int64)
    condition = x[-1].reshape(-1, channels) if op.condition else None
    assert op.condition < 3, f"{op.name}: condition is {op.condition}; expected none, add or scale_shift"
    n = image.shape[0] * image.shape[1]
    total, squares = image.sum((0, 1)), (image * image).sum((0, 1))
    v = o + condition[0] if op.condition == 1 else o
    mean = total.astype(F) / F(n) * s + v
    spread = (n * squares - total * total).astype(F) / F(n) / F(n) * (s * s)
    groups, size = op.groups, F(channels // op.groups)
    of_groups = lambda values: np.repeat(in_order(values.reshape(groups, -1).T) / size, channels // groups)
    middle = of_groups(mean)
    variance = of_groups(spread + (mean - middle) * (mean - middle))
    a = F(1) / np.sqrt(variance + op.epsilon) * weight
    b = bias - (middle - v) * a
    if op.condition == 2:
        b = b * condition[0] + condition[1]
        a = a * condition[0]
    a = a * s * op.steps
    b = (b - op.low) * op.steps + F(0 if op.curve else 16 * y.zero_point)
    factor, offset = (np.rint(clamp(value, -32767, 32767)).astype(np.int64) for value in (a * F(128), b))
    return step_function(image, factor, offset, y, curve(run, op.slabs[4:], channels) if op.curve else None)


def attention_i8(run, op, x, y):
    heads, shift = op.heads, op.shift
    q, k, v = (t.astype(np.int64).reshape(-1, heads, t.shape[2] // heads).transpose(1, 0, 2) for t in x)
    multipliers = run.file.slab(op.slabs[0], np.int32, heads).astype(np.int64)
    scores = q @ k.transpose(0, 2, 1)
    t = ((scores.max(2, keepdims=True) - scores << shift) * multipliers[:, None, None]) >> 32
    n, f = t >> 10, 32 * (t & 1023)
    times = lambda r: (r * f + 2**14) >> 15
    p = 16384 + times(-11328 + times(3777 + times(-641)))
    n = n + max(0, math.ceil(math.log2(k.shape[1] / 1024)))
    e = np.where(n < 15, p >> np.minimum(n, 15), 0)
    length, value = e.sum(2, keepdims=True), e @ v
    z = 32 - np.floor(np.log2(length)).astype(np.int64) - 1
    reciprocal = (2**32 - 1) // ((length << z) >> 16)
    value = np.where(z < 8, value >> 1, value << np.maximum(z - 8, 0))
    value = (((value * reciprocal) >> 32) + 128) >> 8
    return np.clip(value, -127, 127).transpose(1, 0, 2)


def add_i8(run, op, x, y):
    channels = y.shape[2]
    f = run.file.slab(op.slabs[0], np.int16, channels, 2).astype(np.int64)
    offsets = run.file.slab(op.slabs[1], np.int32, channels).astype(np.int64)
    return np.clip((x[0].astype(np.int64) * f[:, 0] + x[1] * f[:, 1] + offsets) >> 14, -127, 127)


def channel_sums(x):
    """The sum of each channel of [pixels, channels]: pixel p goes to sum p mod 4."""
    a, b, c, d = (in_order(x[i::4]) for i in range(4))
    return (a + c) + (b + d)


def group_norm(run, op, x, y):
    channels = y.shape[2]
    weight, bias = (run.file.slab(slab, F, channels) for slab in op.slabs[:2])
    image = np.concatenate(x[: 1 + op.second], 2).reshape(-1, channels)
    condition = x[-1].reshape(-1, channels) if op.condition else None
    pixels, size = len(image), channels // op.groups
    of_groups = lambda values: np.repeat(in_order(values.reshape(-1, size).T) / F(size * pixels), size)
    added = condition[0] if op.condition == 1 else np.zeros(channels, F)
    centre = added - of_groups(channel_sums(image) + added * F(pixels))
    variance = of_groups(channel_sums((image + centre) * (image + centre)))
    a = F(1) / np.sqrt(variance + op.epsilon) * weight
    b = centre * a + bias
    if op.condition == 2:
        a, b = a * condition[0], b * condition[0] + condition[1]
    value = image * a + b
    value = value if op.function is None else FUNCTIONS[op.function](value)
    if op.condition == 4:
        return value * condition[0] + condition[1]
    return value + condition[0] if op.condition == 3 else value


def attention(run, op, x, y):
    q, k, v = (t.reshape(-1, op.heads, t.shape[2] // op.heads).transpose(2, 1, 0) for t in x)
    scores = in_order(q[:, :, :, None] * k[:, :, None, :]) * (F(1) / np.sqrt(F(len(q))))
    weights = exp(scores - scores.max(2, keepdims=True)).transpose(2, 0, 1)
    share = F(1) / in_order(weights)
    value = in_order(weights[:, None] * v.transpose(2, 0, 1)[..., None]) * share
    return value.transpose(2, 1, 0)


def missing(name):
    def refuse(run, op, x, y):
        raise SystemExit(f"{op.name}: {name} is not written down here")

    return refuse


EPSILON = ("epsilon", "f32", F(1e-5))
WEIGHT = [("weights", "int", 0)]
KERNEL = [("kernel", "byte", 3), ("stride", "byte", 1)]
CONV2D = KERNEL + [("pad_top", "byte", 1), ("pad_left", "byte", 1)]
INTEGER = [("shift", "byte", 0), ("min", "i8", -127)]
NORM = [("groups", "int", 1), EPSILON, ("second", "byte", 0), ("condition", "int", 0)]
FUNCTION = [("function", "int", 1)]

# By number: what computes the kind, and its attributes with their defaults.
KINDS = [
    (view, []),
    (embed, [("index", "int", None), ("weights", "int", 0)]),
    (quantize, []),
    (linear, WEIGHT + INTEGER),
    (layer_norm, [EPSILON]),
    (activation, FUNCTION),
    (conv2d, WEIGHT + CONV2D + INTEGER),
    (conv1d, WEIGHT + KERNEL + [("padding", "byte", 1)] + INTEGER),
    (group_norm, NORM + [("function", "function", None)]),
    (attention, [("heads", "int", 1)]),
    (upsample, []),
    (zero_insertion, []),
    (average_pool, []),
    (depth_to_space, []),
    (transpose, [("to_planar", "byte", 0)]),
    (scale, [("factor", "f32", F(1)), ("offset", "f32", F(0)), ("stored", "byte", 0)]),
    (add, []),
    (global_average_pool, []),
    (broadcast, []),
    (missing("activation_backward"), FUNCTION),
    (missing("class_score"), []),
    (dequantize, []),
    (group_norm_i8, NORM + [("curve", "byte", 0), ("low", "f32", F(0)), ("steps", "f32", F(16))]),
    (attention_i8, [("heads", "int", 1), ("shift", "byte", 0)]),
    (add_i8, []),
    (activation_i8, []),
    (conv2d_i16, CONV2D + INTEGER),
]
