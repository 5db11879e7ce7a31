"""What integers that are not the nearest ones were made by."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.integers.factors import HALF, Factors, Pair, across, factors_of
from repvgg_ref.oracle.report import Finding

_SHOWN = 8
_FEW = 8  # steps: a factor that moves a bias by no more is no factor


def explained(pair: Pair, wrong: Array, wrong_bias: Array) -> Iterator[Finding]:
    """What made the integers that are `wrong`, in all channels or in some."""
    rows = np.asarray(wrong.reshape(len(wrong), -1).any(axis=1))
    scaled = _scaled(pair, rows) if rows.any() else None
    if rows.any():
        named = _of_weights(pair, rows, scaled)
        yield named
        if named.bug == "neighbours-scale":
            wrong_bias = wrong_bias & ~_in_neighbours_units(pair)
    if scaled is not None:  # their biases are in units of the scale that was meant
        wrong_bias = wrong_bias & ~(rows & _follows(pair, scaled))
    if wrong_bias.any():
        yield _bias(pair, wrong_bias)


def _of_weights(pair: Pair, rows: Array, scaled: Factors | None) -> Finding:
    assert pair.layer.weight is not None
    numbers = pair.layer.weight.astype(np.float64)
    for (bug, says, advice), steps in _alternatives(pair):
        if bug == "neighbours-scale" and rows.sum() == 1 < len(rows):
            continue  # by chance: neighbours are often alike
        fits = np.abs(numbers - pair.held(steps)) <= HALF
        if fits[rows].all():
            alone = "" if rows.all() or fits.all() else _alone(rows)
            return finding(bug, pair.name, says + alone, advice)
    if scaled is not None:
        return _scale(pair, rows, scaled)
    if (moved := _moved(pair, rows)) is not None:
        return moved
    says = f"weights differ in channels {_places(rows)}"
    return finding("unknown", pair.name, says, "fuse exactly, then round")


def _moved(pair: Pair, rows: Array) -> Finding | None:
    """Weights that are off by a number a channel: a zero point."""
    assert pair.layer.weight is not None
    by = np.rint(np.median((pair.layer.weight - pair.steps).reshape(len(rows), -1), axis=1))
    apart = pair.layer.weight - pair.held(pair.steps + across(by, pair.steps))
    if (np.abs(apart)[rows] > HALF).any():
        return None
    ends = " to ".join(dict.fromkeys(f"{end:+g}" for end in (by[rows].min(), by[rows].max())))
    says = f"weights are off by {ends}{_alone(rows)}"
    return finding("weight-zero-point", pair.name, says, "subtract the zero point that they have")


def _scaled(pair: Pair, rows: Array) -> Factors | None:
    """By what the weights of the wrong channels are multiplied, if that is all."""
    factors = factors_of(pair)
    made = pair.times(factors)
    assert pair.layer.weight is not None
    apart = np.abs(pair.layer.weight - made.held(made.steps)) - made.slack
    return factors if bool((apart[rows] <= HALF).all()) else None


def _in_neighbours_units(pair: Pair) -> Array:
    """Whose bias is in units of the scale of a channel beside it."""
    fits = np.zeros(len(pair.weight), bool)
    for step in (1, -1):
        unit = float(pair.layer.input.scale) * np.roll(pair.scale, step)
        fits |= np.abs(pair.held_bias - pair.bias / unit) <= 1
    return fits


def _follows(pair: Pair, scaled: Factors) -> Array:
    """Whose bias is multiplied as the weights are."""
    meant = pair.bias_steps * scaled.value
    return np.asarray(np.abs(pair.held_bias - meant) <= 1 + np.abs(meant) * scaled.slack * 2)


def _scale(pair: Pair, rows: Array, scaled: Factors) -> Finding:
    """Weights that were rounded with another scale than the stored one, and whose that is."""
    scale, places = pair.scale, np.flatnonzero(rows)
    owners = [each for c in places if (each := _owner(scale, int(c), scaled)) is not None]
    if len(owners) == len(places) and (len(places) > 1 or owners[0][1]):
        shown = ", ".join(
            f"{c} has channel {j}'s" if held else f"{c} is rounded with channel {j}'s"
            for c, (j, held) in list(zip(places, owners, strict=True))[:_SHOWN]
        )
        more = ", ..." if len(places) > _SHOWN else ""
        return finding(
            "neighbours-scale",
            pair.name,
            f"scales are other channels': {shown}{more}",
            "store the scales in the order of the channels",
        )
    digits = int(np.clip(-np.log10(max(2 * scaled.slack[rows].max(), 1e-9)), 1, 6))
    ends = sorted(
        {f"{end:.{digits}g}" for end in (scaled.value[rows].min(), scaled.value[rows].max())}
    )
    return finding(
        "weight-scale",
        pair.name,
        f"weights are {' to '.join(ends)} times what their scale says{_alone(rows)}",
        "store the scale that the weights were rounded with",
    )


def _owner(scale: Array, c: int, scaled: Factors) -> tuple[int, bool] | None:
    """The nearest channel that has this one's scale: by what is stored, or by what was used."""
    apart = np.abs(np.arange(len(scale)) - c)
    others = apart > 0
    held = others & (scale == scale[c]) & bool(np.ptp(scale))
    used = scale[c] / scaled.value[c]
    room = scaled.slack[c] + 1e-6
    meant = others & (np.abs(scale / used - 1) <= room)
    for which, is_held in ((held, True), (meant, False)):
        if which.any():
            return int(np.flatnonzero(which)[apart[which].argmin()]), is_held
    return None


def _alone(rows: Array) -> str:
    return "" if rows.all() else f", in channels {_places(rows)} alone"


def _alternatives(pair: Pair) -> Iterator[tuple[tuple[str, str, str], Array]]:
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
    yield ("weights-negated", "the weights have the other sign", "store them as they are"), -steps
    scale = across(pair.scale, steps)
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


def _bias(pair: Pair, wrong: Array) -> Finding:
    before, unit = float(pair.layer.input.scale), float(pair.layer.input.scale) * pair.scale
    one = np.ones_like(pair.scale)
    held = pair.held_bias
    for bug, says, units in (
        ("bias-dropped", "the bias is zero", None),
        ("bias-scale", "the bias is in units of weight_scale alone", pair.scale),
        ("bias-scale", "the bias is in units of input_scale alone", before * one),
        (
            "bias-scale",
            "the bias is in units of the output's scale",
            float(pair.layer.output.scale) * one,
        ),
        (
            "bias-scale",
            "the bias is in units of one channel's scales",
            before * pair.scale.max() * one,
        ),
        ("bias-sign", "the bias has the other sign", -unit),
    ):
        expected = np.zeros_like(held) if units is None else pair.bias / units
        if (np.abs(held - expected)[wrong] <= 1).all():
            alone = "" if (np.abs(held - expected) <= 1).all() else _alone(wrong)
            advice = "bias_scale = input_scale * weight_scale"
            return finding(bug, pair.name, says + alone, advice)
    for explained_by in (_own_unit, _other_unit):
        if (found := explained_by(pair, wrong)) is not None:
            return found
    return finding(
        "unknown",
        pair.name,
        f"biases differ in channels {_places(wrong)}",
        "compare the bias of the first of them with the fused one",
    )


def _own_unit(pair: Pair, wrong: Array) -> Finding | None:
    """Right integers with a scale of their own that is not the product of both."""
    if pair.stated is None or pair.stated.numbers is None:
        return None
    if (np.abs(pair.stated.numbers - pair.bias_steps)[wrong] > 1).any():
        return None
    says = "the bias's own scale is not input_scale * weight_scale" + _alone(wrong)
    return finding("bias-scale", pair.name, says, "bias_scale = input_scale * weight_scale")


def _other_unit(pair: Pair, wrong: Array) -> Finding | None:
    """Biases that are all one multiple of what they should be, and no multiple near 1."""
    largest = int(np.abs(pair.bias_steps * wrong).argmax())
    meant = pair.bias_steps[largest]
    ratio = pair.held_bias[largest] / meant if meant else np.nan
    if wrong.sum() < 2 or not np.isfinite(ratio) or abs(ratio - 1) * abs(meant) <= _FEW:
        return None
    expected = pair.bias_steps * ratio
    room = 1 + abs(ratio) + np.abs(expected / meant)
    if (np.abs(pair.held_bias - expected) > room)[wrong].any():
        return None
    says = f"the bias is {ratio:.3g} times what both scales say{_alone(wrong)}"
    return finding("bias-scale", pair.name, says, "bias_scale = input_scale * weight_scale")


def _places(wrong: Array) -> str:
    places = np.flatnonzero(wrong.reshape(len(wrong), -1).any(axis=1))
    return ", ".join(map(str, places[:_SHOWN])) + (", ..." if len(places) > _SHOWN else "")


def finding(bug: str, layer: str, says: str, advice: str) -> Finding:
    """A certain one; "unknown" explains nothing."""
    known = bug != "unknown"
    return Finding(bug, layer, None, float(known), float(known), says=says, advice=advice)
