"""By what channels were multiplied before they were quantised, as an equalisation does."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.integer.layers import IntegerLayer
from repvgg_ref.oracle.integers.onnx_arrays import StatedBias

HALF = 0.5 + 1e-4  # of a step: rounding, and that of the scales themselves to float32
_UNSEEN = 0.05  # of a step of the output: what a bias may be off without a word of blame
_SMALL = 1e-6  # steps: a weight that says nothing about its channel's factor


class Factors(NamedTuple):
    """By what each channel was multiplied, and how far, relative to it, that may be wrong."""

    value: Array
    slack: Array

    @classmethod
    def none(cls, channels: int) -> Factors:
        """Of channels that were left alone."""
        return cls.exactly(np.ones(channels))

    @classmethod
    def exactly(cls, value: Array) -> Factors:
        """These, of which nothing is unsure."""
        return cls(value, np.zeros(len(value)))

    def __bool__(self) -> bool:
        """Whether any channel was scaled."""
        return bool((self.value != 1).any())

    def says(self, after: str) -> str:
        """How many channels are scaled and by what, in as many digits as are known."""
        which = np.abs(self.value - 1) > self.slack * self.value
        which = which if which.any() else self.value != 1  # together they cannot all be 1
        moved, slack = self.value[which], float(self.slack[which].max())
        digits = int(np.clip(-np.log10(max(2 * slack, 1e-9)), 1, 6))
        ends = " to ".join(f"{end:.{digits}g}" for end in (moved.min(), moved.max()))
        return f"{len(moved)} channels scaled by {ends}, and {after} divides by that"


class Pair(NamedTuple):
    """A layer's real arrays, in the factors of the network at hand, and its integers.

    `slack` is how far each of `steps` may be wrong because its input's factor may be.
    """

    name: str
    weight: Array
    bias: Array
    slack: Array
    layer: IntegerLayer
    stated: StatedBias | None = None

    @property
    def scale(self) -> Array:
        """One for each output channel."""
        assert self.layer.weight_scale is not None
        scale = self.layer.weight_scale.astype(np.float64)
        return np.broadcast_to(scale, (len(self.weight),))

    @property
    def steps(self) -> Array:
        """The real weights in units of the scales."""
        return self.weight / across(self.scale, self.weight)

    @property
    def ends(self) -> tuple[Array, Array]:
        """Where weights are clipped: one above the type's least number if none lies there.

        TensorFlow Lite's weights are held to -127 to 127.
        """
        low, high = self.layer.weight_ends
        assert self.layer.weight is not None
        is_narrow = not (self.layer.weight == low).any()
        return (low + 1 if is_narrow else low), high

    def held(self, steps: Array) -> Array:
        """Those of `steps` that 8 bits cannot hold moved to the nearest that they can."""
        found: Array = np.clip(steps, *self.ends)
        return found

    @property
    def bias_steps(self) -> Array:
        """The real bias in units of both scales."""
        return self.bias / (float(self.layer.input.scale) * self.scale)

    @property
    def held_bias(self) -> Array:
        """What is held, in units of both scales, whatever unit it is stored in."""
        assert self.layer.bias is not None
        if self.stated is None:
            return self.layer.bias.astype(np.float64)
        held: Array = self.stated.real / (float(self.layer.input.scale) * self.scale)
        return held

    @property
    def bias_apart(self) -> Array:
        """How far each bias is off, in the steps that it could be stored in."""
        limits = (-(2.0**31), 2.0**31 - 1)
        bias = self.bias_steps if self.stated is not None else np.clip(self.bias_steps, *limits)
        step = self.bias_step
        found: Array = np.abs(self.held_bias - bias) / (bias_room(bias / step) * step)
        return found

    @property
    def bias_step(self) -> Array:
        """The distance of two biases that could be stored, in units of both scales."""
        if self.stated is None:
            return np.ones(len(self.bias))
        unit = float(self.layer.input.scale) * self.scale
        found: Array = np.maximum(self.stated.step / unit, 1.0)
        return found

    @property
    def bias_beside(self) -> Array:
        """Which biases are not the nearest integers but beside them, and too small to matter.

        One accumulator step off, which is so small a part of a step of the output that few numbers
        round otherwise, and none by more than 1: as truncation or another product of the scales
        leaves them.
        """
        off = np.abs(self.held_bias - self.bias_steps) <= 1 + HALF
        return np.asarray((self.bias_apart > HALF) & off & (self.output_steps <= _UNSEEN))

    @property
    def output_steps(self) -> Array:
        """One step of an accumulator, in steps of the output."""
        return float(self.layer.input.scale) * self.scale / float(self.layer.output.scale)

    def times(self, factors: Factors) -> Pair:
        """With the output channels multiplied."""
        wide = across(factors.value, self.weight)
        slack = (self.slack + np.abs(self.steps) * across(factors.slack, self.weight)) * wide
        return self._replace(weight=self.weight * wide, bias=self.bias * factors.value, slack=slack)


def across(channels: Array, weight: Array) -> Array:
    """One number an output channel, shaped to meet its weights."""
    return channels.reshape((-1,) + (1,) * (weight.ndim - 1))


def undone(pair: Pair, factors: Factors | None) -> Pair:
    """Input channels divided by what the layer before was multiplied by."""
    if not factors:
        return pair
    weight, per_group = pair.weight, pair.weight.shape[1]
    groups = len(factors.value) // per_group
    grouped = weight.reshape(groups, -1, per_group, weight[0, 0].size)
    value, slack = (each.reshape(groups, 1, per_group, 1) for each in factors)
    divided = (grouped / value).reshape(weight.shape)
    apart = np.abs(grouped / value * slack).reshape(weight.shape)
    return pair._replace(weight=divided, slack=apart / across(pair.scale, weight))


def agreeing(pair: Pair) -> int:
    """How many weights are the nearest integers."""
    assert pair.layer.weight is not None
    apart = np.abs(pair.layer.weight - pair.held(pair.steps))
    return int((apart <= HALF + pair.slack).sum())


def bias_room(bias: Array) -> Array:
    """How much more than half a step a bias may be off: large ones meet float32 scales."""
    found: Array = 1 + np.abs(bias) * 2.0**-22
    return found


def factors_of(pair: Pair) -> Factors:
    """By what each channel was multiplied before it was quantised; 1 where that explains as much.

    A tap of s real steps that became q says that the factor lies between (q - 1/2) / s and
    (q + 1/2) / s, and so does the bias: the factor is where most of these agree.
    """
    assert pair.layer.weight is not None
    channels = len(pair.weight)
    numbers = pair.layer.weight.reshape(channels, -1).astype(np.float64)
    steps, slack = (each.reshape(channels, -1) for each in (pair.steps, pair.slack))
    q = np.concatenate([numbers, pair.held_bias[:, None]], axis=1)
    s = np.concatenate([steps, pair.bias_steps[:, None]], axis=1)
    low, high = pair.ends
    inside = ((pair.layer.weight > low) & (pair.layer.weight < high)).reshape(channels, -1)
    room = np.concatenate(
        [np.full(slack.shape, HALF), HALF * bias_room(pair.bias_steps)[:, None]], axis=1
    )
    unsure = np.concatenate([slack, np.zeros((channels, 1))], axis=1) * np.sign(s)
    found = Factors.none(channels)
    for channel in range(channels):
        use = np.abs(s[channel]) > _SMALL + np.abs(unsure[channel])
        use[:-1] &= inside[channel]  # what was clipped may have been any larger
        # s may itself be larger or smaller by what the input's factor is unsure of.
        ends = [
            (q[channel] + one * room[channel])[use] / (s[channel] + two * unsure[channel])[use]
            for one in (-1, 1)
            for two in (-1, 1)
        ]
        low, high = np.min(ends, axis=0), np.max(ends, axis=0)
        at_one = int(((low <= 1) & (high >= 1)).sum())
        start, stop, count = _deepest(low, high)
        if count > at_one and start > 0:
            found.value[channel] = (start + stop) / 2
            found.slack[channel] = (stop - start) / (start + stop)
    return found


def _deepest(low: Array, high: Array) -> tuple[float, float, int]:
    """Where most of the intervals [low, high] overlap, and how many do."""
    if not low.size:
        return 1.0, 1.0, 0
    points = np.concatenate([low, high])
    change = np.concatenate([np.ones(len(low)), -np.ones(len(high))])
    order = np.lexsort((-change, points))
    depth = np.cumsum(change[order])
    at = int(depth.argmax())
    return float(points[order][at]), float(points[order][at + 1]), int(depth[at])
