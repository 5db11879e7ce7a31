"""Fusions with one planted mistake each, most of them met in published code.

A bug takes a block's branches (the identity written as a convolution) and returns a fused kernel
in float64; None where the block has nothing that the bug could get wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.branches import Branch
from repvgg_ref.blocks.fusion import FusedConv
from repvgg_ref.blocks.spec import BlockSpec

EPS = 1e-5
Branches = dict[str, Branch]
Bug = Callable[[BlockSpec, Branches], FusedConv | None]


@dataclass(frozen=True)
class _Rules:
    """The paper's fusion with replaceable pieces."""

    scale: Callable[[Any], Array] = lambda b: b.gamma / np.sqrt(b.running_var + EPS)
    beta: float = 1.0
    mean: float = 1.0
    tap: tuple[int, int] = (1, 1)


def fuse_with(branches: Branches, rules: _Rules | None = None) -> FusedConv:
    """Fuse in float64 by `rules`; the paper's where none are given."""
    rules = rules or _Rules()
    dense = branches["branch_3x3"].weight
    weight, bias = np.zeros(dense.shape), np.zeros(len(dense))
    for branch in branches.values():
        assert branch.beta is not None
        assert branch.running_mean is not None
        t = rules.scale(branch)
        kernel = branch.weight * t[:, None, None, None]
        if kernel.shape[2] == 3:
            weight += kernel
        else:
            weight[:, :, rules.tap[0], rules.tap[1]] += kernel[:, :, 0, 0]
        bias += rules.beta * branch.beta - rules.mean * branch.running_mean * t
    return FusedConv(weight, bias)


def _rule(**changed: Any) -> Bug:
    return lambda spec, branches: fuse_with(branches, _Rules(**changed))


def _tap(row: int, column: int) -> Bug:
    return lambda spec, branches: (
        fuse_with(branches, _Rules(tap=(row, column))) if len(branches) > 1 else None
    )


def _without(name: str) -> Bug:
    return lambda spec, branches: (
        fuse_with({n: b for n, b in branches.items() if n != name}) if name in branches else None
    )


def _swapped(one: str, other: str) -> Bug:
    def bug(spec: BlockSpec, branches: Branches) -> FusedConv | None:
        if not {one, other} <= set(branches):
            return None
        a, b = branches[one], branches[other]
        return fuse_with(
            branches | {one: b._replace(weight=a.weight), other: a._replace(weight=b.weight)}
        )

    return bug


def _identity_kernel(index: Callable[[BlockSpec, Array], Array]) -> Bug:
    """The identity's ones at ``K[i, index(i)]``."""

    def bug(spec: BlockSpec, branches: Branches) -> FusedConv | None:
        identity = branches.get("branch_identity")
        if identity is None:
            return None
        rows = np.arange(spec.out_channels)
        kernel = np.zeros((spec.out_channels, spec.in_channels // spec.groups, 1, 1))
        columns = index(spec, rows)
        if np.array_equal(columns, rows % kernel.shape[1]):
            return None  # a single channel per group, or no groups: nothing to get wrong
        kernel[rows, columns] = 1
        return fuse_with(branches | {"branch_identity": identity._replace(weight=kernel)})

    return bug


def _identity_without_batch_norm(spec: BlockSpec, branches: Branches) -> FusedConv | None:
    if "branch_identity" not in branches:
        return None
    zero, one = np.zeros(spec.out_channels), np.ones(spec.out_channels)
    plain = branches["branch_identity"]._replace(
        gamma=one, beta=zero, running_mean=zero, running_var=one - EPS
    )
    return fuse_with(branches | {"branch_identity": plain})


def _identity_that_is_not_there(spec: BlockSpec, branches: Branches) -> FusedConv | None:
    fused = fuse_with(branches)
    if "branch_identity" in branches or spec.in_channels != spec.out_channels:
        return None
    rows = np.arange(spec.out_channels)
    fused.weight[rows, rows % fused.weight.shape[1], 1, 1] += 1
    return fused


def _reshaped(change: Callable[[Array], Array]) -> Bug:
    def bug(spec: BlockSpec, branches: Branches) -> FusedConv | None:
        fused = fuse_with(branches)
        changed = change(fused.weight)
        if changed.shape != fused.weight.shape or np.array_equal(changed, fused.weight):
            return None
        return FusedConv(changed, fused.bias)

    return bug


def _bias(change: Callable[[Array], Array]) -> Bug:
    def bug(spec: BlockSpec, branches: Branches) -> FusedConv:
        fused = fuse_with(branches)
        return FusedConv(fused.weight, change(fused.bias))

    return bug


def _one_tap(change: Callable[[float], float]) -> Bug:
    def bug(spec: BlockSpec, branches: Branches) -> FusedConv:
        fused = fuse_with(branches)
        at = np.unravel_index(np.argmax(np.abs(fused.weight)), fused.weight.shape)
        fused.weight[at] = change(float(fused.weight[at]))
        return fused

    return bug


def _bfloat16(x: Array) -> Array:
    return (x.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)


def _int8(x: Array) -> Array:
    step = np.abs(x).max(axis=(1, 2, 3), keepdims=True) / 127
    return np.asarray(np.round(x / step) * step)


BUGS: dict[str, Bug] = {
    "eps outside the root": _rule(scale=lambda b: b.gamma / (np.sqrt(b.running_var) + EPS)),
    "eps dropped": _rule(scale=lambda b: b.gamma / np.sqrt(b.running_var)),
    "eps 1e-3": _rule(scale=lambda b: b.gamma / np.sqrt(b.running_var + 1e-3)),
    "eps 1e-6": _rule(scale=lambda b: b.gamma / np.sqrt(b.running_var + 1e-6)),
    "variance used as deviation": _rule(scale=lambda b: b.gamma / (b.running_var + EPS)),
    "root missing from 1/std": _rule(scale=lambda b: b.gamma * np.sqrt(b.running_var + EPS)),
    "statistics ignored": _rule(scale=lambda b: b.gamma, mean=0.0),
    "gamma ignored": _rule(scale=lambda b: 1 / np.sqrt(b.running_var + EPS)),
    "gamma without its sign": _rule(scale=lambda b: np.abs(b.gamma) / np.sqrt(b.running_var + EPS)),
    "beta ignored": _rule(beta=0.0),
    "mean ignored": _rule(mean=0.0),
    "mean added": _rule(mean=-1.0),
    "1x1 on tap (0, 0)": _tap(0, 0),
    "1x1 on tap (2, 2)": _tap(2, 2),
    "1x1 on tap (0, 1)": _tap(0, 1),
    "1x1 missing": _without("branch_1x1"),
    "identity missing": _without("branch_identity"),
    "batch norms of 3x3 and 1x1 swapped": _swapped("branch_3x3", "branch_1x1"),
    "batch norms of 3x3 and identity swapped": _swapped("branch_3x3", "branch_identity"),
    "batch norms of 1x1 and identity swapped": _swapped("branch_1x1", "branch_identity"),
    "identity index of an ungrouped kernel": _identity_kernel(
        lambda spec, rows: np.minimum(rows, spec.in_channels // spec.groups - 1)
    ),
    "identity index i // G": _identity_kernel(lambda spec, rows: rows // spec.groups),
    "identity off by one": _identity_kernel(
        lambda spec, rows: (rows + 1) % (spec.in_channels // spec.groups)
    ),
    "identity without batch norm": _identity_without_batch_norm,
    "identity where there is none": _identity_that_is_not_there,
    "kernel flipped": _reshaped(lambda w: w[:, :, ::-1, ::-1]),
    "height and width swapped": _reshaped(lambda w: w.swapaxes(2, 3)),
    "outputs and inputs swapped": _reshaped(lambda w: w.swapaxes(0, 1)),
    "output channels rotated": _reshaped(lambda w: np.roll(w, 1, axis=0)),
    "input channels reversed": _reshaped(lambda w: w[:, ::-1]),
    "kernel in float16": _reshaped(lambda w: w.astype(np.float16).astype(np.float64)),
    "kernel in bfloat16": _reshaped(lambda w: _bfloat16(w).astype(np.float64)),
    "kernel in int8": _reshaped(_int8),
    "bias dropped": _bias(np.zeros_like),
    "bias twice": _bias(lambda b: 2 * b),
    "bias rotated": _bias(lambda b: np.roll(b, 1)),
    "one tap negated": _one_tap(lambda w: -w),
    "one tap zero": _one_tap(lambda w: 0.0),
    "one tap NaN": _one_tap(lambda w: float("nan")),
    "one tap infinite": _one_tap(lambda w: float("inf")),
}
