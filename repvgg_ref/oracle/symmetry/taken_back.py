"""Which channels' factors the next layer divides by: each is asked of that layer's errors."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.arithmetic.planes import Planes
from repvgg_ref.oracle.arithmetic.sample import Sample

# Of odds, the logarithm that settles it: by chance 4 channels in a million are as far from what
# they are, at worst.
_SURE = 10.0
_ALIKE = 0.15  # of factors less 1, which are one scale
_MOST = 0.75  # of the channels; one that is seldom active has its factor in rounding


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
    # the layer's own outputs may be in another scale; where there are gates, each image's
    planes = Planes(sample, weight)
    error = planes.without_scales(sample.residual)
    wrong, unsure = np.zeros((2, len(factor)), bool)
    taps = sample.kernel_size
    outputs, inputs = len(sample.y) // sample.groups, len(factor) // sample.groups
    for c in np.flatnonzero(factor != 1):
        group, place = divmod(int(c), inputs)
        rows, seen = (slice(n * m, (n + 1) * m) for n, m in ((group, outputs), (place, taps)))
        part = np.zeros_like(error)
        # (O/G, taps) @ (taps, P)
        part[rows] = (factor[c] - 1) * sample.weight[rows, seen] @ sample.columns[group, seen]
        weighted = weight * planes.without_scales(part)
        odds = _odds(sample, weighted, part, error, unit)
        wrong[c], unsure[c] = odds < -_SURE, abs(odds) <= _SURE
    if _is_one_scale(factor, unsure):
        return Answer(wrong | unsure, np.zeros(len(factor), bool))
    return Answer(wrong, unsure)


def _odds(sample: Sample, weighted: Array, part: Array, error: Array, unit: float) -> float:
    """The logarithm of the odds that a channel's `part` (O, P) is not among the errors.

    Exact where it is near what settles it, else a bound on the same side: what errors of weights
    add takes a product as large as the layer. It is at least 0, and at most what it would be if the
    errors at all outputs added up (Minkowski's inequality).
    """
    met, power = float((weighted * error).sum()), float((weighted * part).sum())
    if not power > 0:  # of `met` being 0, not `power`
        return np.inf
    evidence = power * (power - 2 * met) / 2
    rounding = float(((weighted * error) ** 2).sum())
    if abs(evidence) <= _SURE * rounding:
        return evidence / rounding
    added = (np.abs(weighted) * np.sqrt(sample.energy)).sum(axis=1)
    most = rounding + unit**2 * float((added**2).sum())
    if abs(evidence) > _SURE * most:
        return evidence / most
    return evidence / (rounding + unit**2 * float(sample.met(weighted).sum()))


def _is_one_scale(factor: Array, unsure: Array) -> bool:
    """Whether most channels have the same factor: one number that is wrong, not an equal network.

    Channels of equal networks are scaled each by its own.
    """
    off = factor[unsure] - 1
    if 2 * len(off) < len(factor):
        return False
    middle = np.median(off)
    return bool((np.abs(off - middle) < _ALIKE * abs(middle)).mean() >= _MOST)
