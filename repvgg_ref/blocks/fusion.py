"""Exact re-parameterisation: three branches become one 3x3 convolution, one function an equation.

Source: section 3.3 of arXiv 2101.03697. A branch ``BN(W * x)`` in evaluation mode is

    W' = W * gamma / sqrt(var + eps)                           (3)  `fold_kernel`
    b' = beta - mean * gamma / sqrt(var + eps)                 (3)  `fold_bias`

a 1x1 kernel is a 3x3 kernel with zeros around its only tap, the identity is a 1x1 convolution with
an identity matrix, and convolution is linear in its kernel, so kernels and biases simply add.

Everything is computed in float64 and rounded *once*; the few sums that fall within the float64
error of a rounding boundary are decided in exact arithmetic, so every fused tap is the exact value
correctly rounded. Given rationals (`fractions.Fraction` in object arrays) nothing is rounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array, scalar_like, sqrt
from repvgg_ref.blocks.repvgg import Branch, block_branches
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.errors import NotFusibleError
from repvgg_ref.exact.rounding import root, round_once, round_products

# What a fused value can be wrong by in float64, relative to the terms' magnitudes, in units of
# u = 2**-53: var + eps (u/2 after the root), root (u), quotient (u), product (u), additions (2u).
_ERROR = 8 * 2.0**-53

# Where a factor is so small that float64 holds it with fewer bits.
_TINY = 4 * 2.0**-1074

# Output channels are fused in chunks of about this many taps, which stay in a core's L2 cache.
_CHUNK_TAPS = 1 << 17


class FusedConv(NamedTuple):
    """`weight` (O, C/G, 3, 3) and `bias` (O,) of the one convolution that equals the block."""

    weight: Array
    bias: Array


def bn_scale(branch: Branch, eps: Any) -> Array:
    """``t = gamma / sqrt(var + eps)``, shape (O,): the slope of batch norm in evaluation mode."""
    return branch.gamma / sqrt(branch.running_var + scalar_like(eps, branch.running_var))


def fold_kernel(branch: Branch, eps: Any) -> Array:
    """``W' = W * t``, equation (3) of the paper; the kernel of a conv + BN branch."""
    assert branch.weight is not None, "the identity branch's kernel comes from `identity_kernel`"
    kernel: Array = branch.weight * bn_scale(branch, eps)[:, None, None, None]
    return kernel


def fold_bias(branch: Branch, eps: Any) -> Array:
    """``b' = beta - mean * t``, equation (3) of the paper; the bias of any branch, shape (O,)."""
    bias: Array = branch.beta - branch.running_mean * bn_scale(branch, eps)
    return bias


def identity_kernel(channels: int, groups: int, dtype: Any) -> Array:
    """The 1x1 kernel (C, C/G, 1, 1) that copies its input: ``K[i, i % (C/G)] = 1``."""
    per_group = channels // groups
    kernel = np.zeros((channels, per_group, 1, 1), dtype=dtype)
    rows = np.arange(channels)
    kernel[rows, rows % per_group, 0, 0] = 1
    return kernel


def as_convolutions(spec: BlockSpec, branches: Mapping[str, Branch]) -> dict[str, Branch]:
    """The same branches with the identity written as the 1x1 convolution it is."""
    dtype = branches["branch_3x3"].gamma.dtype
    return {
        name: branch._replace(weight=identity_kernel(spec.out_channels, spec.groups, dtype))
        if branch.weight is None
        else branch
        for name, branch in branches.items()
    }


def fuse_branches(branches: Mapping[str, Branch], eps: Any) -> FusedConv:
    """The paper's sum (section 3.3), in the arithmetic of the arrays given: exact for rationals.

    Every branch is a convolution here (`as_convolutions`). A 1x1 kernel padded with zeros to 3x3
    touches the centre tap only, so that is where it is added.
    """
    dense = branches["branch_3x3"]
    weight, bias = fold_kernel(dense, eps), fold_bias(dense, eps)
    centre = weight.shape[2] // 2
    for name, branch in branches.items():
        if name != "branch_3x3":
            weight[:, :, centre, centre] += fold_kernel(branch, eps)[:, :, 0, 0]
            bias = bias + fold_bias(branch, eps)
    return FusedConv(weight, bias)


def fuse_block(
    spec: BlockSpec, params: Mapping[str, Array], *, eps: float, dtype: Any = np.float32
) -> FusedConv:
    """Fuse one block in float64 and round every tap once, correctly, to `dtype`.

    Parameters
    ----------
    params : mapping
        The model's arrays under their canonical names; float arrays of any precision.
    eps : float
        Batch norm's eps, which no checkpoint holds: 1e-5 in the official code.

    Raises
    ------
    NotFusibleError
        If a parameter is NaN or infinite, some ``var + eps`` is not positive, or a fused value
        exceeds the range of `dtype`.
    """
    branches = as_convolutions(spec, block_branches(spec, params))
    for name, branch in branches.items():
        _require_sound(f"{spec.name}.{name}", branch, eps)
    kernel = branches["branch_3x3"].weight
    assert kernel is not None
    fused = FusedConv(np.empty(kernel.shape, dtype), np.empty(len(kernel), dtype))
    step = max(1, _CHUNK_TAPS // kernel[0].size)
    for start in range(0, len(kernel), step):
        rows = slice(start, start + step)
        chunk = {
            name: Branch(*(np.asarray(field)[rows] for field in branch))
            for name, branch in branches.items()
        }
        with np.errstate(over="ignore", invalid="ignore"):  # looked for below
            fused.weight[rows], fused.bias[rows] = _fuse_rows(chunk, eps, dtype)
    if not (np.isfinite(fused.weight).all() and np.isfinite(fused.bias).all()):
        raise NotFusibleError(
            f"{spec.name}: a fused value exceeds the range of {np.dtype(dtype)}",
            wanted=f"at most {np.finfo(dtype).max:g}",
            advice="write a wider type",
        )
    return fused


def _fuse_rows(branches: Mapping[str, Branch], eps: float, dtype: Any) -> FusedConv:
    """Fuse some output channels and round them correctly.

    Off the centre a tap is one product, so its error is relative to itself. On the centre, and in
    the bias, terms can cancel: there the error is relative to the sum of their magnitudes.
    """
    centres = {name: _centre(branch) for name, branch in branches.items()}
    centre, bias = fuse_branches(centres, eps)
    centre_error, bias_error = np.full_like(centre, _TINY), np.full_like(bias, _TINY)
    for branch in centres.values():
        centre_error += _ERROR * np.abs(fold_kernel(branch, eps))
        bias_error += _ERROR * np.abs(branch.beta)
        bias_error += _ERROR * np.abs(branch.running_mean * bn_scale(branch, eps))
    kernel = branches["branch_3x3"].weight
    assert kernel is not None
    scale = bn_scale(centres["branch_3x3"], eps)[:, None, None, None]

    def exact(at: tuple[int, ...]) -> Fraction:
        return exact_tap(branches, eps, at)

    weight = round_products(kernel, scale, _ERROR * np.abs(scale) + _TINY, dtype, exact)
    weight[:, :, 1:2, 1:2] = round_once(
        centre, centre_error, dtype, lambda at: exact((*at[:2], 1, 1))
    )
    return FusedConv(
        weight, round_once(bias, bias_error, dtype, lambda at: exact_bias(branches, eps, at))
    )


def _centre(branch: Branch) -> Branch:
    """The branch in float64, its kernel cut to the centre tap."""
    kernel = branch.weight
    assert kernel is not None
    middle = slice(kernel.shape[2] // 2, kernel.shape[2] // 2 + 1)
    return Branch(*(np.asarray(f, np.float64) for f in (kernel[:, :, middle, middle], *branch[1:])))


def exact_tap(branches: Mapping[str, Branch], eps: float, at: tuple[int, ...]) -> Fraction:
    """The fused kernel's tap at ``(o, i, kh, kw)`` as a rational (roots to 256 bits)."""
    o, i, *tap = at
    total = Fraction(0)
    for branch in branches.values():
        assert branch.weight is not None
        if branch.weight.shape[2] == 3:
            total += Fraction(float(branch.weight[o, i, *tap])) * _exact_scale(branch, eps, o)
        elif tap == [1, 1]:
            total += Fraction(float(branch.weight[o, i, 0, 0])) * _exact_scale(branch, eps, o)
    return total


def exact_bias(branches: Mapping[str, Branch], eps: float, at: tuple[int, ...]) -> Fraction:
    """The fused bias of output channel ``at[0]`` as a rational (roots to 256 bits)."""
    o = at[0]
    return sum(
        (
            Fraction(float(b.beta[o]))
            - Fraction(float(b.running_mean[o])) * _exact_scale(b, eps, o)
            for b in branches.values()
        ),
        start=Fraction(0),
    )


def _exact_scale(branch: Branch, eps: float, o: int) -> Fraction:
    var = Fraction(float(branch.running_var[o])) + Fraction(eps)
    return Fraction(float(branch.gamma[o])) / root(var)


def _require_sound(name: str, branch: Branch, eps: float) -> None:
    for field, array in zip(Branch._fields, branch, strict=True):
        assert array is not None, "`as_convolutions` has given the identity its kernel"
        if not np.isfinite(array).all():
            raise NotFusibleError(
                f"{name}: {field} holds NaN or infinity",
                got=f"{int((~np.isfinite(array)).sum())} such values",
                wanted="finite numbers",
                advice="take an earlier checkpoint of this run",
            )
    if not (branch.running_var >= 0).all():
        raise NotFusibleError(
            f"{name}: running_var is negative, so its root does not exist",
            got=f"{float(branch.running_var.min()):g}",
            wanted="variances of at least 0",
            advice="the file is damaged, or is no batch norm's state",
        )
    if not (branch.running_var + eps > 0).all():
        raise NotFusibleError(
            f"{name}: running_var + eps must be positive", got=0, wanted=f"eps above {eps:g}"
        )
