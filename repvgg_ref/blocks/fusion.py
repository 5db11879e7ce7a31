"""Exact re-parameterisation: a block's expression becomes one convolution.

`linear` says what the sum is (section 3.3 of arXiv 2101.03697). Here it is computed in float64 (for
a result in float64, in twice its precision) and rounded *once*; the few taps that fall within the
error of a rounding boundary are decided in exact arithmetic, so every fused tap is the exact value
correctly rounded. Given rationals
(`fractions.Fraction` in object arrays) nothing is rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import prod
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array, is_finite, one_line, require_finite
from repvgg_ref.blocks.catalogue import expression, fused_conv, part_of
from repvgg_ref.blocks.exactly import Exactly
from repvgg_ref.blocks.form import Form, Lattice, Pair
from repvgg_ref.blocks.linear import Conv
from repvgg_ref.blocks.parts import norms_in
from repvgg_ref.blocks.run import EVERYTHING, Linear, Reader, reading
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.errors import NotFusibleError
from repvgg_ref.exact.rounding import (
    Exact,
    further,
    nearest_of,
    pieces,
    round_once,
    round_products,
    round_sums,
)
from repvgg_ref.exact.twofold import round_sum, twofold

# Where a factor is so small that float64 holds it with fewer bits.
_TINY = 4 * 2.0**-1074

# Output channels are fused in chunks of about this many taps: little is held beside a block.
CHUNK_TAPS = 1 << 20


class FusedConv(NamedTuple):
    """`weight` (O, C/G, Kh, Kw) and `bias` (O,) of the one convolution that equals the block."""

    weight: Array
    bias: Array

    def __repr__(self) -> str:
        """One line, without the numbers."""
        return one_line(self)


def fuse_exactly(linear: Linear, params: Mapping[str, Array], eps: Any) -> FusedConv:
    """The sum in the arithmetic of the arrays given, by part name: exact for rationals."""
    form = linear.form(reading(params, eps), EVERYTHING)
    return FusedConv(form.dense(), form.bias)


def fuse_block(
    spec: BlockSpec,
    params: Mapping[str, Array],
    *,
    eps: float,
    dtype: Any = np.float32,
    empty: Callable[[tuple[int, ...], Any], Array] = np.empty,
) -> FusedConv:
    """Fuse one block and round every tap once, correctly, to `dtype`.

    What float64 does not decide is decided by exact arithmetic; a result in float64 itself comes
    from sums in twice that precision.

    Parameters
    ----------
    params : mapping
        The model's arrays under their canonical names; float arrays of any precision.
    eps : float
        Batch norm's eps, which no checkpoint holds: 1e-5 in the official code.
    empty : callable
        ``empty(shape, dtype)`` makes the two arrays to be filled.

    Raises
    ------
    NotFusibleError
        If no single convolution equals the block, a parameter is NaN or infinite, some
        ``var + eps`` is not positive, or a fused value exceeds the range of `dtype`.
    """
    linear, conv = expression(spec), fused_conv(spec)
    parts = part_of(spec, params)
    return fuse_linear(spec.name, linear, conv, parts, eps=eps, dtype=dtype, empty=empty)


def fuse_linear(
    block: str,
    linear: Linear,
    conv: Conv,
    parts: Mapping[str, Array],
    *,
    eps: float,
    dtype: Any,
    empty: Callable[[tuple[int, ...], Any], Array] = np.empty,
) -> FusedConv:
    """`fuse_block` of any expression, which fuses to `conv`; `block` is what errors call it."""
    own = {f"{norm.name}.running_var": norm.eps for norm in norms_in(linear)}
    for name, array in parts.items():
        its = own.get(name)
        _require_sound(f"{block}.{name}", np.asarray(array), eps if its is None else its)
    read, exact = Reader(parts, eps), Reader(parts, eps, exact=True)
    fused = FusedConv(*(empty(shape, dtype) for shape in conv.shapes().values()))
    for rows in row_chunks(linear):
        with np.errstate(over="ignore", invalid="ignore"):  # looked for below
            fused.bias[rows] = _fuse_rows(linear, read, exact, rows, fused.weight[rows])
    if not (is_finite(fused.weight) and is_finite(fused.bias)):
        raise NotFusibleError(
            f"{block}: a fused value exceeds the range of {np.dtype(dtype)}",
            wanted=f"at most {np.finfo(dtype).max:g}",
            advice="write a wider type",
        )
    return fused


def row_chunks(linear: Linear, taps: int = CHUNK_TAPS) -> Iterator[slice]:
    """Output channels, some at a time: whole groups, or some of one."""
    largest = max(int(np.prod(shape[1:])) for shape in linear.shapes().values() if len(shape) > 1)
    per_group = linear.out_channels // linear.groups
    step = max(1, taps // largest)
    step = -(-linear.out_channels // max(1, round(linear.out_channels / step)))  # no small rest
    if step >= per_group:
        step = step // per_group * per_group
        for start in range(0, linear.out_channels, step):
            yield slice(start, min(start + step, linear.out_channels))
        return
    for group in range(linear.groups):
        end = (group + 1) * per_group
        for start in range(group * per_group, end, step):
            yield slice(start, min(start + step, end))


def _fuse_rows(linear: Linear, read: Reader, exact: Reader, rows: slice, weight: Array) -> Array:
    """Fuse some output channels into `weight`, rounded correctly; return their bias.

    A tap that one stored kernel makes alone is one product, so its error is relative to itself.
    Elsewhere, and in the bias, terms can cancel: the error is relative to their magnitudes.
    """
    form = linear.form(read, rows)
    exactly, dtype, lattice = Exactly(linear, exact, rows, form), weight.dtype, form.lattice
    if dtype == np.float64:
        return _fuse_in_twofold(form, weight, exactly)
    alone, shared = _makers(form)
    if len(alone) + len(shared) < prod(lattice.size):
        weight[...] = 0  # corners that no term reaches
    products = {place: _placed(lattice, form.terms[place].lattice) for place in alone.values()}
    sums = [(offset, _index(lattice, offset), exactly.at(offset)) for offset in shared]
    for piece in pieces(len(weight), weight[0].size):
        _round_products(form, products, piece, weight[piece], exactly)
    for piece in pieces(len(weight), weight.shape[1]):
        for offset, (i, j), decide in sums:
            _round_taps(form, offset, piece, weight[piece, :, i, j], further(decide, piece.start))
    bias_error = form.error * form.bias_size + _TINY
    return round_once(form.bias, bias_error, dtype, exactly.bias)


def _fuse_in_twofold(form: Form, weight: Array, exactly: Exactly) -> Array:
    """`_fuse_rows` for float64, whose error leaves no tap decided: in twice the precision.

    A kernel that was computed, of convolutions one behind the other, is decided exactly, tap by
    tap.
    """
    scales = [twofold(exactly.scales(place)) for place in range(len(form.terms))]
    lattice = form.lattice
    for offset in lattice.offsets():
        i, j = _index(lattice, offset)
        products, stored = [], True
        for term, scale in zip(form.terms, scales, strict=True):
            if at := term.lattice.tap(offset):
                products.append((term.kernel[:, :, at[0], at[1]], scale))
                stored = stored and term.size is None
        if stored:
            weight[:, :, i, j] = round_sum(products, weight.shape[:2], exactly.at(offset))
        else:
            error = form.error * form.size_at(offset) + _TINY
            weight[:, :, i, j] = round_once(form.at(offset), error, np.float64, exactly.at(offset))
    return nearest_of(exactly.bias((np.arange(len(form.bias)),)), np.float64)


def _makers(form: Form) -> tuple[dict[Pair, int], list[Pair]]:
    """The offsets that one stored kernel makes alone, with its place, and the others."""
    makers: dict[Pair, list[int]] = {}
    for place, term in enumerate(form.terms):
        for offset in term.lattice.offsets():
            makers.setdefault(offset, []).append(place)
    alone = {
        offset: places[0]
        for offset, places in makers.items()
        if len(places) == 1 and form.terms[places[0]].size is None
    }
    return alone, [offset for offset in makers if offset not in alone]


def _round_products(
    form: Form,
    places: Mapping[int, tuple[slice, slice]],
    piece: slice,
    weight: Array,
    exactly: Exactly,
) -> None:
    """Round some rows of the kernels at `places` into `weight`: taps that are one product each."""
    for place, (rows, columns) in places.items():
        term = form.terms[place]
        scale = term.scale[piece, None, None, None]
        error = form.error * np.abs(scale) + _TINY
        under = weight[:, :, rows, columns]
        exact = further(exactly.products(place), piece.start)
        round_products(term.kernel[piece], scale, error, under, exact)


def _round_taps(form: Form, offset: Pair, piece: slice, out: Array, exact: Exact) -> None:
    """Round some rows of the taps at an offset that several terms make, or a computed one."""
    there = [(term, at) for term in form.terms if (at := term.lattice.tap(offset)) is not None]
    if all(term.size is None for term, _ in there):
        parts = [(term.kernel[piece, :, at[0], at[1]], term.scale[piece]) for term, at in there]
        round_sums(parts, form.error, _TINY, out, exact)
        return
    taps, size = form.part(piece, EVERYTHING).with_size_at(offset)
    out[...] = round_once(taps, form.error * size + _TINY, out.dtype, exact)


def _placed(whole: Lattice, part: Lattice) -> tuple[slice, slice]:
    """Where a term's taps lie in the kernel."""
    found = []
    for axis in (0, 1):
        start = (part.first[axis] - whole.first[axis]) // whole.step[axis]
        step = part.step[axis] // whole.step[axis] if part.size[axis] > 1 else 1
        found.append(slice(start, start + step * (part.size[axis] - 1) + 1, step))
    return found[0], found[1]


def _index(lattice: Lattice, offset: Pair) -> Pair:
    index = lattice.tap(offset)
    assert index is not None, "the lattice holds every term's taps"
    return index


def _require_sound(name: str, array: Array, eps: float) -> None:
    place, _, field = name.rpartition(".")
    where = place.removesuffix(".bn").removesuffix(".conv")
    require_finite(array, f"{where}: {field} holds NaN or infinity", error=NotFusibleError)
    if field != "running_var":
        return
    if not (array >= 0).all():
        raise NotFusibleError(
            f"{place.removesuffix('.bn')}: running_var is negative, so its root does not exist",
            got=f"{float(array.min()):g}",
            wanted="variances of at least 0",
            advice="the file is damaged, or is no batch norm's state",
        )
    if not (array + eps > 0).all():
        raise NotFusibleError(
            f"{place.removesuffix('.bn')}: running_var + eps must be positive",
            got=0,
            wanted=f"eps above {eps:g}",
        )
