"""Which channels' factors the next layer divides by: each is asked of that layer's errors."""

from __future__ import annotations

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.arithmetic.sample import Sample

_SURE = 5.0  # standard errors
_HALF = 0.5  # of a factor's part in the next layer's outputs


def not_taken_back(sample: Sample, factor: Array) -> Array:
    """Channels that the next layer takes as they are, a mask (C,).

    Parameters
    ----------
    sample : Sample
        The next layer, its input divided by `factor`: where it does not do so itself, its errors
        are as the channel's part in its outputs.
    factor : array (C,)
    """
    error, weight = _in_scale(sample), np.where(sample.active, 1 / (sample.energy + 1e-300), 0.0)
    wrong = np.zeros(len(factor), bool)
    taps = sample.kernel_size
    outputs, inputs = len(sample.y) // sample.groups, len(factor) // sample.groups
    for c in np.flatnonzero(factor != 1):
        group, place = divmod(int(c), inputs)
        rows, seen = (slice(n * m, (n + 1) * m) for n, m in ((group, outputs), (place, taps)))
        part = (factor[c] - 1) * sample.weight[rows, seen] @ sample.columns[group, seen]  # (O/G, P)
        weighted = weight[rows] * part
        met, power = float((weighted * error[rows]).sum()), float((weighted * part).sum())
        spread = float(((weighted * error[rows]) ** 2).sum()) ** 0.5
        wrong[c] = met > _HALF * power > 0 and met > _SURE * spread
    return wrong


def _in_scale(sample: Sample) -> Array:
    """The errors of outputs that are brought to our scale, as it may be another, (O, P)."""
    y = np.where(sample.active, sample.y, 0.0)
    power = np.maximum((y**2).sum(axis=1), 1e-300)
    off = (y * sample.residual).sum(axis=1) / power
    return np.asarray(np.where(sample.active, sample.residual - off[:, None] * y, 0.0))
