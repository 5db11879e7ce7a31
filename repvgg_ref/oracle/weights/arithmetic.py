"""Elementary operations as a converter's machine does them in float32, rounding in some direction.

Everything is simulated bit for bit from float64, which holds a product of two float32 numbers
exactly. A quotient or a root of such numbers lies nowhere near a float32 number without being one,
and a sum is rounded to odd first, so that its second rounding errs no more than one would
(Boldo & Melquiond, "Emulation of FMA and correctly rounded sums", IEEE TC 57, 2008).
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array

Direction = Literal["nearest", "zero", "up", "down"]
DIRECTIONS: tuple[Direction, ...] = ("nearest", "zero", "up", "down")
IN_WORDS = {
    "nearest": "to nearest",
    "zero": "toward zero",
    "up": "upward",
    "down": "downward",
}

# Unit roundoffs, to nearest.
UNITS = {"fp64": 2.0**-53, "fp32": 2.0**-24, "tf32": 2.0**-11, "fp16": 2.0**-11, "bf16": 2.0**-8}
FORMAT_NAMES = {"fp64": "float64", "fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}

# The format that has more bits than float64, where a machine has one.
WIDER: Any = np.longdouble

# Below it a float32 may have been flushed to zero.
FLUSH = 2.0**-126


def least_error(number_format: str) -> float:
    """By how much a number near zero may err: float16's smallest step, or what is flushed."""
    return 2.0**-24 if number_format == "fp16" else FLUSH


class Arithmetic(NamedTuple):
    """Operations in float32 that round in one direction."""

    direction: Direction = "nearest"

    def held(self, x: Any) -> Array:
        """A number that the converter reads: rounded to nearest if it is wider."""
        return np.asarray(x).astype(np.float32, copy=False)

    def rounded(self, exact: Array) -> Array:
        """A float64 result in float32."""
        return narrow(exact, "fp32", self.direction).astype(np.float32)

    def add(self, a: Array, b: Array) -> Array:
        """``a + b``."""
        return a + b if self._is_native else self.rounded(_odd_sum(_wide(a), _wide(b)))

    def multiply(self, a: Array, b: Array) -> Array:
        """``a * b``."""
        return a * b if self._is_native else self.rounded(_wide(a) * _wide(b))

    def divide(self, a: Array, b: Array) -> Array:
        """``a / b``."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return a / b if self._is_native else self.rounded(_wide(a) / _wide(b))

    def root(self, a: Array) -> Array:
        """``sqrt(a)``."""
        return np.sqrt(a) if self._is_native else self.rounded(np.sqrt(_wide(a)))

    def multiply_add(self, a: Array, b: Array, c: Array) -> Array:
        """``a * b + c`` with one rounding."""
        return self.rounded(_odd_sum(_wide(a) * _wide(b), _wide(c)))

    @property
    def _is_native(self) -> bool:
        return self.direction == "nearest"


def narrow(exact: Array, number_format: str, direction: Direction) -> Array:
    """Numbers (float64, or `WIDER` for "fp64") rounded to a format, as float64."""
    if number_format == "fp64":
        return _to_double(exact, direction)
    exact = np.asarray(exact, np.float64)
    if direction == "nearest" and number_format != "bf16":
        with np.errstate(over="ignore", under="ignore"):
            return exact.astype(_type_of(number_format)).astype(np.float64)
    low, high = _neighbours(np.abs(exact), number_format)
    negative = exact < 0
    if direction == "nearest":
        return np.copysign(_nearest_bfloat16(np.abs(exact), low, high), exact)
    outward = (negative == (direction == "down")) & (direction != "zero")
    return np.copysign(np.where(outward, high, low), exact)


def _to_double(exact: Array, direction: Direction) -> Array:
    near = np.asarray(exact).astype(np.float64)
    size = np.abs(near)
    above, below = size > np.abs(exact), size < np.abs(exact)
    outward = ((near < 0) == (direction == "down")) & (direction != "zero")
    if direction != "nearest":
        size = np.where(above & ~outward, np.nextafter(size, 0.0), size)
        size = np.where(below & outward, np.nextafter(size, np.inf), size)
    return np.copysign(size, near)


def _neighbours(size: Array, number_format: str) -> tuple[Array, Array]:
    """The numbers of the format next to ``size >= 0``, below and above; both it if it is one."""
    narrower = _type_of(number_format)
    with np.errstate(over="ignore", under="ignore"):
        near = size.astype(narrower)
    low = np.where(near.astype(np.float64) > size, np.nextafter(near, narrower(0)), near)
    if number_format == "bf16":
        bits = low.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
        low = bits.view(np.float32)
        above = (bits + np.uint32(0x10000)).view(np.float32)
    else:
        above = np.nextafter(low.astype(narrower), narrower(np.inf))
    wide = low.astype(np.float64)
    return wide, np.where(wide == size, size, above.astype(np.float64))


def _type_of(number_format: str) -> Any:
    """NumPy's type of a format; float32 for "bf16", which NumPy has none for."""
    return np.float16 if number_format == "fp16" else np.float32


def _nearest_bfloat16(size: Array, low: Array, high: Array) -> Array:
    odd = (low.astype(np.float32).view(np.uint32) >> 16) & 1 == 1
    up = (high - size < size - low) | ((high - size == size - low) & odd)
    return np.where(up, high, low)


def stepped(x: Array, steps: Array | int) -> Array:
    """Float32 numbers so many ulps further from zero."""
    moved = (x.view(np.int32) + np.asarray(steps, np.int32)).view(np.float32)
    return np.where(x == 0, x, moved)


def _wide(x: Array) -> Array:
    return np.asarray(x, np.float64)


def _odd_sum(a: Array, b: Array) -> Array:
    """``a + b`` in float64, an inexact sum rounded to the neighbour whose last bit is set."""
    total = a + b
    of_b = total - a
    error = (a - (total - of_b)) + (b - of_b)
    even = total.view(np.int64) & 1 == 0
    toward = np.where(error > 0, np.inf, -np.inf)
    return np.where((error != 0) & even, np.nextafter(total, toward), total)
