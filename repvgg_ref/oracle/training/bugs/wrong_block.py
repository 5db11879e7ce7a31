"""Blocks that train with another expression than their own, over the same arrays.

Which branches there are, and which of them is pointwise or the identity, is asked of a block's
expression (`blocks.catalogue`), whatever kind of block it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.block import BlockCache, activate
from repvgg_ref.blocks.catalogue import expression, part_of
from repvgg_ref.blocks.constructors import Concat, FormulaConv
from repvgg_ref.blocks.form import Pair
from repvgg_ref.blocks.linear import Chain, Conv, Sum
from repvgg_ref.blocks.run import Linear, Run
from repvgg_ref.models.graph import Node
from repvgg_ref.models.layers import Block, Operation, Pass
from repvgg_ref.oracle.training.bugs.wrong_setup import with_nodes
from repvgg_ref.oracle.training.run import Setup


class Detached(Chain):
    """A part that sends no gradient to the block's input."""

    def backward(self, grad_y: Array, cache: Any, run: Run) -> Array:
        """Zero, after the gradients of its arrays."""
        return np.zeros_like(super().backward(grad_y, cache, run))


class Doubled(Chain):
    """A part that takes its gradient twice."""

    _times = 2.0

    def backward(self, grad_y: Array, cache: Any, run: Run) -> Array:
        """The right one of so many times the gradient."""
        return super().backward(self._times * grad_y, cache, run)


class Halved(Doubled):
    """A part that takes half of its gradient."""

    _times = 0.5


class Untrained(Chain):
    """A part whose arrays get no gradient."""

    def backward(self, grad_y: Array, cache: Any, run: Run) -> Array:
        """The right one."""
        own = replace(run, grads={})
        grad_x = super().backward(grad_y, cache, own)
        run.grads.update({name: np.zeros_like(grad) for name, grad in own.grads.items()})
        return grad_x


class Divided(Sum):
    """A sum that divides the gradient among its parts."""

    def backward(self, grad_y: Array, cache: Any, run: Run) -> Array:
        """Each part gets its share."""
        return super().backward(grad_y / len(self.parts), cache, run)


@dataclass(frozen=True)
class WrongBlock(Block):
    """A block that trains with `linear` in place of the catalogue's expression.

    Where there is a `mask`, the ReLU's gradient passes where that expression is positive.
    """

    linear: Linear
    mask: Linear | None = None

    def forward(self, name: str, x: list[Array], run: Pass) -> tuple[Array, BlockCache]:
        """As the right one."""
        params = part_of(self.spec, run.params)
        own = Run(params, run.ops, run.eps, run.training, run.momentum)
        y, kept = self.linear.forward(x[0], own)
        y, se, relu = activate(self.spec, run.params, y, ops=run.ops)
        if self.mask is not None:
            seen, _ = self.mask.forward(x[0], replace(own, stats={}))
            relu = relu._replace(blocked=seen <= 0)
        run.stats.update({f"{name}.{norm}": batch for norm, batch in own.stats.items()})
        back: Any = _Back(self.linear, own)
        return y, BlockCache(kept, se, relu, own, back)


@dataclass(frozen=True)
class _Back:
    """The way back that `blocks.block` takes through an expression that is not the block's own."""

    linear: Linear
    run: Run

    def backward(self, grad_y: Array, cache: Any) -> tuple[Array, dict[str, Array]]:
        return self.linear.backward(grad_y, cache, self.run), self.run.grads

    def parameter_grads(self, grad_y: Array, cache: Any) -> dict[str, Array]:
        return self.backward(grad_y, cache)[1]


# ------------------------------------------------------------ changing a setup's blocks


def with_blocks(setup: Setup, change: Callable[[WrongBlock], WrongBlock]) -> Setup:
    """The setup with its blocks changed, those that its `at` names."""

    def changed(node: Node) -> Node:
        op = node.op
        if not isinstance(op, Block) or node.training_only or not setup.is_at(node.name):
            return node
        return replace(node, op=change(WrongBlock(op.spec, _linear(op), getattr(op, "mask", None))))

    return with_nodes(setup, changed)


def with_sum(setup: Setup, change: Callable[[Sum], Linear]) -> Setup:
    """The setup with the sums of its blocks' branches changed."""
    return with_blocks(setup, lambda block: replace(block, linear=_changed(block.linear, change)))


def with_branch(setup: Setup, name: str, change: Callable[[Linear], Linear]) -> Setup:
    """The setup with the branches of one name changed."""
    return with_sum(
        setup,
        lambda total: type(total)(*(change(p) if _name(p) == name else p for p in total.parts)),
    )


def with_mask(setup: Setup, name: str) -> Setup:
    """The setup whose ReLUs' gradients pass where the branch of this name is positive."""
    return with_blocks(setup, lambda block: replace(block, mask=branches(block).get(name)))


# -------------------------------------------------------------- asking the expression


def branches(op: Operation) -> dict[str, Linear]:
    """The parts of the sum that a block's input comes to first, by name: ``branch_3x3``, ..."""
    linear = _linear(op) if isinstance(op, Block) else None
    while isinstance(linear, Chain):
        linear = linear.parts[0]
    return {_name(part): part for part in linear.parts} if _is_sum(linear) else {}


def kernels(branch: Any) -> set[Pair]:
    """The extents of a branch's kernels; none for the identity."""
    if isinstance(branch, FormulaConv):
        branch = branch.conv
    if isinstance(branch, Conv):
        return {branch.kernel}
    return set[Pair]().union(*map(kernels, getattr(branch, "parts", ())))


def _linear(block: Block) -> Linear:
    return block.linear if isinstance(block, WrongBlock) else expression(block.spec)


def _changed(linear: Linear, change: Callable[[Sum], Linear]) -> Linear:
    """The expression with `change` of the sum that `branches` finds."""
    if isinstance(linear, Chain):
        first, *rest = linear.parts
        return type(linear)(_changed(first, change), *rest)
    return change(linear) if _is_sum(linear) else linear


def _is_sum(linear: Any) -> TypeGuard[Sum]:
    return isinstance(linear, Sum) and not isinstance(linear, Concat)


def _name(branch: Any) -> str:
    """A branch is called as its first leaf."""
    while hasattr(branch, "parts"):
        branch = branch.parts[0]
    return getattr(branch, "name", "").removesuffix(".conv")
