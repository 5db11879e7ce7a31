"""Whether errors that look like rounding are random, or a pattern that stands there every time.

Rounding errs by chance: from image to image, from channel to channel and two pixels on nothing of
it comes back. What somebody adds to the outputs (a checkerboard, a mask, a ramp) does.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.arithmetic.sample import Sample

_FEWEST = 64  # pairs that a correlation needs
_SURE = 8.0  # standard errors
# Of right ports the errors of an image or of a channel say nothing of the next one's; within the
# tiles of a fast algorithm neighbours err alike by half.
_COMMON, _NEAR = 0.3, 0.8
_MOST_BITS = 21  # of a significand: of finer roundings the noise of sums leaves nothing
_DIFFERENT = 16  # values that lie on a grid by chance once in 2**(3 * 16)


def fixed_patterns(sample: Sample, residual: Array) -> tuple[str, ...]:
    """What the errors have in common, in words; nothing if they may be random.

    Parameters
    ----------
    residual : (O, P) array
        Of the sample, without what a scale and a bias explain.
    """
    sizes = np.abs(sample.y) + 1e-300, np.sqrt(sample.energy) + 1e-300
    relative = [residual / size for size in sizes]
    return tuple(
        says
        for says, least, first, second in _pairs(sample)
        if any(_correlation(each, first, second, sample.active) > least for each in relative)
    )


def bits_kept(y_hat: Array, unit: float) -> int:
    """How many bits of significand all values have at most, if a port's numbers have more; else 0.

    Values come in float64, of any shape, and are those of float32 to float64's rounding. `unit` is
    the unit roundoff of the port's numbers.
    """
    single = np.abs(y_hat[np.isfinite(y_hat)]).astype(np.float32)
    values = np.unique(single[single > 0]).astype(np.float64)
    if len(values) < _DIFFERENT:
        return 0
    whole = np.ldexp(np.frexp(values)[0], _MOST_BITS)
    if not (whole == np.rint(whole)).all():
        return 0
    lowest = int(np.bitwise_or.reduce(whole.astype(np.int64)))
    bits = _MOST_BITS + 1 - (lowest & -lowest).bit_length()
    return bits if 2.0**-bits > unit else 0


OF_CHANNELS = "its errors are alike in all channels"  # which those of weights never are
_Index = tuple[Array, Array]  # of a channel and of a sampled place, for each pair


def _pairs(sample: Sample) -> Iterator[tuple[str, float, _Index, _Index]]:
    """Outputs that have nothing in common if errors are random: words, limit, ones and others."""
    channels, places = (np.arange(n)[:, None] for n in sample.y.shape)
    places = places.T
    at = {
        key: p
        for p, key in enumerate(
            zip(*(a.tolist() for a in (sample.images, sample.rows, sample.across)), strict=True)
        )
    }
    for says, least, step in (
        ("its errors come back from image to image", _COMMON, (1, 0, 0)),
        ("its errors come back every second row", _NEAR, (0, 2, 0)),
        ("its errors come back every second column", _NEAR, (0, 0, 2)),
    ):
        found = [
            (p, q)
            for (image, row, column), p in at.items()
            if (q := at.get((image + step[0], row + step[1], column + step[2]))) is not None
        ]
        if found:
            one, other = np.array(found).T
            yield says, least, (channels, one[None]), (channels, other[None])
    if len(channels) > 1:
        one, other = (channels[:-1], places), (channels[1:], places)
        yield OF_CHANNELS, _COMMON, one, other


def _correlation(values: Array, first: _Index, second: _Index, active: Array) -> float:
    """Of the pairs that are active; 0 if it may be chance."""
    on = active[first] & active[second]
    one, other = values[first][on], values[second][on]
    if len(one) < _FEWEST:
        return 0.0
    product = one * other
    error = float(np.sqrt((product**2).sum()))
    if not float(product.sum()) > _SURE * error:
        return 0.0
    return float(product.sum() / np.sqrt((one**2).sum() * (other**2).sum()))
