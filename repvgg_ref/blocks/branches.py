"""A block seen as a flat sum: one kernel each, where it lies, and the batch norm behind it.

An expression may be any tree; what a port can get wrong is mostly said of its branches. Here
``BN(W x + x)`` is two branches of one norm, whose mean and beta the first one has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array, is_exact, scalar_like
from repvgg_ref.blocks.catalogue import expression, part_of
from repvgg_ref.blocks.form import Lattice, union
from repvgg_ref.blocks.fusion import FusedConv
from repvgg_ref.blocks.run import EVERYTHING, NORM_VECTORS, reading
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.blocks.unfuse import leaves
from repvgg_ref.errors import NotFusibleError
from repvgg_ref.exact.rounding import root


class Branch(NamedTuple):
    """``BN(weight * x)``, or without a norm (`gamma` None); vectors are (O,).

    `weight` is (O, C/G, Kh, Kw), the identity's written out; its taps lie at `lattice`.
    """

    weight: Array
    lattice: Lattice
    gamma: Array | None = None
    beta: Array | None = None
    running_mean: Array | None = None
    running_var: Array | None = None

    @property
    def is_pointwise(self) -> bool:
        """Whether there is one tap, at the centre."""
        return self.lattice.offsets() == [(0, 0)]

    def scale(self, eps: Any) -> Array:
        """``t = gamma / sqrt(var + eps)``, (O,): the slope of batch norm; 1 without a norm."""
        if self.gamma is None or self.running_var is None:
            one = scalar_like(1, self.weight)
            return np.full(len(self.weight), one, self.weight.dtype)
        var = self.running_var + scalar_like(eps, self.running_var)
        t: Array = self.gamma / (_roots(var) if is_exact(var) else np.sqrt(var))
        return t

    def kernel(self, eps: Any) -> Array:
        """``W' = W t``, equation (3) of the paper."""
        kernel: Array = self.weight * self.scale(eps)[:, None, None, None]
        return kernel

    def bias(self, eps: Any) -> Array:
        """``b' = beta - mean t``, equation (3) of the paper; 0 without a norm."""
        if self.beta is None or self.running_mean is None:
            return 0 * self.scale(eps)
        bias: Array = self.beta - self.running_mean * self.scale(eps)
        return bias


def branches_of(spec: BlockSpec, params: Mapping[str, Array]) -> dict[str, Branch]:
    """The block's branches by name: ``branch_3x3``, ``branch_1x1``, ``branch_identity``, ...

    Raises
    ------
    NotFusibleError
        If the expression is no flat sum: a convolution of a convolution, say.
    """
    linear, parts = expression(spec), part_of(spec, params)
    found: dict[str, Branch] = {}
    seen: set[str] = set()
    for leaf, norm in leaves(linear):
        form = leaf.form(reading(parts, 0), EVERYTHING)
        term = form.terms[0]
        vectors: dict[str, Array] = {}
        if norm is not None:
            vectors = {field: parts[f"{norm}.{field}"] for field in NORM_VECTORS}
            if norm in seen:
                vectors |= {field: 0 * vectors[field] for field in ("beta", "running_mean")}
            seen.add(norm)
        weight = np.asarray(term.kernel)
        if norm is not None and not is_exact(weight):
            weight = weight.astype(vectors["gamma"].dtype, copy=False)
        found[leaf.name.removesuffix(".conv")] = Branch(weight, term.lattice, **vectors)
    if {n.rpartition(".")[0] for n in parts} - {leaf.name for leaf, _ in leaves(linear)} - seen:
        raise NotFusibleError(f"{spec.name}: a {spec.kind} block is no flat sum of branches")
    return found


def fuse_branches(branches: Mapping[str, Branch], eps: Any) -> FusedConv:
    """The paper's sum (section 3.3), in the arithmetic of the arrays given: exact for rationals."""
    lattice = union([branch.lattice for branch in branches.values()])
    first = next(iter(branches.values()))
    weight = np.zeros((*first.weight.shape[:2], *lattice.size), first.kernel(eps).dtype)
    bias = 0 * first.bias(eps)
    for branch in branches.values():
        kernel = branch.kernel(eps)
        for index in np.ndindex(*branch.lattice.size):
            at = lattice.tap(branch.lattice.offset(*index))
            assert at is not None
            weight[:, :, at[0], at[1]] += kernel[:, :, index[0], index[1]]
        bias = bias + branch.bias(eps)
    return FusedConv(weight, bias)


def identity_kernel(channels: int, groups: int, dtype: Any) -> Array:
    """The 1x1 kernel (C, C/G, 1, 1) that copies its input: ``K[i, i % (C/G)] = 1``."""
    per_group = channels // groups
    kernel = np.zeros((channels, per_group, 1, 1), dtype=dtype)
    rows = np.arange(channels)
    kernel[rows, rows % per_group, 0, 0] = 1
    return kernel


def _roots(var: Array) -> Array:
    return np.array([root(value) for value in var], object)
