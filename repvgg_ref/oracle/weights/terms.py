"""A fused kernel as the sum it is made from: what each term gives to each tap."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.branches import Branch, window
from repvgg_ref.blocks.fusion import FusedConv
from repvgg_ref.oracle.programs.block import BlockProgram

Tap = tuple[int, int]


class Term(NamedTuple):
    """A branch and the first of the block's taps that it lies on; vectors are (O,)."""

    branch: Branch
    first: Tap

    def at(self, tap: Tap) -> Array | None:
        """Its raw weights on one of the block's taps, (O, C/G); None outside its kernel."""
        size = self.branch.weight.shape[2:]
        own = tap[0] - self.first[0], tap[1] - self.first[1]
        if not all(0 <= o < s for o, s in zip(own, size, strict=True)):
            return None
        return np.asarray(self.branch.weight[:, :, own[0], own[1]])

    def rows(self, chosen: Array, inputs: Array | slice) -> Term:
        """Some output channels, and some inputs of a group."""

        def part(array: Array) -> Array:
            return array[chosen] if array.ndim == 1 else array[chosen][:, inputs]

        return self._replace(branch=self.branch.arrays(part))

    @property
    def own(self) -> Term:
        """Of each row the input of its own number, where an identity lies: (O, 1, Kh, Kw)."""

        def part(array: Array) -> Array:
            return array if array.ndim == 1 else own_inputs(array)

        return self._replace(branch=self.branch.arrays(part))


class Terms(NamedTuple):
    """One layer: its terms, the extent of its kernel, and eps."""

    layer: str
    terms: tuple[Term, ...]
    size: Tap
    eps: float
    bias: Array | None = None

    @property
    def taps(self) -> list[Tap]:
        """All taps of the kernel."""
        return list(np.ndindex(*self.size))

    def on(self, tap: Tap) -> dict[int, Array]:
        """The terms that give something to a tap: number -> raw weights (O, C/G)."""
        found = {number: term.at(tap) for number, term in enumerate(self.terms)}
        return {number: raw for number, raw in found.items() if raw is not None}

    @property
    def alone(self) -> list[Tap]:
        """Taps that one term makes by itself."""
        return [tap for tap in self.taps if len(self.on(tap)) == 1]

    @property
    def shared(self) -> list[Tap]:
        """Taps that several terms make together."""
        return [tap for tap in self.taps if len(self.on(tap)) > 1]

    @property
    def is_stored(self) -> bool:
        """Whether all kernels are read from a file: of one that is computed no order is known."""
        return all(term.branch.size is None for term in self.terms)

    @property
    def is_computed(self) -> bool:
        """Whether fusion computes something: a single kernel without a norm is copied."""
        return len(self.terms) > 1 or any(term.branch.has_norm for term in self.terms)

    @property
    def has_one_norm(self) -> bool:
        """Whether one batch norm is behind all terms, so that kernels may be summed before it."""
        first = self.terms[0].branch if self.terms else None
        return first is not None and all(
            term.branch.has_norm
            and first.has_norm
            and np.array_equal(term.branch.gamma, first.gamma)
            and np.array_equal(term.branch.running_var, first.running_var)
            and (term is self.terms[0] or not np.any(term.branch.beta))
            for term in self.terms
        )

    def rows(self, chosen: Array, inputs: Array | slice = slice(None)) -> Terms:
        """Some output channels, and some inputs of a group."""
        bias = None if self.bias is None else self.bias[chosen]
        return self._replace(
            terms=tuple(term.rows(chosen, inputs) for term in self.terms), bias=bias
        )

    @property
    def own(self) -> Terms:
        """Of each row the input of its own number: nowhere else do all terms meet."""
        return self._replace(terms=tuple(term.own for term in self.terms))


def own_inputs(weight: Array) -> Array:
    """Of each row of a kernel (O, C/G, Kh, Kw) the input of its own number, (O, 1, Kh, Kw)."""
    rows = np.arange(len(weight))
    return np.asarray(weight[rows, rows % weight.shape[1]][:, None])


def terms_of(program: BlockProgram) -> Terms:
    """The sum that the layer's fused kernel is; a kernel that is known as it is is one term."""
    if program.fused is not None:
        kernel = program.fused
        bare = Term(Branch(np.asarray(kernel.weight)), (0, 0))
        return Terms(program.name, (bare,), program.size, program.eps, np.asarray(kernel.bias))
    terms = []
    for branch in program.branches.values():
        rows, columns = window(branch.weight.shape[2:], program.size)
        terms.append(Term(branch, (rows.start, columns.start)))
    return Terms(program.name, tuple(terms), program.size, program.eps)


def tap_of(kernel: FusedConv, tap: Tap) -> Array:
    """The taps (O, C/G) at one place of a kernel."""
    return np.asarray(kernel.weight[:, :, tap[0], tap[1]])
