"""Which worker does what: a convolution as stages of independent items, for every algorithm.

An algorithm cuts the batch into *strips*, the fewest output rows that it computes together, and
reads them (gathers windows, transforms tiles), multiplies them by packed weights and writes them
(transforms back, adds the bias, applies ReLU). `Convolution` shares that out in one of two ways:

- *private*: each worker takes blocks of strips through all steps in its own scratch, which stays in
  its second-level cache. Nobody waits for anybody. For layers with small weights.
- *shared*: all workers do one step, then the next, on one scratch. Each weight is then read once
  instead of once a block, and a product has all rows of the batch. For large weights, and for
  layers with few pixels, such as most of batch 1: products are shared out by their *parts*. Each
  step is a stage of its own, and on threads a stage costs as much as a small product.

Where each worker is a process (`crew`), one packs only the shared weights that it multiplies.

Packed weights are kept, or, where memory is short, *streamed*: a worker packs one part of them,
multiplies by it while it is in cache, and lets it go.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache, partial
from typing import Any, NamedTuple, Protocol

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.cpu.convolution import gemm
from repvgg_ref.cpu.workers.pool import Pool, Stage, Step, portion, prepared

# Weights that every worker may read, once a block: on threads that is cheaper than two more stages.
PRIVATE_WEIGHTS, PRIVATE_WEIGHTS_OF_PROCESSES = 1_200_000, 300_000
SHARED_NUMBERS = 12_000_000  # scratch of all threads together: 48 MB of float32
ITEMS_A_THREAD = 4
STREAMED_NUMBERS = 1_200_000  # of packed weights that a worker makes at once, if it keeps none

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
    def pairs(self) -> int:
        """Pairs of an input and an output channel that meet."""
        return self.channels * self.outputs // self.groups

    @property
    def macs(self) -> int:
        """Multiply-accumulates in direct form; all groups, all images."""
        return self.images * self.height * self.width * self.kernel**2 * self.pairs

    @property
    def reach(self) -> tuple[int, int]:
        """Height and width that the windows cover, border included."""
        span = self.dilation * (self.kernel - 1) + 1
        return (self.height - 1) * self.stride + span, (self.width - 1) * self.stride + span


class Layout(NamedTuple):
    """How an algorithm covers the output."""

    strips: int  # in an image
    padded: tuple[int, int]  # height and width of the input that they read, border included
    inner: int  # the inner dimension of the product, in one group


class Task(NamedTuple):
    """From where to where, and with what."""

    x: Array  # (N, H, W, C)
    y: Array  # (N, Ho, Wo, O)
    bias: Array | None  # (Wo * O,), repeated for each pixel of a row
    relu: bool
    border: int  # pixels of zeros around x that it does not hold itself


class Block(NamedTuple):
    """Strips of the batch that are in scratch together."""

    task: Task
    strips: range
    scratch: Any  # what the algorithm's `lay` returned

    def within(self, strips: range) -> slice:
        """Where some of them are, counted from the first of the block."""
        return slice(strips.start - self.strips.start, strips.stop - self.strips.start)


class Staged(Protocol):
    """What plans ask of a convolution with its weights packed."""

    shape: ConvShape
    shared: bool
    padded: tuple[int, int]

    @property
    def scratch(self) -> int:
        """Numbers of scratch that the stages use, in all that is in this process."""

    def stages(
        self, x: Array, y: Array, bias: Array | None, arena: Array, *, relu: bool, border: int = 0
    ) -> Iterator[Stage]:
        """The work, done stage after stage: from (N, H, W, C) to (N, Ho, Wo, O)."""


class Convolution(ABC):
    """An algorithm with its weights packed, for one shape and one number of workers.

    Parameters
    ----------
    weight : (O, C/G, K, K) array
    m : int
        Outputs of a tile in a dimension; 0 where there are no tiles.
    packed : dict
        Where its packed weights are found, or put, under the layer's `name`.
    pool : Pool, optional
        Its threads pack the weights together; without one the caller packs alone.
    seat : int, optional
        Which of the `threads` this process is; None if it is all of them.
    streamed : bool
        Whether it keeps no packed weights, but packs `weight` a part at a time in every run.
    """

    writes = True
    """Whether to write strips is a step of its own, begun when all their products are there."""
    part_axis = 0
    """Which axis of the packed weights counts the parts of the product."""

    def __init__(
        self,
        shape: ConvShape,
        weight: Array,
        m: int,
        threads: int,
        packed: Packed,
        name: str = "",
        pool: Pool | None = None,
        seat: int | None = None,
        *,
        streamed: bool = False,
    ) -> None:
        self.shape, self.m, self.threads, self.seat = shape, m, threads, seat
        self.streamed = streamed
        an_image, self.padded, self.inner = self._layout()
        self.strips = shape.images * an_image
        self.shared = streamed or self.strips < threads or self._is_heavy()
        blocks = -(-self.strips // max(1, self._strips_together()))
        if not self.shared:
            blocks = -(-blocks // threads) * threads
        self.blocks = min(blocks, self.strips)
        self.block = -(-self.strips // self.blocks)  # strips of the largest
        self.width = self._panel_width()
        mine = range(self._parts)
        if self.shared and seat is not None:
            mine = portion(self._parts, seat, threads)
        self._kept, self._first = weight, 0
        if not streamed:
            key = (name, type(self), m, self.width, mine)
            if key not in packed:
                packed[key] = self._pack(weight, mine, pool)
            self._kept, self._first = packed[key], mine.start
        self._numbers = self._scratch_numbers(self.block)

    @property
    def scratch(self) -> int:
        """Numbers of scratch that the stages use, in all that is in this process."""
        one = self.shared or self.seat is not None
        return self._numbers * (1 if one else self.threads)

    def stages(
        self, x: Array, y: Array, bias: Array | None, arena: Array, *, relu: bool, border: int = 0
    ) -> Iterator[Stage]:
        """The work, done stage after stage: from (N, H, W, C) to (N, Ho, Wo, O).

        `border` is how many pixels of zeros lie around `x` that it does not hold itself; 0 where
        it is a buffer of the size `padded`. Without a bias `y` is contiguous and there is no ReLU.
        """
        row = None if bias is None else np.tile(bias, self.shape.width)
        task = Task(x, y, row, relu, border)
        if self.shared:
            for start in range(0, self.strips, self.block):
                strips = range(start, min(start + self.block, self.strips))
                yield from self._together(Block(task, strips, self._lay(arena, task, strips)))
            return

        def alone(worker: int, item: int) -> list[Step]:
            strips = portion(self.strips, item, self.blocks)
            own = arena[self._numbers * (worker if self.seat is None else 0) :]
            block = Block(task, strips, self._lay(own, task, strips))
            product = self._multiply(block, range(self._parts), self._kept)
            return [*self._read(block, strips), *product, *self._write(block, strips)]

        yield prepared(self.blocks, alone)

    def _together(self, block: Block) -> Iterator[Stage]:
        """One block by all workers: they share its strips, then the parts of its product."""
        strips = block.strips
        items = self._items(self._rows(strips))
        few, parts = min(items, len(strips)), self._shares(items)

        def some(item: int) -> range:
            mine = portion(len(strips), item, few)
            return strips[mine.start : mine.stop]

        yield prepared(few, lambda worker, item: self._read(block, some(item)))
        yield prepared(len(parts), lambda worker, item: self._product(worker, block, parts[item]))
        if self.writes:
            yield prepared(few, lambda worker, item: self._write(block, some(item)))

    def _product(self, worker: int, block: Block, parts: range) -> list[Step]:
        """Some parts of a shared block's product, by weights packed before or packed now."""
        if self.streamed:
            return [partial(self._stream, block, parts)]
        first = parts.start - self._first
        mine = (slice(None),) * self.part_axis + (slice(first, first + len(parts)),)
        return self._multiply(block, parts, self._kept[mine])

    def _stream(self, block: Block, parts: range) -> None:
        for step in self._multiply(block, parts, self._pack(self._kept, parts, None)):
            step()

    def _items(self, rows: int) -> int:
        """Into how many items a step is cut.

        On threads into more than these, so that a slow one can do fewer. One thread needs no items,
        and a step of few rows is over before it is shared out. A process has one item.
        """
        fixed = self.threads == 1 or self.seat is not None or rows < 100
        return self.threads if fixed else ITEMS_A_THREAD * self.threads

    # What follows is the algorithm's own.

    @abstractmethod
    def _layout(self) -> Layout:
        """How the output is covered."""

    @property
    def _parts(self) -> int:
        """How many parts the product has: here panels of outputs."""
        return self.shape.outputs // self.width

    @property
    def _packed_numbers(self) -> int:
        """How many numbers the packed weights of all parts are."""
        return self.inner * self.shape.outputs

    @abstractmethod
    def _is_heavy(self) -> bool:
        """Whether it has so many weights that they should be read once, by workers together."""

    @abstractmethod
    def _strips_together(self) -> int | Fraction:
        """How many strips may be in scratch together, on the average."""

    def _panel_width(self) -> int:
        """Columns of a panel of the packed weights.

        Shared weights have a panel for each worker and no more, since BLAS packs all rows for it;
        streamed ones as many as keep a panel in cache.
        """
        groups, outputs = self.shape.groups, self.shape.outputs // self.shape.groups
        if self.streamed:
            most = max(1, STREAMED_NUMBERS * self.shape.outputs // self._packed_numbers)
            return next(n for n in range(min(most, outputs), 0, -1) if outputs % n == 0)
        if self.shared:
            return outputs // math.gcd(outputs, -(-self.threads // groups))
        return gemm.panel_width(self.inner, outputs, self.block * self.shape.width)

    def _shares(self, items: int) -> list[range]:
        """Which parts of the product make up each of some `items`: here each part is one."""
        return [range(part, part + 1) for part in range(self._parts)]

    @abstractmethod
    def _pack(self, weight: Array, parts: range, pool: Pool | None) -> Array:
        """The weights of some parts as `multiply` wants them."""

    @abstractmethod
    def _rows(self, strips: range) -> int:
        """How many rows of the product some strips are."""

    @abstractmethod
    def _scratch_numbers(self, strips: int) -> int:
        """How many numbers `lay` needs for so many strips."""

    @abstractmethod
    def _lay(self, arena: Array, task: Task, strips: range) -> Any:
        """The scratch of a block, laid into the flat `arena`."""

    @abstractmethod
    def _read(self, block: Block, strips: range) -> list[Step]:
        """From x to the left side of the product, for some strips of a block."""

    @abstractmethod
    def _multiply(self, block: Block, parts: range, packed: Array) -> list[Step]:
        """Some parts of the product, by their packed weights; all if it is not `shared`."""

    def _write(self, block: Block, strips: range) -> list[Step]:
        """From the product to y, for some strips of a block; nothing if `multiply` does that."""
        return []


def private_weights(seat: int | None) -> int:
    """How many weights each worker may read by itself."""
    return PRIVATE_WEIGHTS if seat is None else PRIVATE_WEIGHTS_OF_PROCESSES


def add(x: Array, other: Array, scratch: Array, out: Array, *, relu: bool) -> list[Step]:
    """Steps for ``out = x + other``; where ReLU follows, the sum is in `scratch` in between."""
    if not relu:
        return [partial(np.add, x, other, out=out)]
    return [partial(np.add, x, other, out=scratch), rectified(scratch, out)]


def rectified(x: Array, out: Array) -> Step:
    """ReLU of (..., pixels, channels), or of one dimension.

    Against an array of zeros, since against a number NumPy's maximum has no vector loop: a row of
    pixels in a border takes 0.12 ns a number in place of 0.45.
    """
    shape = out.shape[-2:]
    return partial(np.maximum, x, _zeros(math.prod(shape), out.dtype).reshape(shape), out=out)


@lru_cache(maxsize=64)
def _zeros(count: int, dtype: Any) -> Array:
    zeros = np.zeros(count, dtype)
    zeros.flags.writeable = False
    return zeros
