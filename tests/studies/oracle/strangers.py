"""Bugs that are not in the library: ways to spoil one layer that nobody has written down."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.fusion import FusedConv
from repvgg_ref.oracle.programs.block import BlockProgram
from repvgg_ref.oracle.programs.head import HeadProgram

Spoiled = Callable[[Any], Any]


def after(change: Callable[[Array], Array]) -> Spoiled:
    return lambda program: replace(program, output_map=change)


def of_kernel(change: Callable[[Array], Array]) -> Spoiled:
    return lambda p: p.with_kernel(lambda k: FusedConv(change(k.weight), k.bias))


def of_bias(change: Callable[[Array], Array]) -> Spoiled:
    return lambda p: p.with_kernel(lambda k: FusedConv(k.weight, change(k.bias)))


def before(change: Callable[[Array], Array]) -> Spoiled:
    return lambda program: program.with_input(change)


def _activated(change: Callable[[Array], Array]) -> Spoiled:
    """Another activation, of what is in front of it (SE as it was)."""

    def spoil(p: BlockProgram) -> BlockProgram:
        bare = "se" if p.activation == "se-relu" else "none"
        return replace(p, activation=bare, output_map=change)

    return spoil


def _at(index: Any, value: Callable[[Array], Any]) -> Callable[[Array], Array]:
    def change(array: Array) -> Array:
        spoilt = array.copy()
        spoilt[index] = value(array)
        return spoilt

    return change


def _noise(size: float) -> Callable[[Array], Array]:
    return lambda a: a * (1 + size * np.random.default_rng(5).normal(size=a.shape))


def _bits(bits: int) -> Callable[[Array], Array]:
    def rounded(a: Array) -> Array:
        step = float(np.abs(a).max()) / 2 ** (bits - 1) or 1.0
        return np.asarray(np.rint(a / step) * step)

    return rounded


def _pruned(a: Array) -> Array:
    return np.where(np.abs(a) < np.quantile(np.abs(a), 0.5), 0, a)


def _masked(a: Array) -> Array:
    return a * (np.random.default_rng(6).random(a.shape[1:]) > 0.1) / 0.9


def _blurred(a: Array) -> Array:
    return (a + np.roll(a, 1, axis=3)) / 2


def _blocks_only(w: Array) -> Array:
    """As if there were two groups: the kernel's off-diagonal blocks are zero."""
    o, i = w.shape[0] // 2, w.shape[1] // 2
    spoilt = w.copy()
    spoilt[:o, i:], spoilt[o:, :i] = 0, 0
    return spoilt


BLOCK: Mapping[str, Spoiled] = {
    "output times 1.01": after(lambda y: 1.01 * y),
    "output times 1.0001": after(lambda y: 1.0001 * y),
    "output plus 0.01": after(lambda y: y + 0.01),
    "one channel is 0": after(_at(np.s_[:, 1], lambda y: 0)),
    "one channel twice": after(_at(np.s_[:, 1], lambda y: 2 * y[:, 1])),
    "one channel times 1.001": after(_at(np.s_[:, 1], lambda y: 1.001 * y[:, 1])),
    "two channels exchanged": after(_at(np.s_[:, [0, 1]], lambda y: y[:, [1, 0]])),
    "last column is 0": after(_at(np.s_[..., -1], lambda y: 0)),
    "last row repeated": after(_at(np.s_[:, :, -1], lambda y: y[:, :, -2])),
    "second image is the first": after(_at(np.s_[1:2], lambda y: y[:1])),
    "first channels reversed": after(_at(np.s_[:, :3], lambda y: y[:, 2::-1])),
    "shifted by a pixel": after(lambda y: np.roll(y, 1, axis=3)),
    "blurred": after(_blurred),
    "10 % of outputs dropped": after(_masked),
    "outputs noisy, 1e-3": after(_noise(1e-3)),
    "outputs kept to 6 bits": after(_bits(6)),
    "clipped at 3": _activated(lambda y: np.clip(y, 0, 3)),
    "thresholded at 0.1": _activated(lambda y: np.where(y > 0.1, y, 0)),
    "leaky 0.2": _activated(lambda y: np.maximum(y, 0.2 * y)),
    "elu": _activated(lambda y: np.where(y > 0, y, np.expm1(np.minimum(y, 0)))),
    "softplus": _activated(lambda y: np.logaddexp(0, y)),
    "tanh": _activated(np.tanh),
    "absolute value": _activated(np.abs),
    "one tap times 1.5": of_kernel(_at(np.s_[1, 0, 0, 0], lambda w: 1.5 * w[1, 0, 0, 0])),
    "one kernel is 0": of_kernel(_at(np.s_[1], lambda w: 0)),
    "weights noisy, 1e-2": of_kernel(_noise(1e-2)),
    "weights noisy, 1e-4": of_kernel(_noise(1e-4)),
    "weights kept to 4 bits": of_kernel(_bits(4)),
    "half of the weights pruned": of_kernel(_pruned),
    "two groups": of_kernel(_blocks_only),
    "kernel rolled by a row": of_kernel(lambda w: np.roll(w, 1, axis=2)),
    "input channels of the kernel rolled": of_kernel(lambda w: np.roll(w, 1, axis=1)),
    "output channels of the kernel rolled": of_kernel(lambda w: np.roll(w, 1, axis=0)),
    "weights times 0.995": of_kernel(lambda w: 0.995 * w),
    "bias times 1.1": of_bias(lambda b: 1.1 * b),
    "bias rolled": of_bias(lambda b: np.roll(b, 1)),
    "bias plus 0.1": of_bias(lambda b: b + 0.1),
    "input turned by 180 degrees": before(lambda x: x[:, :, ::-1, ::-1]),
    "input channels rolled": before(lambda x: np.roll(x, 1, axis=1)),
    "input wraps around": before(lambda x: np.roll(x, 1, axis=2)),
    "input centred": before(lambda x: x - x.mean(axis=(1, 2, 3), keepdims=True)),
}


def _logits(change: Callable[[Array], Array]) -> Spoiled:
    return lambda head: replace(head, output_map=change)


def _weight(change: Callable[[Array], Array]) -> Spoiled:
    def spoil(head: HeadProgram) -> HeadProgram:
        return replace(head, weight=change(head.weight))

    return spoil


HEAD: Mapping[str, Spoiled] = {
    "logits times 0.9": _logits(lambda y: 0.9 * y),
    "logits negated": _logits(lambda y: -y),
    "logits rounded to 3 decimals": _logits(lambda y: np.round(y, 3)),
    "logits clipped": _logits(lambda y: np.clip(y, -0.5, 0.5)),
    "two classes exchanged": _logits(_at(np.s_[:, [0, 1]], lambda y: y[:, [1, 0]])),
    "logits centred": _logits(lambda y: y - y.mean(axis=1, keepdims=True)),
    "head weight noisy": _weight(_noise(1e-3)),
    "head bias times 1.1": lambda head: replace(head, bias=1.1 * head.bias),
    "head features normalised": lambda head: replace(
        head, input_map=lambda x: x / (1e-3 + np.linalg.norm(x, axis=1, keepdims=True))
    ),
}
