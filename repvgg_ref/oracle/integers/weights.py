"""Are these the right integers: an integer network against the trained one it was made from.

Every weight must be the integer nearest to the exactly fused one over its channel's scale, every
bias the nearest in units of both scales, half a step either way. What an equalisation moved between
two layers is solved for first: positive factors of channels that the next layer takes back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.integer.layers import IntegerLayer
from repvgg_ref.integer.network import IntegerNetwork
from repvgg_ref.integer.quantize import LINEAR, POOL, as_chain
from repvgg_ref.models.network import Model
from repvgg_ref.oracle.integers.report import PRECISION, IntegerLayerReport, IntegerReport
from repvgg_ref.oracle.integers.settings import clips_at_zero, slips, unlike_chain
from repvgg_ref.oracle.report import Equivalence, Finding

HALF = 0.5 + 1e-4  # of a step: rounding, and that of the scales themselves to float32
_CLIPPED = 0.01  # of a layer's weights: more are no choice of a quantiser, but a wrong scale
_SMALL = 1e-6  # steps: a weight that says nothing about its channel's factor
_SHOWN = 8


class _Factors(NamedTuple):
    """By what each channel was multiplied, and how far, relative to it, that may be wrong."""

    value: Array
    slack: Array

    @classmethod
    def none(cls, channels: int) -> _Factors:
        """Of channels that were left alone."""
        return cls(np.ones(channels), np.zeros(channels))

    def __bool__(self) -> bool:
        """Whether any channel was scaled."""
        return bool((self.value != 1).any())


class _Pair(NamedTuple):
    """A layer's real arrays, in the factors of the network at hand, and its integers.

    `slack` is how far each of `steps` may be wrong because its input's factor may be.
    """

    name: str
    weight: Array
    bias: Array
    slack: Array
    layer: IntegerLayer

    @property
    def scale(self) -> Array:
        """One for each output channel."""
        assert self.layer.weight_scale is not None
        scale = self.layer.weight_scale.astype(np.float64)
        return np.broadcast_to(scale, (len(self.weight),))

    @property
    def steps(self) -> Array:
        """The real weights in units of the scales."""
        return self.weight / _across(self.scale, self.weight)

    @property
    def bias_steps(self) -> Array:
        """The real bias in units of both scales."""
        return self.bias / (float(self.layer.input.scale) * self.scale)

    def times(self, factors: _Factors) -> _Pair:
        """With the output channels multiplied."""
        across = _across(factors.value, self.weight)
        slack = (self.slack + np.abs(self.steps) * _across(factors.slack, self.weight)) * across
        return self._replace(
            weight=self.weight * across, bias=self.bias * factors.value, slack=slack
        )


def _across(channels: Array, weight: Array) -> Array:
    """One number an output channel, shaped to meet its weights."""
    return channels.reshape((-1,) + (1,) * (weight.ndim - 1))


def judge_integers(
    model: Model, network: IntegerNetwork, *, candidate: str, name: str | None = None
) -> IntegerReport:
    """Judge what `network` holds and how it computes against `model`, fused exactly."""
    deploy = as_chain(model)
    wanted = [*(spec.name for spec in deploy.arch.blocks), LINEAR]
    reference = name or model.name
    if unlike := unlike_chain(network.layers, len(deploy.arch.blocks)):
        reason = f"{candidate} is no {reference}: {unlike}"
        return IntegerReport("disagree", reason, reference, candidate, PRECISION)
    specs = {spec.name: spec for spec in deploy.arch.blocks}
    layers = [layer for layer in network.layers if layer.kind != "pool"]
    rows: list[IntegerLayerReport] = []
    findings: list[Finding] = []
    same: list[Equivalence] = []
    factors: _Factors | None = None  # of the input's channels
    for place, (layer_name, layer) in enumerate(zip(wanted, layers, strict=True)):
        weight, bias = (_real(deploy.params, layer_name, part) for part in ("weight", "bias"))
        if layer.weight is None or layer.weight.shape != weight.shape:
            shape = None if layer.weight is None else layer.weight.shape
            note = f"weights of shape {shape}, not {weight.shape}"
            rows.append(IntegerLayerReport.incomparable(layer_name, note))
            break
        pair = _undone(_Pair(layer_name, weight, bias, np.zeros_like(weight), layer), factors)
        factors = None
        if place + 1 < len(wanted) and clips_at_zero(layer):
            following = _real(deploy.params, wanted[place + 1], "weight")
            factors = _taken_back(pair, following, layers[place + 1])
        if factors:
            pair = pair.times(factors)
            moved = factors.value[factors.value != 1]
            says = f"{len(moved)} channels scaled by {moved.min():.4g} to {moved.max():.4g}"
            same.append(Equivalence(layer_name, "scaling", says))
        row, found = _judged(pair)
        said = list(slips(layer, specs.get(layer_name)))
        if said:
            notes = "; ".join(filter(None, [*(slip.says for slip in said), row.note]))
            row = replace(row, ok=False, ratio=max(row.ratio, float("inf")), note=notes)
        rows.append(row)
        findings += [*(_finding(slip.bug, layer_name, *slip[1:]) for slip in said), *found]
    return _report(rows, findings, same, network, reference, candidate)


def _real(params: Mapping[str, Array], layer: str, part: str) -> Array:
    key = f"{layer}.{part}" if layer == LINEAR else f"{layer}.fused.{part}"
    return params[key].astype(np.float64)


def _undone(pair: _Pair, factors: _Factors | None) -> _Pair:
    """Input channels divided by what the layer before was multiplied by."""
    if not factors:
        return pair
    weight, per_group = pair.weight, pair.weight.shape[1]
    groups = len(factors.value) // per_group
    grouped = weight.reshape(groups, -1, per_group, weight[0, 0].size)
    value, slack = (each.reshape(groups, 1, per_group, 1) for each in factors)
    divided = (grouped / value).reshape(weight.shape)
    apart = np.abs(grouped / value * slack).reshape(weight.shape)
    return pair._replace(weight=divided, slack=apart / _across(pair.scale, weight))


def _taken_back(pair: _Pair, following: Array, after: IntegerLayer) -> _Factors | None:
    """The factors of a layer's channels, if the next layer takes them back."""
    factors = _factors(pair)
    if not factors or after.weight is None or after.weight.shape != following.shape:
        return None
    zero = np.zeros(len(following))
    plain = _Pair(after.name, following, zero, np.zeros_like(following), after)
    divided = _undone(plain, factors)
    agree = [_agreeing(each.times(_factors(each)), each.layer) for each in (divided, plain)]
    return factors if agree[0] > agree[1] else None


def _agreeing(pair: _Pair, layer: IntegerLayer) -> int:
    assert layer.weight is not None
    apart = np.abs(layer.weight - np.clip(pair.steps, -128, 127))
    return int((apart <= HALF + pair.slack).sum())


def _factors(pair: _Pair) -> _Factors:
    """By what each channel was multiplied before it was quantised; 1 where that explains as much.

    A tap of s real steps that became q says that the factor lies between (q - 1/2) / s and
    (q + 1/2) / s, and so does the bias: the factor is where most of these agree.
    """
    assert pair.layer.weight is not None
    assert pair.layer.bias is not None
    channels = len(pair.weight)
    numbers = pair.layer.weight.reshape(channels, -1).astype(np.float64)
    steps, slack = (each.reshape(channels, -1) for each in (pair.steps, pair.slack))
    q = np.concatenate([numbers, pair.layer.bias[:, None].astype(np.float64)], axis=1)
    s = np.concatenate([steps, pair.bias_steps[:, None]], axis=1)
    room = np.concatenate(
        [np.full(slack.shape, HALF), HALF * _bias_room(pair.bias_steps)[:, None]], axis=1
    )
    unsure = np.concatenate([slack, np.zeros((channels, 1))], axis=1) * np.sign(s)
    found = _Factors.none(channels)
    for channel in range(channels):
        use = np.abs(s[channel]) > _SMALL + np.abs(unsure[channel])
        use[:-1] &= np.abs(numbers[channel]) < 127  # what was clipped may have been any larger
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


def _judged(pair: _Pair) -> tuple[IntegerLayerReport, list[Finding]]:
    layer = pair.layer
    assert layer.weight is not None
    assert layer.bias is not None
    numbers = layer.weight.astype(np.float64)
    steps = np.clip(pair.steps, -128, 127)
    apart = np.maximum(np.abs(numbers - steps) - pair.slack, 0.0)
    bias = np.clip(pair.bias_steps, -(2.0**31), 2.0**31 - 1)
    bias_apart = np.abs(layer.bias - bias) / _bias_room(bias)
    wrong, wrong_bias = apart > HALF, bias_apart > HALF
    clipped = np.abs(pair.steps) > 128 + HALF  # more than -128, the farthest there is, can round to
    is_clipped = bool(clipped.mean() > _CLIPPED)
    ok = not (wrong.any() or wrong_bias.any() or is_clipped)
    worst = max(float(apart.max(initial=0)), float(bias_apart.max(initial=0)))
    row = IntegerLayerReport(
        pair.name,
        worst,
        HALF,
        worst / HALF,
        ok,
        note=_note(wrong, wrong_bias, clipped),
        mismatches=int(wrong.sum() + wrong_bias.sum()),
        numbers=wrong.size + wrong_bias.size,
        max_lsb=0 if ok else int(np.ceil(worst)),
    )
    found = list(_explained(pair, wrong, wrong_bias))
    if is_clipped:
        says = f"{clipped.mean():.1%} of the weights are beyond what their scale can hold"
        found.append(_finding("weights-clipped", pair.name, says, "largest magnitude / 127"))
    return row, found


def _bias_room(bias: Array) -> Array:
    """How much more than half a step a bias may be off: large ones meet float32 scales."""
    found: Array = 1 + np.abs(bias) * 2.0**-22
    return found


def _note(wrong: Array, wrong_bias: Array, clipped: Array) -> str:
    said = []
    if wrong.any():
        said.append(f"{wrong.sum()} of {wrong.size} weights")
    if wrong_bias.any():
        said.append(f"{wrong_bias.sum()} of {wrong_bias.size} biases")
    notes = [f"{' and '.join(said)} are not the nearest integers"] if said else []
    if clipped.any():
        notes.append(f"{clipped.sum()} of {clipped.size} weights are clipped")
    return "; ".join(notes)


def _explained(pair: _Pair, wrong: Array, wrong_bias: Array) -> Iterator[Finding]:
    assert pair.layer.weight is not None
    numbers = pair.layer.weight.astype(np.float64)
    if wrong.any():
        bug, says, advice = next(
            (each for each, steps in _alternatives(pair) if _fits(numbers, steps)),
            ("unknown", f"weights differ in channels {_places(wrong)}", "fuse exactly, then round"),
        )
        yield _finding(bug, pair.name, says, advice)
    if wrong_bias.any():
        yield _bias(pair, wrong_bias)


def _fits(numbers: Array, steps: Array) -> bool:
    return bool((np.abs(numbers - np.clip(steps, -128, 127)) <= HALF).all())


def _alternatives(pair: _Pair) -> Iterator[tuple[tuple[str, str, str], Array]]:
    """(bug, what it says, advice), and the weights in steps that it would give."""
    steps = pair.steps
    if steps.ndim == 4 and steps.shape[2] > 1:
        for says, flip in (("both ways", (2, 3)), ("top to bottom", (2,)), ("sideways", (3,))):
            yield (
                ("kernel-flipped", f"the kernel is flipped ({says})", "cross-correlate"),
                np.flip(steps, flip),
            )
        yield (
            ("kernel-transposed", "the kernel is transposed", "rows come before columns"),
            steps.swapaxes(2, 3),
        )
    across = (-1,) + (1,) * (steps.ndim - 1)
    scale = pair.scale.reshape(across)
    real = steps * scale
    for step in (1, -1):
        yield (
            (
                "neighbours-scale",
                "each channel's scale is its neighbour's",
                "store the scales in the order of the channels",
            ),
            real / np.roll(scale, step, axis=0),
        )
    yield (
        ("weights-truncated", "weights are truncated towards zero", "round to the nearest"),
        np.trunc(steps),
    )
    yield ("weights-floored", "weights are rounded down", "round to the nearest"), np.floor(steps)


def _bias(pair: _Pair, wrong: Array) -> Finding:
    assert pair.layer.bias is not None
    held, before = pair.layer.bias.astype(np.float64), float(pair.layer.input.scale)
    for bug, says, units in (
        ("bias-dropped", "the bias is zero", None),
        ("bias-scale", "the bias is in units of weight_scale alone", pair.scale),
        (
            "bias-scale",
            "the bias is in units of input_scale alone",
            np.full_like(pair.scale, before),
        ),
        (
            "bias-scale",
            "the bias is in units of the output's scale",
            np.full_like(pair.scale, float(pair.layer.output.scale)),
        ),
        (
            "bias-scale",
            "the bias is in units of one channel's scales",
            np.full_like(pair.scale, before * pair.scale.max()),
        ),
        ("bias-sign", "the bias has the other sign", -before * pair.scale),
    ):
        expected = np.zeros_like(held) if units is None else pair.bias / units
        if (np.abs(held - expected) <= 1).all():
            return _finding(bug, pair.name, says, "bias_scale = input_scale * weight_scale")
    return _finding(
        "unknown",
        pair.name,
        f"biases differ in channels {_places(wrong)}",
        "compare the bias of the first of them with the fused one",
    )


def _places(wrong: Array) -> str:
    places = np.flatnonzero(wrong.reshape(len(wrong), -1).any(axis=1))
    return ", ".join(map(str, places[:_SHOWN])) + (", ..." if len(places) > _SHOWN else "")


def _finding(bug: str, layer: str, says: str, advice: str) -> Finding:
    known = bug != "unknown"
    return Finding(bug, layer, None, float(known), float(known), says=says, advice=advice)


def _report(
    rows: list[IntegerLayerReport],
    findings: list[Finding],
    same: list[Equivalence],
    network: IntegerNetwork,
    reference: str,
    candidate: str,
) -> IntegerReport:
    bad = [row for row in rows if not row.ok]
    reason = (
        f"{bad[0].name}: {bad[0].note}"
        if bad
        else f"every weight and bias of {len(rows)} layers is the nearest integer to the fused "
        "one; strides, padding, groups, clipping and multipliers are the network's"
    )
    notes = ["ranges of activations were not judged: they depend on the images of calibration"]
    if any(layer.kind == "pool" for layer in network.layers):
        notes.append(f"{POOL} has no weights")
    return IntegerReport(
        "disagree" if bad else "agree",
        reason,
        reference,
        candidate,
        PRECISION,
        tuple(rows),
        tuple(findings),
        bad[0].name if bad else None,
        tuple(notes),
        equivalences=tuple(same),
    )
