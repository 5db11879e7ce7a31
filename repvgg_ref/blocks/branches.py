"""A block seen as a flat sum: one kernel each, and the batch norm behind it.

An expression may be any tree; what a port can get wrong is mostly said of its branches. Here
``BN(W x + x)`` is two branches of one norm, whose mean and beta the first one has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array, is_exact, scalar_like
from repvgg_ref.blocks.catalogue import linear_expression, part_of, reach
from repvgg_ref.blocks.form import Form, Lattice, ungrouped
from repvgg_ref.blocks.fusion import FusedConv
from repvgg_ref.blocks.run import EVERYTHING, NORM_VECTORS, Linear, reading, roots
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.blocks.unfuse import leaf_name, leaves


class Branch(NamedTuple):
    """``BN(weight * x + before)``, or without a norm (its vectors None); vectors are (O,).

    `weight` (O, C/G, Kh, Kw), the identity's written out, has odd extents and its middle tap in the
    middle of the block's kernel. A computed one (a convolution and its norm before another, say) is
    the exact kernel in float64; `size` and `before_size` are the magnitudes of the terms of
    `weight` and `before`, and `roundings` how many a right computation of them may meet beside a
    convolution's.
    """

    weight: Array
    gamma: Any = None
    beta: Any = None
    running_mean: Any = None
    running_var: Any = None
    before: Any = None
    size: Any = None
    before_size: Any = None
    roundings: Any = 0

    @property
    def has_norm(self) -> bool:
        """Whether a batch norm follows."""
        return self.gamma is not None

    def arrays(self, change: Callable[[Array], Array]) -> Branch:
        """The same with every array changed."""
        changed = {
            name: change(value)
            for name, value in self._asdict().items()
            if name != "roundings" and value is not None
        }
        return self._replace(**changed)

    def scale(self, eps: Any) -> Array:
        """``t = gamma / sqrt(var + eps)``, (O,): the slope of batch norm; 1 without a norm."""
        if not self.has_norm:
            one = scalar_like(1, self.weight)
            return np.full(len(self.weight), one, self.weight.dtype)
        var = self.running_var + scalar_like(eps, self.running_var)
        t: Array = self.gamma / roots(var)
        return t

    def kernel(self, eps: Any) -> Array:
        """``W' = W t``, equation (3) of the paper."""
        kernel: Array = self.weight * self.scale(eps)[:, None, None, None]
        return kernel

    def bias(self, eps: Any) -> Array:
        """``b' = beta - mean t``, equation (3) of the paper, and `before` times t."""
        t = self.scale(eps)
        bias: Array = self.beta - self.running_mean * t if self.has_norm else 0 * t
        return bias if self.before is None else bias + self.before * t


def branches_of(
    spec: BlockSpec, params: Mapping[str, Array], eps: Any, linear: Linear | None = None
) -> dict[str, Branch]:
    """The block's branches by name: ``branch_3x3``, ``branch_1x1``, ``branch_identity``, ...

    `eps` is that of norms inside a branch. Kernels are of the groups of the fused convolution. What
    follows a norm inside a branch (a ReLU) is not said. `linear` is another expression over the
    same arrays than the block's own.
    """
    parts, whole = part_of(spec, params), reach(spec)
    found: dict[str, Branch] = {}
    seen: set[str] = set()
    for leaf, norm in leaves(linear or linear_expression(spec)):
        form = ungrouped(leaf.form(reading(parts, eps), EVERYTHING), whole.groups)
        vectors: dict[str, Array] = {}
        if norm is not None:
            vectors = {field: parts[f"{norm}.{field}"] for field in NORM_VECTORS}
            if norm in seen:
                vectors |= {field: 0 * vectors[field] for field in ("beta", "running_mean")}
            seen.add(norm)
        found[leaf_name(leaf)] = _branch(form, whole.lattice, vectors)
    return found


def _branch(form: Form, block: Lattice, vectors: Mapping[str, Any]) -> Branch:
    """One branch: a stored kernel as it is, another one computed."""
    term = form.terms[0]
    # a norm inside has a scale, even where it shifts nothing
    stored = len(form.terms) == 1 and term.size is None and np.all(term.scale == 1)
    if stored and not form.bias.any():
        weight = _centred(np.asarray(term.kernel), term.lattice, block)
        if vectors and not is_exact(weight):
            weight = weight.astype(vectors["gamma"].dtype, copy=False)
        return Branch(weight, **vectors)
    weight, size = (_centred(form.dense(sizes=of), form.lattice, block) for of in (False, True))
    return Branch(
        weight,
        **vectors,
        before=form.bias,
        size=size,
        before_size=form.bias_size,
        roundings=form.roundings,
    )


def fuse_branches(branches: Mapping[str, Branch], eps: Any) -> FusedConv:
    """The paper's sum (section 3.3), in the arithmetic of the arrays given: exact for rationals."""
    kernels = [branch.kernel(eps) for branch in branches.values()]
    size = tuple(max(kernel.shape[axis] for kernel in kernels) for axis in (2, 3))
    if kernels[0].shape[2:] == size:
        weight = kernels.pop(0)  # an array of its own
    else:
        weight = np.zeros((*kernels[0].shape[:2], *size), kernels[0].dtype)
    for kernel in kernels:
        weight[:, :, *window(kernel.shape[2:], size)] += kernel
    biases = [branch.bias(eps) for branch in branches.values()]
    return FusedConv(weight, sum(biases[1:], start=biases[0]))


def window(
    size: tuple[int, ...], whole: tuple[int, ...], moved: tuple[int, int] = (0, 0)
) -> tuple[slice, slice]:
    """Which rows and columns of a kernel of size `whole` one of `size` lies on, both centred."""
    first = [(w - s) // 2 + m for w, s, m in zip(whole, size, moved, strict=True)]
    return slice(first[0], first[0] + size[0]), slice(first[1], first[1] + size[1])


def identity_kernel(channels: int, groups: int, dtype: Any) -> Array:
    """The 1x1 kernel (C, C/G, 1, 1) that copies its input: ``K[i, i % (C/G)] = 1``."""
    per_group = channels // groups
    kernel = np.zeros((channels, per_group, 1, 1), dtype=dtype)
    rows = np.arange(channels)
    kernel[rows, rows % per_group, 0, 0] = 1
    return kernel


def _centred(kernel: Array, own: Lattice, block: Lattice) -> Array:
    """A kernel on the block's steps, its middle at offset (0, 0)."""
    reach = [
        max(max(abs(offset[axis]) for offset in own.offsets()) // block.step[axis], 0)
        for axis in (0, 1)
    ]
    if all(size == 2 * r + 1 for size, r in zip(own.size, reach, strict=True)):
        return kernel
    wide = np.zeros((*kernel.shape[:2], *(2 * r + 1 for r in reach)), kernel.dtype)
    for index in np.ndindex(*own.size):
        offset = own.offset(*index)
        row, column = (offset[axis] // block.step[axis] + reach[axis] for axis in (0, 1))
        wide[:, :, row, column] = kernel[:, :, index[0], index[1]]
    return wide
