"""The algorithms of convolution: which there are, which fits what, and how one is made."""

from __future__ import annotations

from typing import Literal, get_args

from repvgg_ref.arrays import Array
from repvgg_ref.cpu.convolution.depthwise import DepthwiseConvolution, is_depthwise
from repvgg_ref.cpu.convolution.direct import DirectConvolution
from repvgg_ref.cpu.convolution.interleaved import Interleaved
from repvgg_ref.cpu.convolution.schedule import Convolution, ConvShape, Packed, Staged
from repvgg_ref.cpu.convolution.streamed import StreamedWinograd
from repvgg_ref.cpu.convolution.winograd import WinogradConvolution
from repvgg_ref.cpu.convolution.winograd_stride_2 import Stride2Convolution
from repvgg_ref.cpu.workers.pool import Pool
from repvgg_ref.errors import BackendError, did_you_mean
from repvgg_ref.exact.points import POINTS, POINTS_OF_STRIDE_2

Algorithm = Literal["direct", "winograd2", "winograd4", "winograd5", "winograd6", "winograd7"]
ALGORITHMS: tuple[Algorithm, ...] = get_args(Algorithm)
# Images of 224 pixels have layers of 7, 14, 28 and 56: F(7, 3) covers them with a fifth fewer
# products than F(4, 3) and F(5, 3), whose last tiles reach beyond the image, for four times the
# rounding error. F(6, 3) gains nothing there.
DEFAULT_CHOICES: tuple[Algorithm, ...] = tuple(a for a in ALGORITHMS if a != "winograd6")
# A training step's rounding errors flip ReLUs and so disturb gradients: with F(7, 3) four times as
# much as with these, which disturb them as little as direct form does.
TRAINING_CHOICES: tuple[Algorithm, ...] = ("direct", "winograd2", "winograd4")


def require_algorithm(name: str) -> None:
    """Raise `BackendError` unless `name` is an algorithm, or leaves the choice to the engine."""
    names = ("auto", "measure", *ALGORITHMS)
    if name not in names:
        raise BackendError(
            "there is no such algorithm of convolution",
            got=repr(name),
            wanted=", ".join(names),
            advice=did_you_mean(str(name), names),
        )


def tile_of(algorithm: Algorithm) -> int:
    """The m of F(m, 3); 0 for direct."""
    return 0 if algorithm == "direct" else int(algorithm.removeprefix("winograd"))


def applies(algorithm: Algorithm, shape: ConvShape) -> bool:
    """Whether `algorithm` can compute `shape` at all.

    A dilated one by small tiles only: the oracle does not know the errors of large ones there.
    """
    if algorithm == "direct":
        return True
    known = {1: POINTS, 2: POINTS_OF_STRIDE_2}.get(shape.stride, {})
    if is_depthwise(shape):  # nothing to multiply but numbers
        return False
    if shape.dilation > 1 and (shape.stride > 1 or algorithm not in TRAINING_CHOICES):
        return False
    return shape.kernel == 3 and tile_of(algorithm) in known


def make_convolution(
    shape: ConvShape,
    weight: Array,
    algorithm: Algorithm,
    threads: int,
    packed: Packed,
    name: str,
    pool: Pool | None = None,
    seat: int | None = None,
    *,
    streamed: bool = False,
) -> Staged:
    """`algorithm` for `shape`; arguments as for `Convolution`.

    Of a dilated one each process would need the others' pictures: there it is direct.
    """
    if shape.dilation > 1 and algorithm != "direct":
        if seat is None:
            return Interleaved(
                shape,
                lambda inner: make_convolution(
                    inner, weight, algorithm, threads, packed, name, pool, streamed=streamed
                ),
            )
        algorithm = "direct"
    made: type[Convolution] = DepthwiseConvolution if is_depthwise(shape) else DirectConvolution
    if algorithm != "direct":
        tiled = StreamedWinograd if streamed else WinogradConvolution
        made = tiled if shape.stride == 1 else Stride2Convolution
    m = tile_of(algorithm)
    return made(shape, weight, m, threads, packed, name, pool, seat, streamed=streamed)
