"""What is read off a candidate's numbers: whose scale a channel has, and which channel it is."""

from __future__ import annotations

import numpy as np
import scipy  # its parts are loaded when they are first used: a second of start-up

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.integers.program import IntegerProgram

MOST_MATCHED = 4096  # channels
_LOOKED_AT = 256  # numbers of a channel, those with the largest sums


def scales_taken(program: IntegerProgram, x: Array, y_hat: Array | None) -> Array | None:
    """The channel whose scale gives what each channel of the candidate has; its own if it does.

    None if some channel is as no scale of the layer makes it.
    """
    finish = program.finish
    if y_hat is None or y_hat.shape[1] > MOST_MATCHED or finish.order is not None:
        return None
    sums = program.sums.of(x)
    if sums.shape != y_hat.shape:
        return None
    wrong = (finish.of(sums) != y_hat).any(axis=(0, 2, 3))
    places = np.arange(len(wrong))
    for c in np.flatnonzero(wrong):
        own, there = sums[:, c].ravel(), y_hat[:, c].ravel()
        some = np.argsort(-np.abs(own), kind="stable")[:_LOOKED_AT]
        # The same sums in every channel: (1, O, numbers, 1)
        given = np.broadcast_to(own[some][None, None, :, None], (1, len(wrong), len(some), 1))
        fits = (finish.of(given)[0, :, :, 0] == there[some]).all(axis=1)
        if not fits.any():
            return None
        places[c] = np.flatnonzero(fits)[0]
    return places


def order_of(y: Array, y_hat: Array) -> Array:
    """The channel of `y` that each channel of `y_hat` resembles most, each once."""
    a, b = (each.swapaxes(0, 1).reshape(each.shape[1], -1) for each in (y, y_hat))
    some = np.linspace(0, a.shape[1] - 1, min(a.shape[1], 512)).astype(int)
    a, b = a[:, some].astype(np.float32), b[:, some].astype(np.float32)
    apart = (b**2).sum(1)[:, None] + (a**2).sum(1)[None] - 2 * b @ a.T
    found: Array = scipy.optimize.linear_sum_assignment(apart)[1]
    return found
