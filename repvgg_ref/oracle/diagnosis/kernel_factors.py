"""Kernels of a weight file that one factor or a coarser rounding explains, nothing else wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.diagnosis.ranking import Observation
from repvgg_ref.oracle.estimates.randomness import bits_kept
from repvgg_ref.oracle.report import Finding
from repvgg_ref.oracle.weights.arithmetic import UNITS
from repvgg_ref.oracle.weights.conversion import Odd

_SHOWN = 6
_LEFT = 4.0  # a part so large of the bound is left, at most: right conversions err no more
_ONE = 16.0  # such a part of the bound is about one rounding
_EXPLAINS = 0.8  # of the squares of the errors, or it is not the factor that is wrong
_FEW = 3  # biases: fewer have a factor in common by chance
_ADVICE = {
    "outputs-scaled": "look for a factor applied to the whole layer, or to its batch norms",
    "weights-scaled": "compare gamma, running_var and eps with what the kernel was scaled by",
    "bias-scaled": "look at how the bias is fused, stored or added",
    "channel-scaled": (
        "compare gamma, running_var and eps of these channels; fold every scale into both layers"
    ),
}


class _Errors(NamedTuple):
    """Right numbers of some channels, errors and bounds: (O, K + 1) each, the bias last."""

    y: Array
    error: Array
    bound: Array

    def rows(self, chosen: Array) -> _Errors:
        return _Errors(*(array[chosen] for array in self))

    @property
    def taps(self) -> _Errors:
        return _Errors(*(array[:, :-1] for array in self))

    @property
    def bias(self) -> _Errors:
        return _Errors(*(array[:, -1:] for array in self))

    def factor(self, axis: int | None = None) -> Array:
        """By how much of `y` the numbers err, least squares."""
        squares = ((self.y / self.bound) ** 2).sum(axis=axis, keepdims=True)
        both = (self.y * self.error / self.bound**2).sum(axis=axis, keepdims=True)
        return np.asarray(both / np.maximum(squares, 1e-300))

    def squares(self, factor: Array | float) -> float:
        """Of what is left of the errors, in roundings."""
        left = (self.error - factor * self.y) / (self.bound / _ONE)
        return float((left**2).sum())

    def is_within(self, factor: Array | float) -> bool:
        """Whether no more than rounding is left of the errors."""
        room = self.bound / _LEFT * (1 + np.abs(factor))
        return bool((np.abs(self.error - factor * self.y) <= room).all())

    def is_explained(self, factor: Array) -> bool:
        """Whether a positive factor is what is wrong, and all that is."""
        if not ((1 + factor > 0).all() and self.is_within(factor)):
            return False
        return self.squares(factor) <= (1 - _EXPLAINS) * self.squares(0.0)


def scaled(layer: str, seen: Observation, odd: Odd) -> Finding | None:
    """A layer, its kernel, its bias, or channels that are a factor off, if that is all.

    Parameters
    ----------
    odd : Odd
        The numbers that contradict the file's conversion.
    """
    if not np.isfinite(seen.y_hat).all():
        return None
    return next(_explanations(layer, seen, odd), None)


def _explanations(layer: str, seen: Observation, odd: Odd) -> Iterator[Finding]:
    errors = _Errors(seen.y[0], seen.y_hat[0] - seen.y[0], seen.certified[0])
    beyond = np.abs(errors.error) > errors.bound
    taps, biases = (
        odd.taps.any(axis=(1, 2, 3)) | beyond[:, :-1].any(axis=1),
        odd.bias | beyond[:, -1],
    )
    if not taps.any():
        factor = errors.bias.factor()
        many = biases.sum() >= max(_FEW, len(biases) / 2)
        if many and errors.bias.is_explained(factor):
            says = f"the layer's bias is {1 + float(factor.item()):.9g} times the right one"
            yield _finding("bias-scaled", layer, factor, says)
        return
    factor = errors.taps.factor()
    if errors.taps.is_explained(factor) and taps.size > 1:
        yield from _with_bias(layer, errors, factor, np.array([], int))
    bad = np.flatnonzero(taps | biases)
    channels = errors.rows(bad)
    factors = channels.taps.factor(axis=1)
    one_by_one = (channels.rows(np.array([n])) for n in range(len(bad)))
    if all(e.taps.is_explained(f) for e, f in zip(one_by_one, factors, strict=True)):
        yield from _with_bias(layer, channels, factors, bad)


def _with_bias(layer: str, errors: _Errors, factor: Array, channels: Array) -> Iterator[Finding]:
    """Of kernels that a factor explains: whether their biases are scaled, too, or are right.

    `channels` are named if the factors are theirs; else it is one of the whole layer.
    """
    bias = errors.bias
    too, right = bias.is_within(factor), bias.is_within(0.0)
    if not (too or right):
        return
    by = np.broadcast_to(factor[:, 0], len(errors.y))
    shown = ", ".join(f"{o} by {1 + f:.7g}" for o, f in zip(channels[:_SHOWN], by, strict=False))
    shown += ", ..." if len(channels) > _SHOWN else ""
    one = f"{1 + by[0]:.9g} times the right ones"
    is_layer = not len(channels)
    whole = "outputs-scaled" if is_layer else "channel-scaled"
    says = {
        whole: f"the layer's weights and biases are {one}"
        if is_layer
        else f"output channels are scaled: {shown}",
        "weights-scaled": f"the layer's weights are {one}, and its biases are not"
        if is_layer
        else f"weights of output channels are scaled: {shown}, and their biases are not",
    }
    # how much likelier one is than the other, by what is left of the biases
    apart = np.clip(bias.squares(0.0) - bias.squares(factor), -200, 200) / 2
    likely = float(1 / (1 + np.exp(-apart))) if too and right else float(too)
    names = [whole, "weights-scaled"] if likely >= 0.5 else ["weights-scaled", whole]
    alike = tuple(names[1:]) if 0.01 < likely < 0.99 else ()
    yield _finding(names[0], layer, by, says[names[0]], max(likely, 1 - likely), alike)


def _finding(
    bug: str,
    layer: str,
    factors: Array,
    says: str,
    confidence: float = 1.0,
    equivalents: tuple[str, ...] = (),
) -> Finding:
    largest = float(factors.flat[int(np.abs(factors).argmax())])
    return Finding(
        bug, layer, largest, confidence, 1.0, says, _ADVICE[bug], equivalents=equivalents
    )


def rounded(layer: str, seen: Observation) -> Finding | None:
    """A kernel of which every number has few bits, and lies next to the right one."""
    y, got = seen.y[0, :, :-1], seen.y_hat[0, :, :-1]
    bits = bits_kept(got, UNITS["fp32"])
    room = 2.0 ** (1 - bits) * np.abs(got) + seen.certified[0, :, :-1]
    if not bits or not (np.abs(got - y) <= room).all():
        return None
    is_any = y != 0
    size = float(np.sqrt((((got - y)[is_any] / y[is_any]) ** 2).mean())) if is_any.any() else 0.0
    says = f"all weights of the layer have {bits} bits at most"
    advice = "keep the weights in float32, or say --precision"
    return Finding("weights-rounded", layer, size, 1.0, 1.0, says, advice)
