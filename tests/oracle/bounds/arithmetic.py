"""Candidates in emulated arithmetic, every rounding explicit, every order of summation by hand.

All arrays are float64 that hold numbers of a narrower format. Rounding a float64 result to float32
or less equals computing in that format (double rounding is innocuous from 2 p + 2 bits on).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.branches import Branch
from repvgg_ref.oracle.programs.activation import SqueezeExcitationParams
from repvgg_ref.oracle.programs.block import BlockProgram

Rounding = Callable[[Any], Array]


def rounding(bits: int, smallest: int, *, cut: bool = False, flush: bool = False) -> Rounding:
    """Round to `bits` significant bits, to nearest or towards 0; normal from ``2**smallest`` on."""

    def rounded(x: Any) -> Array:
        exponent = np.maximum(np.frexp(x)[1] - 1, smallest) - (bits - 1)
        y = np.ldexp((np.trunc if cut else np.rint)(np.ldexp(x, -exponent)), exponent)
        return np.asarray(np.where(np.abs(y) < 2.0**smallest, 0.0, y) if flush else y)

    return rounded


FLOAT32 = rounding(24, -126)
FLUSHED = rounding(24, -126, flush=True)
FLOAT16 = rounding(11, -14)
BFLOAT16 = rounding(8, -126)
TF32_NEAREST = rounding(11, -126)
TF32_CUT = rounding(11, -126, cut=True)


@dataclass(frozen=True)
class Arithmetic:
    """Where a candidate rounds: reading inputs and weights, in registers, writing to memory."""

    precision: str
    read: Rounding
    add: Rounding
    write: Rounding


ARITHMETICS = {
    "fp32": Arithmetic("fp32", FLOAT32, FLOAT32, FLOAT32),
    "fp32-flushed": Arithmetic("fp32", FLUSHED, FLUSHED, FLUSHED),
    "tf32": Arithmetic("tf32", TF32_NEAREST, FLOAT32, FLOAT32),
    "tf32-cut": Arithmetic("tf32", TF32_CUT, FLOAT32, FLOAT32),
    "bf16": Arithmetic("bf16", BFLOAT16, FLOAT32, BFLOAT16),
    "bf16-flushed": Arithmetic("bf16", BFLOAT16, FLUSHED, BFLOAT16),
    "fp16": Arithmetic("fp16", FLOAT16, FLOAT32, FLOAT16),
    "fp16-acc16": Arithmetic("fp16-acc16", FLOAT16, FLOAT16, FLOAT16),
}


def _sequential(terms: Array, add: Rounding) -> Array:
    total = np.zeros(terms.shape[:-1])
    for k in range(terms.shape[-1]):
        total = add(total + terms[..., k])
    return total


def _pairwise(terms: Array, add: Rounding) -> Array:
    while terms.shape[-1] > 1:
        if terms.shape[-1] % 2:
            terms = np.concatenate([terms, np.zeros((*terms.shape[:-1], 1))], axis=-1)
        terms = add(terms[..., ::2] + terms[..., 1::2])
    return terms[..., 0]


def _blocked(terms: Array, add: Rounding) -> Array:
    parts = [_sequential(terms[..., k : k + 8], add) for k in range(0, terms.shape[-1], 8)]
    return _sequential(np.stack(parts, axis=-1), add)


def _sorted(terms: Array, key: Callable[[Array], Array]) -> Array:
    return np.take_along_axis(terms, np.argsort(key(terms), axis=-1), axis=-1)


def matrix_unit(terms: Array, add: Rounding) -> Array:
    """Four products at a time, aligned to the largest of them and the sum so far, and cut.

    Fasi, Higham, Mikaitis & Pranesh (PeerJ CS 7:e330): a V100 keeps no extra bits.
    """
    del add
    total = np.zeros(terms.shape[:-1])
    for k in range(0, terms.shape[-1], 4):
        addends = np.concatenate([total[..., None], terms[..., k : k + 4]], axis=-1)
        largest = np.frexp(np.abs(addends).max(axis=-1, keepdims=True))[1] - 24
        aligned = np.ldexp(np.trunc(np.ldexp(addends, -largest)), largest)
        total = rounding(24, -126, cut=True)(aligned.sum(axis=-1))
    return total


ORDERS: dict[str, Callable[[Array, Rounding], Array]] = {
    "sequential": _sequential,
    "backwards": lambda terms, add: _sequential(terms[..., ::-1], add),
    "pairwise": _pairwise,
    "blocked": _blocked,
    "largest first": lambda terms, add: _sequential(_sorted(terms, lambda t: -np.abs(t)), add),
    "smallest first": lambda terms, add: _sequential(_sorted(terms, np.abs), add),
    "positive first": lambda terms, add: _sequential(_sorted(terms, lambda t: -t), add),
}


@dataclass(frozen=True)
class Candidate:
    """How a right port computes a block: its form, its arithmetic, its order of summation."""

    form: str  # "rounded once", "fused by itself", "branches", "branches, scale and shift"
    arithmetic: Arithmetic
    order: str

    def __call__(self, program: BlockProgram, x: Array) -> Array:
        """(N, C, H, W) -> (N, O, Ho, Wo)."""
        a = self.arithmetic
        windows, size = _windows(program, a.read(x))
        if self.form == "rounded once" or not program.branches:
            weight, bias = program.fused_kernel()
            z = self._convolve(program, windows, a.read(weight))
            z = a.write(z + a.write(bias)[:, None])
        elif self.form == "fused by itself":
            z = self._fused(program, windows)
        else:
            z = self._branches(program, windows)
        return self._activate(program, z).reshape(len(x), -1, *size)

    def _total(self, terms: Array) -> Array:
        cut = self.arithmetic.precision in ("tf32", "bf16", "fp16") and self.order == "blocked"
        add = self.arithmetic.add
        return matrix_unit(terms, add) if cut else ORDERS[self.order](add(terms), add)

    def _convolve(self, program: BlockProgram, windows: Array, weight: Array) -> Array:
        """(N, P, C, 3, 3) with weights as read -> (N, O, P), written."""
        if weight.shape[2] == 1:
            windows = windows[..., 1:2, 1:2]
        out = []
        width = windows.shape[2] // program.groups
        for o, kernel in enumerate(weight):
            group = o // (len(weight) // program.groups)
            terms = windows[:, :, group * width : (group + 1) * width] * kernel  # (N, P, C/G, k, k)
            out.append(self._total(terms.reshape(*terms.shape[:2], -1)))
        return self.arithmetic.write(np.stack(out, axis=1))

    def _scale(self, branch: Branch, eps: float, keep: Rounding) -> tuple[Array, Array]:
        """``1 / sqrt(var + eps)`` and t, every step kept in a format."""
        root = keep(np.sqrt(keep(keep(branch.running_var) + keep(eps))))
        inverse = keep(1 / root)
        return inverse, keep(keep(branch.gamma) * inverse)

    def _fused(self, program: BlockProgram, windows: Array) -> Array:
        """As the official script: fold every branch, add; then the format's rounding."""
        a = self.arithmetic
        weight: Any = 0.0
        bias: Any = 0.0
        for branch in program.branches.values():
            _, t = self._scale(branch, program.eps, a.add)
            kernel = a.add(branch.weight * t[:, None, None, None])
            if kernel.shape[2] == 1:
                kernel = np.pad(kernel, ((0, 0), (0, 0), (1, 1), (1, 1)))
            weight = a.add(weight + kernel)
            bias = a.add(bias + a.add(branch.beta - a.add(branch.running_mean * t)))
        z = self._convolve(program, windows, a.read(weight))
        return a.write(z + a.write(bias)[:, None])

    def _branches(self, program: BlockProgram, windows: Array) -> Array:
        """Batch norm by single steps in memory, and the sum of branches too."""
        write = self.arithmetic.write
        total: Any = 0.0
        for branch in program.branches.values():
            inverse, t = (v[:, None] for v in self._scale(branch, program.eps, write))
            gamma, beta, mean = (
                write(v)[:, None] for v in (branch.gamma, branch.beta, branch.running_mean)
            )
            z = self._convolve(program, windows, self.arithmetic.read(branch.weight))
            if self.form == "branches":
                v = write(write(write(write(z - mean) * inverse) * gamma) + beta)
            else:
                v = write(write(z * t) + write(beta - write(mean * t)))
            total = write(total + v)
        return np.asarray(total)

    def _activate(self, program: BlockProgram, z: Array) -> Array:
        for step in program.activation.split("-"):
            if step == "relu":
                z = np.maximum(z, 0)
            elif step == "se" and program.se is not None:
                z = self._squeeze(program.se, z)
        return z

    def _squeeze(self, se: SqueezeExcitationParams, z: Array) -> Array:
        a = self.arithmetic
        mean = a.write(a.add(ORDERS[self.order](z, a.add) / z.shape[-1]))
        hidden = np.maximum(self.dense(mean, se.down_weight, se.down_bias), 0)
        logit = self.dense(hidden, se.up_weight, se.up_bias)
        gate = a.write(1 / a.write(1 + a.write(np.exp(-logit))))
        return a.write(z * gate[:, :, None])

    def dense(self, x: Array, weight: Array, bias: Array) -> Array:
        """(N, C) -> (N, O)."""
        a = self.arithmetic
        terms = a.read(x)[:, None, :] * a.read(weight)  # (N, O, C)
        return a.write(a.write(self._total(terms)) + a.write(bias))

    def head(self, x: Array, weight: Array, bias: Array) -> Array:
        """Pool and linear layer: (N, C, H, W) -> (N, classes)."""
        a = self.arithmetic
        flat = x.reshape(*x.shape[:2], -1)
        mean = a.write(a.add(ORDERS[self.order](flat, a.add) / flat.shape[-1]))
        return self.dense(mean, weight, bias)


def _windows(program: BlockProgram, x: Array) -> tuple[Array, tuple[int, int]]:
    """What every output pixel sees, (N, P, C, 3, 3), written as the definition reads."""
    d, s = program.dilation, program.stride
    padded = np.pad(x, ((0, 0), (0, 0), (d, d), (d, d)))
    size = (x.shape[2] - 1) // s + 1, (x.shape[3] - 1) // s + 1
    seen = [
        padded[:, :, i * s : i * s + 2 * d + 1 : d, j * s : j * s + 2 * d + 1 : d]
        for i in range(size[0])
        for j in range(size[1])
    ]
    return np.stack(seen, axis=1), size
