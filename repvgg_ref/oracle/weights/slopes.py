"""Whether a channel's taps have one slope in common, whatever order they were formed in.

Off the shared taps each is its raw weight times the *same* number t, rounded at most twice after
t. Each tap therefore says in which interval t lies; if the intervals of a channel have no point in
common, some taps are wrong, by however little.
"""

from __future__ import annotations

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.fusion import FusedConv
from repvgg_ref.oracle.weights.arithmetic import UNITS, least_error
from repvgg_ref.oracle.weights.terms import Terms, tap_of

_ROUNDINGS = 2  # that follow a slope; of at most two units each
_PRODUCT = 1.0025


def inconsistent(terms: Terms, got: FusedConv, stored: str, more: int = 0) -> Array:
    """The taps, a mask (O, C/G, Kh, Kw), that no slope admits which most of their channel do.

    `stored` is their format; each has met `more` roundings than a conversion's.
    """
    odd = np.zeros(got.weight.shape, bool)
    alone = terms.alone
    for number, term in enumerate(terms.terms):
        taps = [tap for tap in alone if number in terms.on(tap)]
        if not taps or not term.branch.has_norm:
            continue
        raw = np.stack([terms.on(tap)[number] for tap in taps], -1).astype(np.float64)
        mine = np.stack([tap_of(got, tap) for tap in taps], -1).astype(np.float64)
        width = 2 * (_ROUNDINGS + more) * _PRODUCT * UNITS[stored]
        wrong = _outliers(raw.reshape(len(raw), -1), mine.reshape(len(raw), -1), stored, width)
        wrong = wrong.reshape(raw.shape)
        for at, tap in enumerate(taps):
            odd[:, :, tap[0], tap[1]] = wrong[..., at]
    return odd


def _outliers(raw: Array, taps: Array, stored: str, width: float) -> Array:
    """The same for rows of raw weights and taps, (O, K)."""
    room = width * np.abs(taps) + least_error(stored)
    usable = np.abs(raw) > 1e-30
    safe = np.where(usable, raw, 1.0)
    a, b = (taps - room) / safe, (taps + room) / safe
    low = np.where(usable, np.minimum(a, b), -np.inf)
    high = np.where(usable, np.maximum(a, b), np.inf)
    odd = np.zeros(raw.shape, bool)
    for o in np.flatnonzero(low.max(axis=1) > high.min(axis=1)):
        t = _most_common(low[o][usable[o]], high[o][usable[o]])
        odd[o] = usable[o] & ~((low[o] <= t) & (t <= high[o]))
    return odd


def _most_common(low: Array, high: Array) -> float:
    """A point that as many of the intervals as possible have."""
    ends = np.concatenate([low, high])
    steps = np.concatenate([np.ones(len(low)), -np.ones(len(high))])
    order = np.lexsort((-steps, ends))  # at a tie an interval opens before another closes
    return float(ends[order][int(np.argmax(np.cumsum(steps[order])))])
