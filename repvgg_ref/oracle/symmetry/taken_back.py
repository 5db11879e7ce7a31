"""Which channels' factors the next layer divides by: each is asked of that layer's errors."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.arithmetic.sample import Sample

# Of odds, the logarithm that settles it: by chance 4 channels in a million are as far from what
# they are, at worst.
_SURE = 10.0
_ALIKE = 0.1  # of factors less 1, which are one scale


class Answer(NamedTuple):
    """What the next layer's errors say of each channel's factor, masks (C,); else it is taken back.

    Attributes
    ----------
    wrong : array of bool
        The next layer takes the channel as it is.
    unsure : array of bool
        Its rounding hides which of the two is so.
    """

    wrong: Array
    unsure: Array


def asked(sample: Sample, factor: Array, unit: float) -> Answer:
    """Whether the next layer divides each channel by its factor.

    Parameters
    ----------
    sample : Sample
        The next layer, its input divided by `factor`: where it does not do so itself, its errors
        are as the channel's part in its outputs.
    factor : array (C,)
    unit : float
        Unit roundoff of its weights: their errors are the same for all pixels.
    """
    weight = np.where(sample.active, 1 / (sample.energy + 1e-300), 0.0)
    error = _in_scale(sample, weight, sample.residual)
    wrong, unsure = np.zeros((2, len(factor)), bool)
    taps = sample.kernel_size
    outputs, inputs = len(sample.y) // sample.groups, len(factor) // sample.groups
    for c in np.flatnonzero(factor != 1):
        group, place = divmod(int(c), inputs)
        rows, seen = (slice(n * m, (n + 1) * m) for n, m in ((group, outputs), (place, taps)))
        part = np.zeros_like(error)
        # (O/G, taps) @ (taps, P)
        part[rows] = (factor[c] - 1) * sample.weight[rows, seen] @ sample.columns[group, seen]
        weighted = weight * _in_scale(sample, weight, part)
        met, power = float((weighted * error).sum()), float((weighted * part).sum())
        variance = float(((weighted * error) ** 2).sum())
        variance += unit**2 * float(sample.met(weighted).sum())
        # of `met` being 0, not `power`
        odds = power * (power - 2 * met) / (2 * variance) if power > 0 else np.inf
        wrong[c], unsure[c] = odds < -_SURE, abs(odds) <= _SURE
    together = _is_one_scale(factor, unsure) or (
        unsure.any()
        and not sample.gated
        and _is_together_wrong(sample, weight, factor, unsure, unit)
    )
    if together:
        return Answer(wrong | unsure, np.zeros(len(factor), bool))
    return Answer(wrong, unsure)


def _is_one_scale(factor: Array, unsure: Array) -> bool:
    """Whether most channels have the same factor: one number that is wrong, not an equal network.

    Channels of equal networks are scaled each by its own.
    """
    off = factor[unsure] - 1
    return bool(2 * len(off) >= len(factor) and off.std() < _ALIKE * abs(off.mean()))


def _is_together_wrong(
    sample: Sample, weight: Array, factor: Array, chosen: Array, unit: float
) -> bool:
    """Whether the next layer surely takes these channels, together, as they are.

    A factor that all of them share is a scale of that layer's own outputs, which it has one by one;
    but where all of its rows have just this scale, its errors are the factor.
    """
    taps, outputs = sample.kernel_size, len(sample.y) // sample.groups
    off = np.repeat(np.where(chosen, factor - 1, 0.0), taps).reshape(sample.groups, 1, -1)
    taken = (sample.weight.reshape(sample.groups, outputs, -1) * off).reshape(sample.weight.shape)
    part = sample.times(taken)
    weighted = weight * part
    met, power = (np.einsum("op,op->o", weighted, v) for v in (sample.residual, part))
    variance = min(float(((met - power) ** 2).sum()), float((met**2).sum()))
    variance += unit**2 * float(sample.met(weighted).sum())
    odds = power.sum() * (power.sum() - 2 * met.sum()) / max(2 * variance, 1e-300)
    return bool(odds < -_SURE)


def _in_scale(sample: Sample, weight: Array, values: Array) -> Array:
    """Of values (O, P), what no factor of the layer's own outputs explains.

    They may be in another scale. Where there are gates each image has a factor: gates round.
    """
    if sample.gated:
        return replace(sample, residual=values).without_gate(weight)
    power = np.maximum((weight * sample.y**2).sum(axis=1), 1e-300)
    off = (weight * sample.y * values).sum(axis=1) / power
    return np.asarray(values - off[:, None] * sample.y)
