"""Converters that are right, in the orders, roundings and formats that people's have.

Directed rounding is the processor's own: the C library's ``fesetround`` sets it for NumPy's
elementwise operations too. So the simulation in `repvgg_ref.oracle.weights` has a witness.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.branches import Branch, branches_of, window
from repvgg_ref.models.network import Model, fuse
from repvgg_ref.oracle.weights.arithmetic import narrow

_MODES = {"nearest": 0x0, "down": 0x400, "up": 0x800, "zero": 0xC00}  # x86's


@contextmanager
def rounding(direction: str) -> Iterator[None]:
    """The processor rounds so, in this thread."""
    library = ctypes.CDLL(None)
    assert library.fesetround(_MODES[direction]) == 0
    try:
        yield
    finally:
        library.fesetround(0)


@dataclass(frozen=True)
class Converter:
    """One way to fuse: `tap` and `shift` of a branch, the order of the sum."""

    name: str
    tap: Callable[..., Array]
    shift: Callable[..., Array]
    dtype: Any = np.float32
    root: Callable[[Array], Array] = np.sqrt
    order: Callable[[int], list[int]] = lambda n: list(range(n))
    direction: str = "nearest"
    fused: bool = False
    eps: Callable[[float], float] = lambda eps: eps

    def converted(self, model: Model, stored: str = "fp32", storing: str = "nearest") -> Model:
        """The deploy form that it writes."""
        deploy = fuse(model)
        for spec in model.arch.blocks:
            with rounding(self.direction):
                weight, bias = self._block(
                    list(branches_of(spec, model.params, model.eps).values()),
                    deploy.params[f"{spec.name}.fused.weight"].shape,
                    model.eps,
                )
            for part, array in {"weight": weight, "bias": bias}.items():
                deploy.params[f"{spec.name}.fused.{part}"] = kept(array, stored, storing)
        for name in ("linear.weight", "linear.bias"):
            deploy.params[name] = kept(deploy.params[name], stored, storing)
        for name in [n for n in deploy.params if ".se." in n]:
            deploy.params[name] = kept(deploy.params[name], stored, storing)
        return deploy

    def _block(self, branches: list[Branch], shape: tuple[int, ...], eps: float) -> Any:
        weight: Array | None = None
        bias: Array | None = None
        for number in self.order(len(branches)):
            b = branches[number]
            w = b.weight.astype(self.dtype)
            if not b.has_norm:
                part, shift = w, np.zeros(len(w), self.dtype)
                g = s = None
            else:
                g, beta, m, v = (a.astype(self.dtype) for a in b[1:5])
                s = self.root(v + self.dtype(self.eps(eps)))
                c = (slice(None), None, None, None)
                part, shift = self.tap(w, g[c], s[c]), self.shift(g, beta, m, s)
            at = (slice(None), slice(None), *window(w.shape[2:], shape[2:]))
            if weight is None or bias is None:
                weight, bias = np.zeros(shape, self.dtype), shift
                weight[at] = part
            elif self.fused and g is not None:
                exact = w.astype(np.longdouble) * (g / s)[:, None, None, None]
                weight[at] = (exact + weight[at]).astype(self.dtype)
                bias = bias + shift
            else:
                weight[at] = weight[at] + part
                bias = bias + shift
        return weight, bias


def kept(array: Array, stored: str, direction: str = "nearest") -> Array:
    """An array as a file of that format gives it back."""
    if stored == "fp64":
        return array.astype(np.float64)
    if stored == "fp32" and array.dtype == np.float32:
        return array
    return narrow(array, stored, direction).astype(np.float32)  # type: ignore[arg-type]


def _official(g: Array, beta: Array, m: Array, s: Array) -> Array:
    return beta - m * g / s


def _by_slope(g: Array, beta: Array, m: Array, s: Array) -> Array:
    return beta - m * (g / s)


def _from_bias(g: Array, beta: Array, m: Array, s: Array) -> Array:
    return (0 * m - m) * (g / s) + beta


def _rsqrt(s: Array) -> Array:
    return (1 / s.astype(np.float64)).astype(s.dtype)


FLOAT32 = (
    Converter("W (g/s), official", lambda w, g, s: w * (g / s), _official),
    Converter("W (g/s), bias by slope", lambda w, g, s: w * (g / s), _by_slope),
    Converter("(W g)/s", lambda w, g, s: (w * g) / s, _official),
    Converter("(W/s) g", lambda w, g, s: (w / s) * g, lambda g, b, m, s: b - (m / s) * g),
    Converter(
        "W (g (1/s))", lambda w, g, s: w * (g * (1 / s)), lambda g, b, m, s: b - m * (g * (1 / s))
    ),
    Converter(
        "W (g rsqrt)",
        lambda w, g, s: w * (g * _rsqrt(s)),
        lambda g, b, m, s: b - m * (g * _rsqrt(s)),
    ),
    Converter("(W g) (1/s)", lambda w, g, s: (w * g) * (1 / s), _by_slope),
    Converter("(W (1/s)) g", lambda w, g, s: (w * (1 / s)) * g, _official),
    Converter(
        "power",
        lambda w, g, s: w * (g / s),
        _official,
        root=lambda v: np.power(v, v.dtype.type(0.5)),
    ),
    Converter(
        "power 2 ulp off",
        lambda w, g, s: w * (g / s),
        _official,
        root=lambda v: np.exp(np.log(v) / 2),
    ),
    Converter(
        "backward", lambda w, g, s: w * (g / s), _from_bias, order=lambda n: list(range(n))[::-1]
    ),
    Converter(
        "last first", lambda w, g, s: (w * g) / s, _official, order=lambda n: [n - 1, *range(n - 1)]
    ),
    Converter("fused multiply-add", lambda w, g, s: w * (g / s), _by_slope, fused=True),
    Converter(
        "t in float64", lambda w, g, s: w * (g.astype(np.float64) / s).astype(np.float32), _by_slope
    ),
)
DIRECTED = tuple(
    replace(way, name=f"{way.name}, {direction}", direction=direction)
    for way in (FLOAT32[0], FLOAT32[2], FLOAT32[3], FLOAT32[4], FLOAT32[10])
    for direction in ("zero", "up", "down")
)
FLOAT64 = (
    replace(FLOAT32[0], name="float64", dtype=np.float64),
    replace(FLOAT32[3], name="float64 (W/s) g", dtype=np.float64),
    replace(
        FLOAT32[0],
        name="float64, float32 eps",
        dtype=np.float64,
        eps=lambda e: float(np.float32(e)),
    ),
    replace(FLOAT32[2], name="float64 upward", dtype=np.float64, direction="up"),
)
RIGHT = (*FLOAT32, *DIRECTED, *FLOAT64)
