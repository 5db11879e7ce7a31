"""Which channels' factors the next layer divides by: its errors are asked of each, and of all."""

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
    alone = planes.by_slope((weight > 0).astype(float)) == 1  # an output that is a scale itself
    weight = np.where(alone[:, planes.slopes_of], 0.0, weight)
    planes = Planes(sample, weight)
    error = planes.without_scales(sample.residual)

    def odds(part: Array, error: Array) -> float:
        return _odds(sample, weight * planes.without_scales(part), part, error, unit)

    scaled = factor != 1
    wrong, unsure = np.zeros((2, len(factor)), bool)
    for c in np.flatnonzero(scaled):
        found = odds(_part(sample, int(c), factor), error)
        wrong[c], unsure[c] = found < -_SURE, abs(found) <= _SURE
    # Asked alone, a channel's part may be hidden by those of others: all parts of a common factor
    # add up to a scale of the layer, and each of them seems to be taken back.
    rest = scaled & ~wrong
    left = error - planes.without_scales(_parts(sample, np.where(wrong, factor, 1.0)))
    together = odds(_parts(sample, np.where(rest, factor, 1.0)), left)
    if together < -_SURE:
        return Answer(scaled, np.zeros_like(scaled))
    if together <= _SURE:
        unsure = rest
    if _is_one_scale(factor, unsure):
        return Answer(wrong | unsure, np.zeros_like(scaled))
    return Answer(wrong, unsure)


def _part(sample: Sample, c: int, factor: Array) -> Array:
    """What the outputs (O, P) hold more of channel `c` if they are given it as it is."""
    part = np.zeros(sample.y.shape)
    taps = sample.kernel_size
    outputs, inputs = len(sample.y) // sample.groups, len(factor) // sample.groups
    group, place = divmod(c, inputs)
    rows, seen = (slice(n * m, (n + 1) * m) for n, m in ((group, outputs), (place, taps)))
    # (O/G, taps) @ (taps, P)
    part[rows] = (factor[c] - 1) * sample.weight[rows, seen] @ sample.columns[group, seen]
    return part


def _parts(sample: Sample, factor: Array) -> Array:
    """The same of all channels together."""
    of_taps = np.repeat((factor - 1).reshape(sample.groups, -1), sample.kernel_size, axis=1)
    outputs = len(sample.weight) // sample.groups
    return sample.times(sample.weight * np.repeat(of_taps, outputs, axis=0))  # (O, K)


def _odds(sample: Sample, weighted: Array, part: Array, error: Array, unit: float) -> float:
    """The logarithm of the odds that a `part` (O, P) of channels is not among the errors.

    Exact where it is near what settles it, else a bound on the same side: what errors of weights
    add takes a product as large as the layer. It is at least 0, and at most what it would be if the
    errors at all outputs added up (Minkowski's inequality).
    """
    met, power = float((weighted * error).sum()), float((weighted * part).sum())
    if not power > 0:  # no output shows it, or it is a scale of each
        return 0.0 if (sample.active & (part != 0)).any() else np.inf
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
