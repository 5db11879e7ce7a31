"""The normal form of a linear expression: a kernel, a bias, a stride, and where the taps lie.

    y[o, p] = b[o] + sum over offsets t and channels c of K[t][o, c] * x0[c, s p + t]

with x0 the input continued by zeros. `Form` keeps K as a sum of *terms*, each a kernel that is
scaled row by row: what is a stored array stays one, so that a fused tap which only one convolution
contributes to is a single product. `linear` says which form each constructor has.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from math import gcd
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array, is_exact
from repvgg_ref.errors import NotFusibleError

Pair = tuple[int, int]
_U = 2.0**-53


class Lattice(NamedTuple):
    """Offsets ``first + step * index`` for an index in a box of `size`; (rows, columns) each."""

    first: Pair
    step: Pair
    size: Pair

    def offsets(self) -> list[Pair]:
        """All offsets, row by row."""
        return [self.offset(*index) for index in product(*map(range, self.size))]

    def offset(self, row: int, column: int) -> Pair:
        """The offset of one tap."""
        return self.first[0] + self.step[0] * row, self.first[1] + self.step[1] * column

    def tap(self, offset: Pair) -> Pair | None:
        """The tap at `offset`, None if there is none."""
        found = []
        for at, first, step, size in zip(offset, *self, strict=True):
            index, rest = divmod(at - first, step)
            if rest or not 0 <= index < size:
                return None
            found.append(index)
        return found[0], found[1]


class Term(NamedTuple):
    """``kernel[o, c, tap] * scale[o]`` at the offsets of `lattice`.

    `kernel` (O, C/G, Kh, Kw) is a stored array of any float type, or computed; `scale` (O,) is
    float64 or exact. `size` bounds the magnitudes of what a computed kernel was summed from.
    """

    kernel: Array
    scale: Array
    lattice: Lattice
    size: Array | None = None

    def at(self, offset: Pair) -> Array | None:
        """The taps at one offset, (O, C/G), in the arithmetic of `scale`; None outside."""
        index = self.lattice.tap(offset)
        if index is None:
            return None
        taps: Array = self.kernel[:, :, index[0], index[1]] * self.scale[:, None]
        return taps

    def moved(self, by: Pair) -> Term:
        """The same with every tap at another offset."""
        first = self.lattice.first[0] + by[0], self.lattice.first[1] + by[1]
        return self._replace(lattice=self.lattice._replace(first=first))

    def size_at(self, offset: Pair) -> Array | None:
        """The sum of the magnitudes of what makes up the taps at one offset, (O, C/G)."""
        size = self.kernel if self.size is None else self.size
        found = self._replace(kernel=size).at(offset)
        return None if found is None else abs(found)


class Form(NamedTuple):
    """The normal form of a linear expression, or of some of its output channels.

    Attributes
    ----------
    terms : tuple of Term
        Their sum is the kernel.
    bias, bias_size : (O,) arrays, float64 or exact
        The bias, and the sum of the magnitudes of its own terms.
    stride : (int, int)
    groups : int
    roundings : int
        How many float64 roundings a product in the kernel or the bias has met, at most.
    """

    terms: tuple[Term, ...]
    bias: Array
    bias_size: Array
    stride: Pair
    groups: int
    roundings: int

    @property
    def lattice(self) -> Lattice:
        """The smallest lattice that holds all taps."""
        return union([term.lattice for term in self.terms])

    @property
    def is_pointwise(self) -> bool:
        """Whether an output depends on one pixel alone, the one at its own place."""
        return self.stride == (1, 1) and self.lattice.offsets() == [(0, 0)]

    @property
    def error(self) -> float:
        """What float64 can get wrong, relative to the magnitudes of the terms."""
        return (self.roundings + 1) * _U

    def at(self, offset: Pair) -> Array:
        """The kernel's taps at one offset, (O, C/G)."""
        return self._total([term.at(offset) for term in self.terms])

    def size_at(self, offset: Pair) -> Array:
        """The sum of the magnitudes of these taps' terms."""
        return self._total([term.size_at(offset) for term in self.terms])

    def with_size_at(self, offset: Pair) -> tuple[Array, Array]:
        """`at` and `size_at`, with every kernel gathered once."""
        taps = [(term, found) for term in self.terms if (found := term.at(offset)) is not None]
        sizes = [abs(found) if term.size is None else term.size_at(offset) for term, found in taps]
        return self._total([found for _, found in taps]), self._total(sizes)

    def _total(self, parts: list[Array | None]) -> Array:
        found = [part for part in parts if part is not None]
        if not found:  # a corner that no term reaches
            found = [0 * self.terms[0].kernel[:, :, 0, 0] * self.terms[0].scale[:, None]]
        total: Array = sum(found[1:], start=found[0])
        return total

    def dense(self, *, sizes: bool = False) -> Array:
        """The kernel on its lattice, (O, C/G, Kh, Kw); or the `sizes` of its terms."""
        lattice = self.lattice
        taps = [(self.size_at if sizes else self.at)(offset) for offset in lattice.offsets()]
        # Kh*Kw of (O, C/G) -> (O, C/G, Kh*Kw) -> (O, C/G, Kh, Kw)
        return np.stack(taps, axis=-1).reshape(*taps[0].shape, *lattice.size)

    def part(self, rows: slice, inputs: slice) -> Form:
        """Some outputs, and some inputs of a group."""
        return self._replace(
            terms=tuple(
                term._replace(
                    kernel=term.kernel[rows, inputs],
                    scale=term.scale[rows],
                    size=None if term.size is None else term.size[rows, inputs],
                )
                for term in self.terms
            ),
            bias=self.bias[rows],
            bias_size=self.bias_size[rows],
        )

    def placed(self, rows: slice, count: int) -> Form:
        """The same outputs among `count`, the others zero."""

        def among(part: Array) -> Array:
            whole = np.zeros((count, *part.shape[1:]), part.dtype)
            whole[rows] = part
            return whole

        return self._replace(
            terms=tuple(
                term._replace(
                    kernel=among(term.kernel),
                    scale=among(term.scale),
                    size=None if term.size is None else among(term.size),
                )
                for term in self.terms
            ),
            bias=among(self.bias),
            bias_size=among(self.bias_size),
        )

    def moved(self, by: Pair) -> Form:
        """The same with every tap at another offset."""
        return self._replace(terms=tuple(term.moved(by) for term in self.terms))

    def scaled(self, scale: Array, size: Array | None = None, *, roundings: int = 1) -> Form:
        """Every output times ``scale[o]``; `roundings` were met in computing it."""
        size = abs(scale) if size is None else size
        return self._replace(
            terms=tuple(t._replace(scale=t.scale * scale) for t in self.terms),
            bias=self.bias * scale,
            bias_size=self.bias_size * size,
            roundings=self.roundings + roundings,
        )

    def shifted(self, bias: Array, size: Array | None = None) -> Form:
        """Every output plus ``bias[o]``."""
        size = abs(bias) if size is None else size
        return self._replace(
            bias=self.bias + bias, bias_size=self.bias_size + size, roundings=self.roundings + 1
        )


def union(lattices: list[Lattice]) -> Lattice:
    """The smallest lattice that holds all of `lattices`; where one tap is alone its step is 1."""
    axes = []
    for axis in (0, 1):
        firsts = [each.first[axis] for each in lattices]
        ends = [each.first[axis] + each.step[axis] * (each.size[axis] - 1) for each in lattices]
        step = gcd(
            *(at - firsts[0] for at in firsts),
            *(each.step[axis] for each in lattices if each.size[axis] > 1),
        )
        axes.append((min(firsts), step or 1, (max(ends) - min(firsts)) // (step or 1) + 1))
    (top, down, rows), (left, right, columns) = axes
    return Lattice((top, left), (down, right), (rows, columns))


def add(forms: list[Form]) -> Form:
    """Kernels add offset by offset; groups become their common divisor (rule 7)."""
    groups = gcd(*(form.groups for form in forms))
    return forms[0]._replace(
        terms=tuple(term for form in forms for term in form.terms),
        bias=sum((form.bias for form in forms[1:]), start=forms[0].bias),
        bias_size=sum((form.bias_size for form in forms[1:]), start=forms[0].bias_size),
        groups=groups,
        roundings=max(form.roundings for form in forms) + len(forms),
    )


class Border(NamedTuple):
    """Rows above and below, and columns left and right, of the numbers `fill` (C,)."""

    width: Pair
    fill: Array


def compose(second: Form, first: Form, border: Border | None, *, groups: int) -> Form:
    """``second`` of ``first`` (rule 8): K[s1 t2 + t1] += K2[t2] K1[t1].

    Kernels are (O, M/G, ..) and (M, C/G, ..), both of the same G `groups`; `border` lies between.

    Raises
    ------
    NotFusibleError
        If what `second` reads outside the output of `first` is not what the fused kernel would
        see there: that takes a pointwise `first`, and its bias (or no bias and zeros) around it.
    """
    around = [] if _outside(second) is None else [0 * first.bias]
    if border is not None:
        second = second.moved((-border.width[0], -border.width[1]))
        around += [border.fill] if max(border.width) else []
    _require_border(second, first, groups, around)
    taps: dict[Pair, Array] = {}
    sizes: dict[Pair, Array] = {}
    bias, bias_size = second.bias, second.bias_size
    for t2 in second.lattice.offsets():
        k2, k2_size = second.at(t2), second.size_at(t2)
        bias = bias + _by_group(k2, first.bias[:, None], groups)[:, 0]
        bias_size = bias_size + _by_group(k2_size, first.bias_size[:, None], groups)[:, 0]
        for t1 in first.lattice.offsets():
            at = first.stride[0] * t2[0] + t1[0], first.stride[1] * t2[1] + t1[1]
            taps[at] = taps.get(at, 0) + _by_group(k2, first.at(t1), groups)
            sizes[at] = sizes.get(at, 0) + _by_group(k2_size, first.size_at(t1), groups)
    lattice = union([Lattice(at, (1, 1), (1, 1)) for at in taps])
    empty = 0 * next(iter(taps.values()))
    kernel, size = (
        np.stack([of.get(at, empty) for at in lattice.offsets()], axis=-1).reshape(
            *empty.shape, *lattice.size
        )
        for of in (taps, sizes)
    )
    products = len(second.lattice.offsets()) * len(first.bias) // groups
    return Form(
        (Term(kernel, ones(len(kernel), kernel), lattice, size),),
        bias,
        bias_size,
        (first.stride[0] * second.stride[0], first.stride[1] * second.stride[1]),
        groups,
        first.roundings + second.roundings + products + len(first.lattice.offsets()),
    )


def _outside(form: Form) -> Pair | None:
    """An offset at which it reads outside its input, on top or on the left."""
    return next((offset for offset in form.lattice.offsets() if min(offset) < 0), None)


def _require_border(second: Form, first: Form, groups: int, around: list[Array]) -> None:
    """The border law of `compose`; `around` has what stands around the output of `first`."""
    corner = _outside(second)
    if corner is None or not around:
        return
    if not first.is_pointwise:
        outputs = first.bias_size
        for offset in first.lattice.offsets():
            outputs = outputs + first.size_at(offset).sum(axis=1)
        raise NotFusibleError(
            "a convolution with padding reads outside the output of one that is not pointwise",
            got=f"kernel offsets {first.lattice.offsets()[0]} to {first.lattice.offsets()[-1]}, "
            f"stride {first.stride}" + _corner_error(second, corner, outputs, groups, " a unit"),
            wanted="a 1x1 convolution of stride 1 before it, or no padding",
        )
    for found in around:
        if (found != first.bias).any():
            wrong = abs(first.bias - found)
            raise NotFusibleError(
                "around an output there must be what its bias is: the fused form is wrong there",
                got="another border" + _corner_error(second, corner, wrong, groups, ""),
                wanted="the bias around it (a padded batch norm), or no bias and zeros",
            )


def _corner_error(second: Form, corner: Pair, wrong: Array, groups: int, of: str) -> str:
    """How much `wrong` numbers at a corner change an output, in words; nothing if they do not."""
    largest = float(_by_group(second.size_at(corner), wrong[:, None], groups).max())
    return f": an error of {largest:.3g}{of} at a corner" if largest else ""


def _by_group(left: Array, right: Array, groups: int) -> Array:
    """Group by group, (O, M/G) times (M, K): (O, K)."""
    outputs, inputs = left.shape
    # (G, O/G, K) = (G, O/G, M/G) @ (G, M/G, K)
    found = left.reshape(groups, -1, inputs) @ right.reshape(groups, inputs, -1)
    return found.reshape(outputs, -1)


def ungrouped(form: Form, groups: int) -> Form:
    """The same with fewer groups: block-diagonal kernels, zeros between (all outputs are there)."""
    if form.groups == groups:
        return form
    kernel, size = (expanded(form.dense(sizes=of), form.groups, groups) for of in (False, True))
    term = Term(kernel, ones(len(kernel), kernel), form.lattice, size)
    return form._replace(terms=(term,), groups=groups)


def expanded(kernel: Array, groups: int, fewer: int) -> Array:
    """A kernel (O, C/G, Kh, Kw) of `groups` groups as one of `fewer`: (O, C/fewer, Kh, Kw)."""
    outputs, inputs = kernel.shape[:2]
    merged = groups // fewer
    wide = np.zeros((outputs, merged, *kernel.shape[1:]), kernel.dtype)
    rows = np.arange(outputs)
    wide[rows, rows // (outputs // groups) % merged] = kernel
    # (O, merged, C/G, Kh, Kw) -> (O, merged * C/G, Kh, Kw)
    return wide.reshape(outputs, merged * inputs, *kernel.shape[2:])


def ones(count: int, like: Array) -> Array:
    """A vector of ones, exact if `like` is, else float64."""
    return np.full(count, Fraction(1)) if is_exact(like) else np.ones(count)
