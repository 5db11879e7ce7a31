"""Does the fused convolution equal its branches? Checked block by block, with a bound.

One output pixel of a convolution is a product of the kernel with the window below the pixel. On a
few random windows the expression is evaluated as it was trained (convolution, then batch norm, then
the sum) and the fused kernel as it will be written, both in float64. They may differ by the
rounding of the fused taps and by float64's own error, no more:

    |y_fused - y_branches| <= (u + 4 n u64) * (magnitudes of all terms)

with u the unit roundoff of the written type and n the terms of one output (Higham, Accuracy and
Stability of Numerical Algorithms, section 3.1); a fused tap is no larger than its terms together.
Magnitudes need few digits, so they are summed in float32 where that loses nothing else. The windows
are dense and signed, so a wrong tap, statistic or index shows in the output; such a random product
misses one with probability zero (Freivalds, 1977).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import singledispatch
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.catalogue import expression, fused_conv, part_of
from repvgg_ref.blocks.constructors import Bias, Concat, FormulaConv, Scale, Slice, spread
from repvgg_ref.blocks.form import Lattice, Pair
from repvgg_ref.blocks.fusion import FusedConv, row_chunks
from repvgg_ref.blocks.linear import Chain, Conv, Identity, Norm, Sum
from repvgg_ref.blocks.priors import Factor
from repvgg_ref.blocks.run import EVERYTHING, NORM_VECTORS, Linear, Reader
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.errors import ReportedError

_WINDOWS = 2
_U64 = 2.0**-53
_PIECE = 1 << 17  # numbers of some eight bytes that stay in a core's L2 cache
_LEAST = 1e-25  # beside it what float32 loses below its range is nothing


class Windows(NamedTuple):
    """What kernels meet, (C, rows, columns, windows), and the magnitudes that made it.

    `first` is the offset of the first pixel.
    """

    values: Array
    sizes: Array
    first: Pair

    def under(self, lattice: Lattice, channels: slice, shift: Pair) -> tuple[Array, Array]:
        """Both at a lattice's offsets plus `shift`, (channels, Kh, Kw, windows)."""
        rows, columns = (
            slice(start, start + step * (size - 1) + 1, step)
            for start, step, size in zip(
                (lattice.first[axis] + shift[axis] - self.first[axis] for axis in (0, 1)),
                lattice.step,
                lattice.size,
                strict=True,
            )
        )
        return self.values[channels, rows, columns], self.sizes[channels, rows, columns]


class Response(NamedTuple):
    """Outputs (O, windows) at the windows' place, and the magnitudes that entered them."""

    value: Array
    size: Array


class SelfCheckError(ReportedError):
    """The fused network does not equal the trained one; nothing was written."""


@dataclass(frozen=True)
class BlockCheck:
    """The output of one block that used most of its bound."""

    layer: str
    max_error: float
    bound: float

    @property
    def ok(self) -> bool:
        """Whether the error stays within the bound; false for NaN and infinity."""
        return self.max_error <= self.bound < float("inf")

    @property
    def used(self) -> float:
        """Error as a fraction of the bound."""
        return self.max_error / self.bound if self.bound else float(self.max_error > 0)

    def to_json(self) -> dict[str, Any]:
        """As `convert --json` prints it."""
        return {"max_error": self.max_error, "bound": self.bound, "ok": self.ok}

    def raise_if_bad(self) -> None:
        """Raise `SelfCheckError`, so that nothing wrong is written."""
        if not self.ok:
            raise SelfCheckError(
                f"{self.layer}: the fused convolution differs from its branches",
                got=f"{self.max_error:.3g}",
                wanted=f"at most {self.bound:.3g}",
                advice="this is a bug in repvgg-ref: please report it",
            )


def check_block(
    spec: BlockSpec, params: Mapping[str, Array], fused: FusedConv, *, eps: float
) -> BlockCheck:
    """Compare the branches in `params` with `fused`, in float64.

    Parameters
    ----------
    params : mapping
        Canonical name -> array, train form.
    fused : FusedConv
        The kernel and bias as they will be written.

    Returns
    -------
    BlockCheck
        At the output element with the largest ratio of error to bound.
    """
    parts = part_of(spec, params)
    return check_linear(spec.name, expression(spec), fused_conv(spec), parts, fused, eps=eps)


def check_linear(
    name: str,
    linear: Linear,
    conv: Conv,
    parts: Mapping[str, Array],
    fused: FusedConv,
    *,
    eps: float,
) -> BlockCheck:
    """`check_block` of any expression, which was fused to `conv`."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    read, channels = Reader(parts, eps), linear.in_channels
    scale = np.exp(rng.normal(size=(channels, 1, 1, 1)))
    extent = [step * (size - 1) + 1 for _, step, size in zip(*conv.lattice, strict=True)]
    values = scale * rng.normal(size=(channels, *extent, _WINDOWS))
    windows = Windows(values, np.abs(values), conv.lattice.first)
    # Times `_WINDOWS` this is also the largest matrix product that OpenBLAS leaves on the calling
    # thread; its own threads and those of `convert` would stand in each other's way.
    with np.errstate(over="ignore", invalid="ignore"):  # the NaN they make fails the check
        return worst(
            _check_rows(name, linear, conv, rows, windows, read, fused)
            for rows in row_chunks(linear)
        )


def worst(checks: Iterable[BlockCheck]) -> BlockCheck:
    """The check that used most of its bound; NaN counts as most."""
    return max(checks, key=lambda check: (check.used != check.used, check.used))


def _check_rows(
    name: str,
    linear: Linear,
    conv: Conv,
    rows: slice,
    windows: Windows,
    read: Reader,
    fused: FusedConv,
) -> BlockCheck:
    """Check some output channels: whole groups, or some of one."""
    got = _written(conv, fused, rows, windows)
    want = respond(linear, read, rows, windows, (0, 0))

    kind = np.finfo(fused.weight.dtype)
    count = fused.weight[0].size + 16
    seen = windows.sizes.sum() + 1
    bound = (
        float(kind.eps) / 2 * (1 + float(kind.eps)) * want.size
        + float(kind.smallest_subnormal) * seen
        + 4 * count * _U64 * want.size
    )
    error = np.abs(got - want.value)
    at = np.unravel_index(np.argmax(error / bound), error.shape)  # argmax returns a NaN if any
    return BlockCheck(name, float(error[at]), float(bound[at]))


@singledispatch
def respond(linear: Linear, read: Reader, rows: slice, windows: Windows, shift: Pair) -> Response:
    """What some outputs of an expression are, in the order in which it is trained."""
    raise NotImplementedError(f"no self check for {type(linear).__name__}")


def _written(conv: Conv, fused: FusedConv, rows: slice, windows: Windows) -> Array:
    """What some outputs of the written convolution are, (O, windows)."""
    met = _met(conv, fused.weight[rows], rows, windows, (0, 0))
    values = [wide @ columns for _, wide, columns, _ in _pieces(*met)]
    value: Array = np.concatenate([each.reshape(-1, each.shape[-1]) for each in values])
    return value + fused.bias[rows].astype(np.float64)[:, None]


def _met(
    conv: Conv, kernel: Array, rows: slice, windows: Windows, shift: Pair
) -> tuple[Array, Array, Array]:
    """Some outputs' kernels as matrices, one a group, and what they meet: values and magnitudes."""
    first, end = groups_of(conv, rows)
    per_group = conv.in_channels // conv.groups
    seen = windows.under(conv.lattice, slice(first * per_group, end * per_group), shift)
    # (channels, Kh, Kw, windows) -> (G, C/G*Kh*Kw, windows)
    columns, sizes = (each.reshape(end - first, -1, each.shape[-1]) for each in seen)
    # (O, C/G, Kh, Kw) -> (G, O/G, C/G*Kh*Kw)
    return kernel.reshape(end - first, -1, columns.shape[1]), columns, sizes


def _pieces(matrix: Array, columns: Array, sizes: Array) -> Iterator[tuple[Array, ...]]:
    """Some rows of a matrix, or some groups, at a time: as stored and in float64; what they met."""
    if len(matrix) == 1:
        step = max(1, _PIECE // matrix.shape[2])
        for start in range(0, matrix.shape[1], step):
            part = matrix[:, start : start + step]
            yield part, part.astype(np.float64), columns, sizes
        return
    step = max(1, _PIECE // matrix[0].size)
    for start in range(0, len(matrix), step):
        at = slice(start, start + step)
        yield matrix[at], matrix[at].astype(np.float64), columns[at], sizes[at]


def _magnitude(matrix: Array, wide: Array, sizes: Array) -> Array:
    """``|matrix| @ sizes`` or a little more; `wide` is the matrix in float64, and is lost."""
    if matrix.dtype == np.float32:
        found: Array = np.abs(matrix) @ sizes.astype(np.float32)
        if found.min() > _LEAST and found.max() < np.inf:
            # a float32 sum of n terms of one sign loses no more than n roundings
            found *= 1 + matrix.shape[-1] * float(np.finfo(np.float32).eps)
            return found
    return np.asarray(np.abs(wide, out=wide) @ sizes)


@respond.register
def _(linear: Conv, read: Reader, rows: slice, windows: Windows, shift: Pair) -> Response:
    kernel = read.array(f"{linear.name}.weight", rows)
    found = [
        (wide @ columns, _magnitude(matrix, wide, sizes))
        for matrix, wide, columns, sizes in _pieces(*_met(linear, kernel, rows, windows, shift))
    ]
    value, size = (
        np.concatenate([each.reshape(-1, each.shape[-1]) for each in of])
        for of in zip(*found, strict=True)
    )
    if linear.bias:
        bias = read.vector(f"{linear.name}.bias", rows)[:, None]
        return Response(value + bias, size + np.abs(bias))
    return Response(value, size)


@respond.register
def _(linear: Identity, read: Reader, rows: slice, windows: Windows, shift: Pair) -> Response:
    seen = windows.under(Lattice((0, 0), (1, 1), (1, 1)), rows, shift)
    return Response(*(each[:, 0, 0] for each in seen))


@respond.register
def _(linear: Sum, read: Reader, rows: slice, windows: Windows, shift: Pair) -> Response:
    parts = [respond(part, read, rows, windows, shift) for part in linear.parts]
    value, size = (sum(of[1:], start=of[0]) for of in zip(*parts, strict=True))
    return Response(value, size)


@respond.register
def _(linear: Chain, read: Reader, rows: slice, windows: Windows, shift: Pair) -> Response:
    *before, last = linear.parts
    if not before:
        return respond(last, read, rows, windows, shift)
    if hasattr(last, "after"):
        seen = respond(Chain(*before), read, rows, windows, shift)
        return respond_after(last, seen, read, rows)
    return respond(last, read, rows, _outputs(before, last, read, rows, windows, shift), (0, 0))


def _outputs(
    before: list[Any], last: Conv, read: Reader, rows: slice, windows: Windows, shift: Pair
) -> Windows:
    """What a convolution meets: the outputs of the chain before it, at the pixels that it reads.

    `shift` counts pixels of the source, and so stands before the stride.
    """
    chain = Chain(*(part for part in before if hasattr(part, "form") or hasattr(part, "after")))
    pad = next((part.width for part in before[-1:] if hasattr(part, "width")), (0, 0))
    stride = chain.stride
    first = tuple(f - p for f, p in zip(last.lattice.first, pad, strict=True))
    extent = [step * (size - 1) + 1 for _, step, size in zip(*last.lattice, strict=True)]
    everything = slice(0, chain.out_channels)
    values = np.zeros((chain.out_channels, *extent, windows.values.shape[-1]))
    sizes = np.zeros_like(values)
    for i, j in product(*map(range, (0, 0), extent, last.lattice.step)):
        at = shift[0] + stride[0] * (first[0] + i), shift[1] + stride[1] * (first[1] + j)
        values[:, i, j], sizes[:, i, j] = respond(chain, read, everything, windows, at)
    return Windows(values, sizes, last.lattice.first)


@singledispatch
def respond_after(last: Any, seen: Response, read: Reader, rows: slice) -> Response:
    """What follows in a chain, channel by channel, does to outputs."""
    raise NotImplementedError(f"no self check for {type(last).__name__}")


@respond_after.register
def _(last: Norm, seen: Response, read: Reader, rows: slice) -> Response:
    gamma, beta, mean, var = (
        read.vector(f"{last.name}.{part}", rows)[:, None] for part in NORM_VECTORS
    )
    t = gamma / np.sqrt(var + last.eps_in(read))
    size = (seen.size + np.abs(mean)) * np.abs(t) + np.abs(beta)
    return Response((seen.value - mean) * t + beta, size)


@respond.register
def _(linear: FormulaConv, read: Reader, rows: slice, windows: Windows, shift: Pair) -> Response:
    weight = linear.formula.kernel(read, EVERYTHING)[0]
    arrays = read._replace(params={f"{linear.conv.name}.weight": weight})
    return respond(linear.conv, arrays, rows, windows, shift)


@respond.register
def _(linear: Slice, read: Reader, rows: slice, windows: Windows, shift: Pair) -> Response:
    channels = np.arange(linear.start, linear.stop)[rows]
    seen = windows.under(Lattice((0, 0), (1, 1), (1, 1)), slice(None), shift)
    return Response(*(each[channels, 0, 0] for each in seen))


@respond.register
def _(linear: Concat, read: Reader, rows: slice, windows: Windows, shift: Pair) -> Response:
    parts = [respond(p, read, slice(0, p.out_channels), windows, shift) for p in linear.parts]
    return Response(*(np.concatenate(of)[rows] for of in zip(*parts, strict=True)))


@respond_after.register
def _(last: Scale, seen: Response, read: Reader, rows: slice) -> Response:
    v = spread(last, read, rows, len(seen.value))[:, None]
    return Response(seen.value * v, seen.size * abs(v))


@respond_after.register
def _(last: Factor, seen: Response, read: Reader, rows: slice) -> Response:
    return Response(last.number * seen.value, abs(last.number) * seen.size)


@respond_after.register
def _(last: Bias, seen: Response, read: Reader, rows: slice) -> Response:
    v = spread(last, read, rows, len(seen.value))[:, None]
    return Response(seen.value + v, seen.size + abs(v))


def groups_of(linear: Linear, rows: slice) -> Pair:
    """The first group that some outputs lie in, and the first after them."""
    per_group = linear.out_channels // linear.groups
    start, stop, _ = rows.indices(linear.out_channels)
    return start // per_group, -(-stop // per_group)
