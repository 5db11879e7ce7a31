"""Ways to spoil one block of an adversary: no mend of the oracle was tuned on their first run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.programs.activation import sigmoid
from repvgg_ref.oracle.programs.block import BlockProgram
from tests.studies.oracle.strangers import Spoiled, after, before, of_bias, of_kernel

Curve = Callable[[Array], Array]
Gate = Callable[[BlockProgram, Array], Array]


def _curve(change: Curve) -> Spoiled:
    """Another function in place of ReLU; squeeze-and-excitation stays where it is."""

    def spoil(p: BlockProgram) -> BlockProgram:
        if p.se is None or p.activation.startswith("se"):
            bare = "none" if p.se is None else "se"
            return replace(p, activation=bare, output_map=change)
        made: BlockProgram = _with_gate(lambda _, y: _gate_of(p, y), change)(p)
        return made

    return spoil


def _with_gate(gate: Gate, act: Curve = lambda y: np.maximum(y, 0)) -> Spoiled:
    """Another gate: of what the block's own stands behind, (N, O, H, W), it gives (N, O, 1, 1)."""

    def spoil(p: BlockProgram) -> BlockProgram:
        def change(z: Array) -> Array:
            if p.activation.startswith("se"):
                return act(z * gate(p, z))
            y = act(z)
            return np.asarray(y * gate(p, y))

        return replace(p, se=None, activation="none", output_map=change)

    return spoil


def _gate_of(
    p: BlockProgram,
    y: Array,
    *,
    pool: Curve = lambda y: y.mean(axis=(2, 3)),
    hidden: Curve = lambda h: np.maximum(h, 0),
    last: Curve = sigmoid,
) -> Array:
    assert p.se is not None
    h = hidden(pool(y) @ p.se.down_weight.T + p.se.down_bias)
    return np.asarray(last(h @ p.se.up_weight.T + p.se.up_bias))[:, :, None, None]


def _gates(**parts: Curve) -> Spoiled:
    return _with_gate(lambda p, y: _gate_of(p, y, **parts))


def _of_gate(change: Curve) -> Spoiled:
    return _with_gate(lambda p, y: change(_gate_of(p, y)))


def _ramp(y: Array) -> Array:
    return np.linspace(0.9, 1.1, y.shape[3])


def _set(index: Any, value: Any) -> Curve:
    def change(array: Array) -> Array:
        spoilt = array.copy()
        spoilt[index] = value(array) if callable(value) else value
        return spoilt

    return change


def _powers_of_two(w: Array) -> Array:
    return np.sign(w) * 2.0 ** np.rint(np.log2(np.maximum(np.abs(w), 1e-30)))


def _softmax(logits: Array) -> Array:
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


CURVES: Mapping[str, Spoiled] = {
    "abs": _curve(np.abs),
    "sin": _curve(np.sin),
    "sin of relu": _curve(lambda z: np.sin(np.maximum(z, 0))),
    "relu rounded to tenths": _curve(lambda z: np.round(np.maximum(z, 0), 1)),
    "relu rounded to 1/64": _curve(lambda z: np.round(np.maximum(z, 0) * 64) / 64),
    "rounded": _curve(lambda z: np.rint(z)),
    "relu squared": _curve(lambda z: np.maximum(z, 0) ** 2),
    "root of relu": _curve(lambda z: np.sqrt(np.maximum(z, 0))),
    "relu of -z": _curve(lambda z: np.maximum(-z, 0)),
    "min with 0": _curve(lambda z: np.minimum(z, 0)),
    "square": _curve(lambda z: z * z),
    "mish": _curve(lambda z: z * np.tanh(np.logaddexp(0, z))),
    "softsign": _curve(lambda z: z / (1 + np.abs(z))),
    "relu above -1": _curve(lambda z: np.maximum(z, -1)),
    "log(1 + relu)": _curve(lambda z: np.log1p(np.maximum(z, 0))),
    "negated relu": _curve(lambda z: -np.maximum(z, 0)),
    "concatenated relu": _curve(lambda z: np.where(z > 0, z, -0.5 * z)),
    "sign": _curve(np.sign),
    "step": _curve(lambda z: (z > 0).astype(float)),
    "relu1": _curve(lambda z: np.clip(z, 0, 1)),
    "shrunk by 0.05": _curve(lambda z: np.maximum(z - 0.05, 0)),
}
OTHERS: Mapping[str, Spoiled] = {
    "weights squared": of_kernel(lambda w: w * np.abs(w)),
    "weights without their mean": of_kernel(lambda w: w - w.mean(axis=(1, 2, 3), keepdims=True)),
    "positive weights alone": of_kernel(lambda w: np.maximum(w, 0)),
    "weights of norm 1": of_kernel(
        lambda w: w / np.sqrt((w**2).sum(axis=(1, 2, 3), keepdims=True))
    ),
    "weights as powers of two": of_kernel(_powers_of_two),
    "corner taps are 0": of_kernel(_set(np.s_[:, :, ::2, ::2], 0)),
    "centre tap twice": of_kernel(_set(np.s_[:, :, 1, 1], lambda w: 2 * w[:, :, 1, 1])),
    "kernel turned by 90 degrees": of_kernel(lambda w: np.rot90(w, axes=(2, 3))),
    "last filter never loaded": of_kernel(_set(np.s_[-1], 0)),
    "first input channel twice": of_kernel(_set(np.s_[:, 0], lambda w: 2 * w[:, 0])),
    "weights clipped at a deviation": of_kernel(lambda w: np.clip(w, -w.std(), w.std())),
    "bias sorted": of_bias(np.sort),
    "bias is its mean": of_bias(lambda b: 0 * b + b.mean()),
    "positive biases alone": of_bias(lambda b: np.maximum(b, 0)),
    "bias squared": of_bias(lambda b: b * np.abs(b)),
    "input squared": before(lambda x: x * np.abs(x)),
    "input clipped at 1": before(lambda x: np.clip(x, -1, 1)),
    "input without its first channel": before(_set(np.s_[:, 0], 0)),
    "input of deviation 1": before(lambda x: x / x.std()),
    "images of the batch reversed": before(lambda x: x[::-1]),
    "input shifted by a pixel": before(lambda x: np.roll(x, 1, axis=3)),
    "every other row twice": before(
        lambda x: np.repeat(x[:, :, ::2], 2, axis=2)[:, :, : x.shape[2]]
    ),
    "input rounded to tenths": before(lambda x: np.round(x, 1)),
    "input negated": before(np.negative),
    "outputs along a ramp": after(lambda y: y * _ramp(y)),
    "a ramp added": after(lambda y: y + _ramp(y) - 1),
    "output rows reversed": after(lambda y: y[:, :, ::-1]),
    "checkerboard of zeros": after(
        lambda y: y * (np.add.outer(np.arange(y.shape[2]), np.arange(y.shape[3])) % 2)
    ),
    "outputs sorted along rows": after(lambda y: np.sort(y, axis=3)),
    "outputs of norm 1 at a pixel": after(
        lambda y: y / (1e-6 + np.sqrt((y * y).sum(axis=1, keepdims=True)))
    ),
    "local mean taken away": after(lambda y: y - (np.roll(y, 1, 3) + np.roll(y, -1, 3)) / 2),
    "clipped at its 90th percentile": after(lambda y: np.minimum(y, np.quantile(y, 0.9))),
    "summed along rows": after(lambda y: np.cumsum(y, axis=3) / y.shape[3]),
    "half of the channels twice": after(_set(np.s_[:, ::2], lambda y: 2 * y[:, ::2])),
    "channels shuffled in two groups": after(
        lambda y: y.reshape(len(y), 2, -1, *y.shape[2:]).swapaxes(1, 2).reshape(y.shape)
    ),
    "batch mean taken away": after(lambda y: y - y.mean(axis=0)),
    "outputs rounded to hundredths": after(lambda y: np.round(y, 2)),
    "outputs kept to 7 bits of their own": after(
        lambda y: np.ldexp(np.rint(np.ldexp(np.frexp(y)[0], 7)), np.frexp(y)[1] - 7)
    ),
    "largest of two neighbours": after(lambda y: np.maximum(y, np.roll(y, 1, axis=3))),
}
GATES: Mapping[str, Spoiled] = {
    "gate by tanh": _gates(last=np.tanh),
    "gate by softmax": _gates(last=_softmax),
    "gate by exp": _gates(last=lambda v: np.exp(np.minimum(v, 3))),
    "gate squared": _of_gate(np.square),
    "gate's root": _of_gate(np.sqrt),
    "one plus the gate": _of_gate(lambda g: 1 + g),
    "twice the gate": _of_gate(lambda g: 2 * g),
    "one less the gate": _of_gate(lambda g: 1 - g),
    "gate clipped at 0.5": _of_gate(lambda g: np.minimum(g, 0.5)),
    "gate as a switch": _of_gate(lambda g: (g > 0.5).astype(float)),
    "gates of the first image": _of_gate(lambda g: np.broadcast_to(g[:1], g.shape)),
    "gates rolled by a channel": _of_gate(lambda g: np.roll(g, 1, axis=1)),
    "gate is its mean": _of_gate(lambda g: g.mean(axis=1, keepdims=True)),
    "gate kept to 4 bits": _of_gate(lambda g: np.rint(g * 16) / 16),
    "half of the gates": _of_gate(_set(np.s_[:, ::2], 1)),
    "hidden abs": _gates(hidden=np.abs),
    "hidden leaky 0.2": _gates(hidden=lambda h: np.maximum(h, 0.2 * h)),
    "hidden silu": _gates(hidden=lambda h: h * sigmoid(h)),
    "one hidden unit lost": _gates(hidden=lambda h: np.maximum(h, 0) * (np.arange(h.shape[1]) > 0)),
    "pooled by root mean square": _gates(pool=lambda y: np.sqrt((y * y).mean(axis=(2, 3)))),
    "pooled by the median": _gates(pool=lambda y: np.median(y, axis=(2, 3))),
    "pooled over a crop": _gates(pool=lambda y: y[:, :, 1:-1, 1:-1].mean(axis=(2, 3))),
    "pooled with one less": _gates(
        pool=lambda y: y.sum(axis=(2, 3)) / max(y.shape[2] * y.shape[3] - 1, 1)
    ),
    "pooled over the batch": _gates(pool=lambda y: 0 * y[:, :, 0, 0] + y.mean(axis=(0, 2, 3))),
}
