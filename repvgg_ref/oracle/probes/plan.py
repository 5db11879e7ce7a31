"""Which calls are made after the first, cheap ones that a dependence on the call shows in.

Every call differs from one before it in one respect only: the batch, the shape, or the contents.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.models.graph import Network
from repvgg_ref.oracle.bounds.precision import Precision
from repvgg_ref.oracle.programs.inputs import distinguishing_inputs

Kind = Literal[
    "state-between-calls",
    "batch-dependent",
    "square-assumed",
    "square-image",
    "odd-size",
    "tiny-size",
    "large-size",
    "scale-dependent",
    "sign-dependent",
    "constant-image",
    "depends-on-call",
]

_MANY = (64, 32)
_SQUARE, _OBLONG = (64, 64), (64, 48)
_ODD = (17, 23)  # the smallest such that most layers of a RepVGG see an odd size, and another
_TINY = (5, 3)
_LARGE = (136, 144)  # 128 is a usual tile, and 128 x 128 a usual buffer
_SCALE = 2.0**10  # exact in every format
_SEED = 7


@dataclass(frozen=True)
class Probe:
    """One call: what it is called, the bug it would show, and the batch that enters the network.

    Attributes
    ----------
    x : array, shape (N, C, H, W)
        As it is meant: a port that takes bytes gets the nearest, and tells what it made of them.
    like_first : tuple of int, or None
        Which image of the first call each image is; None for new ones.
    needs_floats : bool
        Whether bytes would be something else than the call says.
    """

    call: str
    kind: Kind
    x: Array
    like_first: tuple[int, ...] | None = None
    needs_floats: bool = False


def same_again(x: Array) -> Probe:
    """The first call once more."""
    return Probe("the same batch again", "state-between-calls", x, tuple(range(len(x))))


def same_at_last(x: Array) -> Probe:
    """The first call after all others: what those left behind must not matter."""
    label = "the first batch once more, after all others"
    return Probe(label, "state-between-calls", x, tuple(range(len(x))))


def batches(arch: Network, x: Array) -> Iterator[Probe]:
    """One image, if the first call had more, and three."""
    if len(x) > 1:
        yield Probe("one image of the batch", "batch-dependent", x[:1], (0,))
    yield Probe("three images", "batch-dependent", _images(arch, 3, _MANY))


def shapes(arch: Network, x: Array) -> Iterator[Probe]:
    """Single images of other sizes."""
    is_square = x.shape[2] == x.shape[3]
    if is_square:
        yield Probe(_sized("an oblong image", _OBLONG), "square-assumed", _images(arch, 1, _OBLONG))
    else:
        yield Probe(_sized("a square image", _SQUARE), "square-image", _images(arch, 1, _SQUARE))
    yield Probe(_sized("odd extents", _ODD), "odd-size", _images(arch, 1, _ODD))
    yield Probe(_sized("a tiny image", _TINY), "tiny-size", _images(arch, 1, _TINY))
    yield Probe(_sized("an image above 128 pixels", _LARGE), "large-size", _images(arch, 1, _LARGE))


def similar(arch: Network, x: Array) -> Iterator[Probe]:
    """Calls like the first, with one thing about it changed that a port may have relied on."""
    if len(x) > 1:
        yield Probe("one image of the batch", "batch-dependent", x[:1], (0,))
    is_square = x.shape[2] == x.shape[3]
    for kind, size in (("a square", _SQUARE), ("an oblong", _OBLONG)):
        changes_only_size = (size == _SQUARE) is is_square
        was_at_fault: Kind = "square-image" if is_square else "square-assumed"
        bug = "depends-on-call" if changes_only_size else was_at_fault
        yield Probe(_sized(f"{kind} image", size), bug, _images(arch, len(x), size))


def contents(arch: Network, shape: tuple[int, int, int], precision: Precision) -> Iterator[Probe]:
    """Other contents of a shape (N, H, W) that the port has seen before."""
    plain = _images(arch, shape[0], shape[1:])
    if precision.largest > _SCALE * 2.0**32:  # else right activations may overflow
        yield _of_floats(f"values {_SCALE:g} times as large", "scale-dependent", plain * _SCALE)
    yield _of_floats(f"values {_SCALE:g} times as small", "scale-dependent", plain / _SCALE)
    yield _of_floats("negative values only", "sign-dependent", -np.abs(plain))
    level = np.linspace(0.25, 0.75, arch.in_channels, dtype=np.float32)[:, None, None]
    yield Probe("a constant image", "constant-image", np.broadcast_to(level, plain.shape).copy())


def _images(arch: Network, batch: int, size: tuple[int, int]) -> Array:
    height, width = size
    return distinguishing_inputs(arch, batch=batch, height=height, width=width, seed=_SEED)


def _sized(text: str, size: tuple[int, int]) -> str:
    return f"{text}, {size[0]}x{size[1]}"


def _of_floats(call: str, kind: Kind, x: Array) -> Probe:
    return Probe(call, kind, x.astype(np.float32), needs_floats=True)
