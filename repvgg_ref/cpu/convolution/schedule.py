"""Which thread does what: a convolution as stages of independent items.

Here is what all algorithms have in common; `schedule_direct`, `schedule_winograd` and
`schedule_stride_2` have one each. Two ways to share a layer between threads, for any of them:

- *private*: each thread takes blocks of rows through all steps in its own scratch, which stays in
  its second-level cache. No thread waits for another. For layers with small weights.
- *shared*: all threads do one step, then the next, on one scratch. Each weight is then read once
  instead of once a block, and a product has all rows of the batch. For large weights, and for
  layers with few pixels, such as most of batch 1: products are shared by position or output part.
  Each step is a stage of its own, which on threads costs 70 microseconds: waking one, twice.

Where each worker is a process (`crew`), one packs only the shared weights that it multiplies.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.cpu.workers.pool import Stage

# Weights that every worker may read, once a block: on threads that is cheaper than two more stages.
PRIVATE_WEIGHTS, PRIVATE_WEIGHTS_OF_PROCESSES = 1_200_000, 300_000
SHARED_NUMBERS = 12_000_000  # scratch of all threads together: 48 MB of float32
ITEMS_A_THREAD = 4

Row = Array | None
"""A bias repeated for each pixel of a row, (W * O,), if there is one."""

Packed = dict[tuple[Any, ...], Array]
"""Packed weights by layer, algorithm and form, so that plans of several shapes share them."""


@dataclass(frozen=True)
class ConvShape:
    """A convolution with padding ``dilation * (K // 2)``: `height` and `width` of its output."""

    images: int
    height: int
    width: int
    channels: int
    outputs: int
    kernel: int = 3
    stride: int = 1
    dilation: int = 1
    groups: int = 1

    @property
    def border(self) -> int:
        """Width of the border of zeros that the input has on each side."""
        return self.dilation * (self.kernel // 2)

    @property
    def macs(self) -> int:
        """Multiply-accumulates in direct form; all groups, all images."""
        pairs = self.channels * self.outputs // self.groups
        return self.images * self.height * self.width * self.kernel**2 * pairs

    @property
    def reach(self) -> tuple[int, int]:
        """Height and width that the windows cover, border included."""
        span = self.dilation * (self.kernel - 1) + 1
        return (self.height - 1) * self.stride + span, (self.width - 1) * self.stride + span


class Convolution(Protocol):
    """An algorithm with its weights packed, for one shape and one number of threads."""

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width the input buffer must have, at least."""

    @property
    def shared(self) -> bool:
        """Whether all workers use one scratch."""

    @property
    def scratch(self) -> int:
        """Numbers of scratch that the stages use, in all that is in this process."""

    def stages(
        self, x: Array, y: Array, bias: Array | None, arena: Array, *, relu: bool, border: int = 0
    ) -> Iterator[Stage]:
        """The work, done stage after stage: from (N, H, W, C) to (N, Ho, Wo, O).

        `border` is how many pixels of zeros lie around `x` that it does not hold itself; 0 where
        it is a buffer of the size `padded`. Without a bias `y` is contiguous and there is no ReLU.
        """


def scratches(shared: bool, threads: int, seat: int | None) -> int:
    """How many scratches there are in this process: one that is shared, or one a worker here."""
    return 1 if shared or seat is not None else threads


def scratch_of(worker: int, seat: int | None) -> int:
    """Which of them is that of `worker`."""
    return worker if seat is None else 0


def share(threads: int, seat: int | None, rows: int) -> int:
    """Into how many items a step is cut.

    On threads into more than these, so that a slow one can do fewer. One thread needs no items, and
    a step of few rows is over before it is shared out. A process has one item.
    """
    fixed = threads == 1 or seat is not None or rows < 100
    return threads if fixed else ITEMS_A_THREAD * threads


def bias_row(bias: Array | None, width: int) -> Row:
    """(O,) -> (W * O,), the bias of every number in a row of pixels."""
    return None if bias is None else np.tile(bias, width)
