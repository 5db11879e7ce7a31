"""Are these the right integers: an integer network against the trained one it was made from.

Every weight must be the integer nearest to the exactly fused one over its channel's scale, every
bias the nearest in units of both scales, half a step either way. What an equalisation moved between
two layers is solved for first: positive factors of channels that the next layer takes back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.integer.layers import IntegerLayer
from repvgg_ref.integer.network import IntegerNetwork
from repvgg_ref.integer.quantize import LINEAR, POOL, as_chain
from repvgg_ref.models.network import Model
from repvgg_ref.oracle.integers.report import PRECISION, IntegerLayerReport, IntegerReport
from repvgg_ref.oracle.report import Equivalence, Finding

HALF = 0.5 + 1e-4  # of a step: rounding, and that of the scales themselves to float32
_ENOUGH = 0.9  # the share of a channel's taps that must agree for a factor to be read off them
_SHOWN = 8


class _Pair(NamedTuple):
    """A layer's real arrays, in the factors of the network at hand, and its integers."""

    name: str
    weight: Array
    bias: Array
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
        across = (-1,) + (1,) * (self.weight.ndim - 1)
        found: Array = self.weight / self.scale.reshape(across)
        return found


def judge_integers(
    model: Model, network: IntegerNetwork, *, candidate: str, name: str | None = None
) -> IntegerReport:
    """Judge the weights, biases and scales of `network` against `model`, fused exactly."""
    deploy = as_chain(model)
    wanted = [*(spec.name for spec in deploy.arch.blocks), LINEAR]
    layers = [layer for layer in network.layers if layer.kind != "pool"]
    reference = name or model.name
    if len(layers) != len(wanted):
        reason = f"{candidate} has {len(layers)} layers with weights, {reference} {len(wanted)}"
        return IntegerReport("disagree", reason, reference, candidate, PRECISION)
    rows: list[IntegerLayerReport] = []
    findings: list[Finding] = []
    same: list[Equivalence] = []
    factor: Array | None = None  # of the input's channels
    for place, (layer_name, layer) in enumerate(zip(wanted, layers, strict=True)):
        weight, bias = (_real(deploy.params, layer_name, part) for part in ("weight", "bias"))
        if layer.weight is None or layer.weight.shape != weight.shape:
            shape = None if layer.weight is None else layer.weight.shape
            note = f"weights of shape {shape}, not {weight.shape}"
            rows.append(IntegerLayerReport.incomparable(layer_name, note))
            break
        if factor is not None:
            weight = _undone(weight, factor)
        pair = _Pair(layer_name, weight, bias, layer)
        may_scale = place + 1 < len(wanted) and layer.relu
        own = _factors(pair) if may_scale else np.ones(len(weight))
        if (own != 1).any():
            pair = pair._replace(
                weight=weight * own.reshape((-1,) + (1,) * (weight.ndim - 1)), bias=bias * own
            )
            says = f"{int((own != 1).sum())} channels scaled by {own.min():.4g} to {own.max():.4g}"
            same.append(Equivalence(layer_name, "scaling", says))
        factor = own
        row, found = _judged(pair)
        rows.append(row)
        findings += found
    return _report(rows, findings, same, network, reference, candidate)


def _real(params: Mapping[str, Array], layer: str, part: str) -> Array:
    key = f"{layer}.{part}" if layer == LINEAR else f"{layer}.fused.{part}"
    return params[key].astype(np.float64)


def _undone(weight: Array, factor: Array) -> Array:
    """Input channels divided by what the layer before was multiplied by."""
    per_group = weight.shape[1]
    back = factor.reshape(-1, 1, per_group, 1)
    grouped = weight.reshape(len(back), -1, per_group, weight[0, 0].size)
    found: Array = (grouped / back).reshape(weight.shape)
    return found


def _factors(pair: _Pair) -> Array:
    """By what each channel was multiplied before it was quantised; 1 where nothing speaks for it.

    The ratio of integers to real steps is the factor itself, the same for all taps of a channel.
    """
    assert pair.layer.weight is not None
    numbers = pair.layer.weight.reshape(len(pair.weight), -1).astype(np.float64)
    steps = pair.steps.reshape(numbers.shape)
    found = np.ones(len(numbers))
    for channel, (q, s) in enumerate(zip(numbers, steps, strict=True)):
        plain = np.abs(q - np.clip(s, -128, 127)) <= HALF
        energy = float(s @ s)
        if plain.mean() >= _ENOUGH or energy == 0:
            continue
        ratio = float(q @ s) / energy
        scaled = np.abs(q - ratio * s) <= HALF + 2e-2
        if ratio > 0 and scaled.mean() >= _ENOUGH:
            found[channel] = _refined(q, s, ratio)
    return found


def _refined(q: Array, s: Array, ratio: float) -> float:
    """The middle of all factors with which every tap rounds to its integer, if there are any."""
    use = np.abs(s) > 1e-9
    ends = np.stack([(q[use] - 0.5) / s[use], (q[use] + 0.5) / s[use]])
    low, high = ends.min(axis=0).max(), ends.max(axis=0).min()
    return float((low + high) / 2) if low <= high else ratio


def _judged(pair: _Pair) -> tuple[IntegerLayerReport, list[Finding]]:
    layer = pair.layer
    assert layer.weight is not None
    assert layer.bias is not None
    numbers = layer.weight.astype(np.float64)
    steps = np.clip(pair.steps, -128, 127)
    apart = np.abs(numbers - steps)
    unit = float(layer.input.scale) * pair.scale
    bias = np.clip(pair.bias / unit, -(2.0**31), 2.0**31 - 1)
    # A scale is a float32: as many steps of a large bias are off by as much of half an ulp.
    bias_apart = np.abs(layer.bias - bias) / (1 + np.abs(bias) * 2.0**-22)
    wrong, wrong_bias = apart > HALF, bias_apart > HALF
    ok = not (wrong.any() or wrong_bias.any())
    worst = max(float(apart.max(initial=0)), float(bias_apart.max(initial=0)))
    row = IntegerLayerReport(
        pair.name,
        worst,
        HALF,
        worst / HALF,
        ok,
        note=_note(wrong, wrong_bias),
        mismatches=int(wrong.sum() + wrong_bias.sum()),
        numbers=wrong.size + wrong_bias.size,
        max_lsb=0 if ok else int(np.ceil(worst)),
    )
    return row, [] if ok else list(_explained(pair, wrong, wrong_bias))


def _note(wrong: Array, wrong_bias: Array) -> str:
    said = []
    if wrong.any():
        said.append(f"{wrong.sum()} of {wrong.size} weights")
    if wrong_bias.any():
        said.append(f"{wrong_bias.sum()} of {wrong_bias.size} biases")
    return f"{' and '.join(said)} are not the nearest integers" if said else ""


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
        else f"every weight and bias of {len(rows)} layers is the nearest integer to the fused one"
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
