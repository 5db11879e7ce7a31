"""Shares of images that a network gets right, and how sure they are."""

from __future__ import annotations

import math

Z95 = 1.959963984540054  # a normal variable lies within so many deviations in 95 of 100 cases


def wilson_interval(right: int, images: int, *, z: float = Z95) -> tuple[float, float]:
    """Where the true rate lies, as parts of 1, at 95 % confidence.

    The score interval of Wilson, JASA 22 (1927), 209-212: unlike the rate plus or minus some
    deviations it never leaves 0 ... 1 and is not empty at 0 or all hits.
    """
    if images == 0:
        return 0.0, 1.0
    rate, spread = right / images, z * z / images
    centre = (rate + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(rate * (1 - rate) / images + spread / (4 * images))
    # At none or all right an end is 0 or 1 but for rounding.
    low = 0.0 if right == 0 else max(0.0, centre - half)
    return low, 1.0 if right == images else min(1.0, centre + half)


def paired_interval(gained: int, lost: int, images: int, *, z: float = Z95) -> tuple[float, float]:
    """Where the true difference of two rates lies, as parts of 1, at 95 % confidence.

    Both rates were counted on the same images, so only those tell that one network gets right and
    the other does not. The adjusted interval of Bonett and Price, J. Educ. Behav. Stat. 37 (2012),
    479-488: one image more on either side, which keeps it from being empty where none differs.

    Parameters
    ----------
    gained, lost : int
        Images that only the second network gets right, and only the first.
    images : int
        All of them.
    """
    if images == 0:
        return -1.0, 1.0
    up, down = (gained + 1) / (images + 2), (lost + 1) / (images + 2)
    half = z * math.sqrt((up + down - (up - down) ** 2) / (images + 2))
    return max(-1.0, up - down - half), min(1.0, up - down + half)
