"""Borders and averages between the sums of a block, some images at a time, on all threads."""

from __future__ import annotations

from typing import Any

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.constructors import Pad
from repvgg_ref.blocks.run import Run
from repvgg_ref.cpu.training.convolutions import Convolution
from repvgg_ref.cpu.training.lines import Line
from repvgg_ref.cpu.training.passes import PIECE_NUMBERS
from repvgg_ref.cpu.workers import memory
from repvgg_ref.cpu.workers.pool import share_out


def forward(step: Any, x: Array, run: Run) -> tuple[Array, Any]:
    """``step.forward`` for x (N, H, W, C), contiguous, with what `backward` needs."""
    stride = getattr(step, "stride", (1, 1))
    size = [
        (n + grown - 1) // s + 1
        for n, grown, s in zip(x.shape[1:3], step.growth, stride, strict=True)
    ]
    y = memory.empty((len(x), *size, x.shape[3]), x.dtype)
    caches: dict[int, Any] = {}

    def some(worker: int, place: int) -> None:
        part = _images(x, place)
        y[part], caches[place] = step.forward(x[part], run)

    share_out(_parts(x), some)
    return y, (x.shape, caches[0])


def backward(step: Any, grad_y: Array, cache: Any, run: Run) -> Array:
    """``step.backward``."""
    shape, kept = cache
    grad_x = memory.empty(shape, grad_y.dtype)

    def some(worker: int, place: int) -> None:
        part = _images(grad_x, place)
        grad_x[part] = step.backward(grad_y[part], kept, run)

    share_out(_parts(grad_x), some)
    return grad_x


def border_of(step: Any) -> int:
    """How wide a step's border is, if that is all that it adds, on all sides alike."""
    alike = isinstance(step, Pad) and step.width[0] == step.width[1]
    return int(step.width[0]) if alike else 0


def inside(conv: Convolution, border: int) -> Convolution:
    """`conv` as one of what is inside a border: the border is constant, and has no gradient."""
    if not border or isinstance(conv, Line):  # a line is centred: nothing lies around its x
        return conv
    at = slice(border, -border)
    return conv._replace(x=conv.x[:, at, at], padding=conv.padding + border)


def _parts(x: Array) -> int:
    return -(-len(x) // _together(x))


def _images(x: Array, place: int) -> slice:
    count = _together(x)
    return slice(place * count, (place + 1) * count)


def _together(x: Array) -> int:
    """So many images that they lie in cache together."""
    return max(1, PIECE_NUMBERS * len(x) // x.size)
