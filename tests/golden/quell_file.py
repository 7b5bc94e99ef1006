"""Reads a `.quell` file, from FORMAT.md."""

import math
import struct
import zlib

import numpy as np

from quell_kinds import KINDS
from quell_math import F

ELEMENTS = [F, np.int8, np.int16, np.uint8]


class Cursor:
    """Postcard: varints, f32, options and byte strings, one behind the other."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def more(self):
        return self.at < len(self.data)

    def take(self, count):
        assert self.at + count <= len(self.data), "a record ends early"
        self.at += count
        return self.data[self.at - count : self.at]

    def byte(self):
        return self.take(1)[0]

    def i8(self):
        return struct.unpack("<b", self.take(1))[0]

    def f32(self):
        return F(struct.unpack("<f", self.take(4))[0])

    def int(self):
        value, shift = 0, 0
        while True:
            byte = self.byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7

    def option(self, read):
        return read() if self.byte() else None

    def function(self):
        return self.option(self.int)

    def bytes(self):
        return self.take(self.int())

    def text(self):
        return self.bytes().decode()

    def ints(self):
        inner = Cursor(self.bytes())
        values = []
        while inner.more():
            values.append(inner.int())
        return values

    def record(self):
        return Cursor(self.bytes())


class Tensor:
    def __init__(self, data):
        element, _, self.zero_point, *shape = struct.unpack_from("<BBh3I", data)
        self.type, self.shape = ELEMENTS[element], tuple(shape)


class Operator:
    def __init__(self, record):
        self.kind, self.version = KINDS[record.int()], record.byte()
        self.name = record.text()
        self.inputs, self.outputs = record.ints(), record.byte()
        slabs = record.ints()
        self.slabs = list(zip(slabs[::2], slabs[1::2]))
        assert self.version == 1, f"{self.name}: version is {self.version}; expected 1"
        for name, read, default in self.kind[1]:
            setattr(self, name, getattr(record, read)() if record.more() else default)


class Graph:
    def __init__(self, cursor):
        head = cursor.record()
        self.role, self.name, self.context = head.int(), head.text(), head.byte()
        self.output, count = head.int(), head.int()
        tensors = cursor.bytes()
        self.tensors = [Tensor(tensors[i : i + 32]) for i in range(0, len(tensors), 32)]
        self.operators = [Operator(cursor.record()) for _ in range(count)]


class File:
    def __init__(self, path):
        with open(path, "rb") as file:
            data = file.read()
        assert data[:8] == b"\x89QUELL\r\n", "not a .quell file"
        major, _, start, length, crc = struct.unpack_from("<HHIII", data, 8)
        assert major == 2, f"format {major}; expected 2"
        data = data[:length]
        assert zlib.crc32(data[24:], zlib.crc32(data[:20])) == crc, "the CRC-32 is wrong"
        plan_len, self.slabs_offset = struct.unpack_from("<II", data, 52)
        self.shape = struct.unpack_from("<3I", data, 64)
        graphs, tables = struct.unpack_from("<HH", data, 88)
        self.data, plan = data, Cursor(data[start : start + plan_len])
        self.read_head(plan.record())
        self.graphs = [Graph(plan) for _ in range(graphs)]
        self.tables = [Table(plan.record(), self) for _ in range(tables)]

    def read_head(self, head):
        self.model, self.classes, self.null_class = head.text(), head.int(), head.option(head.int)
        slab = head.int(), head.int()
        self.timesteps, self.prediction, self.variance = head.int(), head.int(), head.int()
        self.spacing, self.steps_offset, self.set_alpha_to_one = head.int(), head.int(), head.byte()
        self.clip = head.option(head.f32)
        self.alphas = self.slab(slab, F, self.timesteps)
        test = lambda: (head.int(), head.int(), head.option(head.int), head.int())
        self.self_test = head.option(test)

    def slab(self, slab, type, *shape):
        """An array, where the slab is exactly as long as its shape demands."""
        count = math.prod(shape)
        offset, length = slab
        assert length == count * np.dtype(type).itemsize, f"a slab has {length} bytes; expected {type} {shape}"
        return np.frombuffer(self.data, type, count, self.slabs_offset + offset).reshape(shape)


class Table:
    """A solver table."""

    def __init__(self, record, file):
        self.solver, self.options = record.text(), record.text()
        self.steps, self.calls, self.order = record.int(), record.int(), record.int()
        slab = record.int(), record.int()
        self.history, self.slots, self.noise_scale = record.int(), record.int(), record.f32()
        self.limit = record.int()
        self.bounds = [record.f32() for _ in range(self.limit)]
        self.rows = file.slab(slab, np.uint32, self.calls, 28)
