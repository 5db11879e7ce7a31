"""Which picture comes when, and which random numbers it gets: by (seed, epoch, index) alone.

Philox is a counter-based generator, so every picture of every epoch has a stream of its own
without any state to hand on: the key is (seed, epoch), the counter's top word the picture. The
order of the epoch is stream 0, picture `i` has stream ``i + 1``; streams are 2^192 numbers apart.
"""

from __future__ import annotations

import numpy as np

from repvgg_ref.arrays import Array


def stream(seed: int, epoch: int, number: int) -> np.random.Generator:
    """The random numbers of one picture, or (0) of the order of an epoch."""
    return np.random.Generator(
        np.random.Philox(key=[seed % 2**64, epoch], counter=[0, 0, 0, number])
    )


def epoch_order(count: int, *, seed: int, epoch: int, shuffle: bool) -> Array:
    """The indices ``0 ... count - 1`` in the order in which this epoch visits them."""
    if not shuffle:
        return np.arange(count)
    return stream(seed, epoch, 0).permutation(count)


def rank_slice(count: int, *, rank: int, ranks: int) -> slice:
    """The contiguous part of a global batch of `count` images that belongs to `rank`."""
    return slice(count * rank // ranks, count * (rank + 1) // ranks)
