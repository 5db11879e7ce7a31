"""The three-branch block on the device: batch statistics, one pass forward, two passes backward.

With ``y_k`` the outputs of the convolutions (the identity's is ``x`` itself) and per-channel
``a_k = gamma_k / sqrt(var_k + eps)``, the block is ``relu(sum of a_k * y_k + b)``, ``b = sum of
beta_k - a_k * mean_k`` (RepVGG, arXiv 2101.03697, figure 4). Branches are always in the order dense
(3x3 in the paper: ``y3``), 1x1, identity; an absent one is `None`. Arrays are (N, H, W, C), one
storage dtype; statistics, coefficients and sums are float32 (float64 for float64 arrays).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.errors import ShapeError
from repvgg_ref.gpu.kernels.launch import (
    Rows,
    empty,
    launch,
    real_dtype,
    require_arrays,
    split_rows,
)

_FILE = "branches.cu"
_ROWS_OF_A_SUM = 64  # at least, so that partial sums stay below 1/16 of what is read
_BLOCKS = 1024


class BranchCoefficients(NamedTuple):
    """`forward` (4, C): a3, a1, a0, b; `inv_std` (3, C). Rows of absent branches are 0."""

    forward: Array
    inv_std: Array


class BranchGradCoefficients(NamedTuple):
    """`backward` (9, C) for `branches_backward`; `grad_gamma` (3, C); `grad_beta` (C,) of each."""

    backward: Array
    grad_gamma: Array
    grad_beta: Array


def channel_moments(y3: Array, y1: Array | None = None, x: Array | None = None) -> Array:
    """Mean and biased variance of every channel of one to three arrays, in one pass and a merge.

    Welford's update in each thread, then Chan, Golub and LeVeque's merge in a fixed order
    (The American Statistician 37, 1983, eq. 2.1): no cancellation, the same bits every time.

    Parameters
    ----------
    y3, y1, x : (N, H, W, C) arrays of one shape and dtype; or any (..., C)

    Returns
    -------
    (3, 2, C) array
        Mean and variance of each branch; rows of absent ones are 0.

    Raises
    ------
    ShapeError
        If shapes or dtypes differ, an array is not contiguous, or a channel has no value.
    """
    rows = _rows("channel_moments", _ROWS_OF_A_SUM, {"y3": y3, "y1": y1, "x": x}, passes=3)
    if rows.length == 0:
        raise ShapeError(f"channel_moments: shape {y3.shape} leaves a channel without values")
    real = real_dtype(y3.dtype)
    C = rows.channels
    moments = empty((3, 2, C), real)
    partial = empty((3, rows.chunks, 2, C), real)
    launch(
        _FILE,
        "channel_moments",
        y3.dtype,
        rows.grid(3),
        rows.block,
        (y3, y1, x, partial, *rows.arguments),
    )
    present = sum(1 << k for k, branch in enumerate((y3, y1, x)) if branch is not None)
    launch(
        _FILE,
        "merge_moments",
        y3.dtype,
        (-(-C // 32), 3),
        (32, 8),
        (
            *(partial, moments, np.int32(present)),
            *(np.int64(rows.length), np.int32(C), np.int64(rows.rows_per_chunk)),
            np.int64(rows.chunks),
        ),
    )
    return moments


def branch_coefficients(
    moments: Array,
    gammas: Sequence[Array | None],
    betas: Sequence[Array | None],
    *,
    eps: float,
) -> BranchCoefficients:
    """Fold the branches' batch norms into ``a3, a1, a0, b``: one small launch.

    Parameters
    ----------
    moments : (3, 2, C) array from `channel_moments`
    gammas, betas : three (C,) arrays of the dtype of `moments`, None where there is no branch
    eps : float
    """
    C = moments.shape[-1]
    vectors = {f"gammas[{k}]": gammas[k] for k in range(3)}
    vectors |= {f"betas[{k}]": betas[k] for k in range(3)}
    require_arrays("branch_coefficients", (3, 2, C), moments.dtype, moments=moments)
    require_arrays("branch_coefficients", (C,), moments.dtype, **vectors)
    forward = empty((4, C), moments.dtype)
    inv_std = empty((3, C), moments.dtype)
    launch(
        _FILE,
        "branch_coefficients",
        moments.dtype,
        (-(-C // 128),),
        (128,),
        (moments, *gammas, *betas, forward, inv_std, np.float64(eps), np.int32(C)),
    )
    return BranchCoefficients(forward, inv_std)


def branches_forward(
    y3: Array,
    y1: Array | None,
    x: Array | None,
    coefficients: Array,
    *,
    relu: bool,
) -> Array:
    """``y = [relu](a3 * y3 + a1 * y1 + a0 * x + b)`` in one pass.

    Parameters
    ----------
    y3, y1, x : (N, H, W, C) arrays of one shape and dtype
    coefficients : (4, C) array: a3, a1, a0, b; `BranchCoefficients.forward`
    relu : bool

    Returns
    -------
    (N, H, W, C) array, dtype of `y3`
    """
    y = empty(y3.shape, y3.dtype)
    rows = _rows("branches_forward", 8, {"y3": y3, "y1": y1, "x": x, "y": y})
    real = real_dtype(y3.dtype)
    require_arrays("branches_forward", (4, rows.channels), real, coefficients=coefficients)
    launch(
        _FILE,
        "branches_forward",
        y3.dtype,
        rows.grid(),
        rows.block,
        (y3, y1, x, coefficients, y, np.int32(relu), *rows.arguments),
    )
    return y


def branches_backward_sums(
    grad_y: Array,
    y: Array | None,
    y3: Array,
    y1: Array | None,
    x: Array | None,
    moments: Array,
) -> Array:
    """What the gradients of three batch norms need to know of the whole batch, in one pass.

    With ``g = grad_y * (y > 0)``, or ``grad_y`` if `y` is None (no ReLU): ``sum g`` and, for each
    branch, ``sum g * (y_k - mean_k)``; centred, so that a large mean cancels nothing.

    Parameters
    ----------
    grad_y, y, y3, y1, x : (N, H, W, C) arrays of one shape and dtype
    moments : (3, 2, C) array, from `channel_moments`

    Returns
    -------
    (4, C) array
        ``sum g``, then 3x3, 1x1, identity; rows of absent branches are 0.
    """
    rows = _rows(
        "branches_backward_sums",
        _ROWS_OF_A_SUM,
        {"grad_y": grad_y, "y": y, "y3": y3, "y1": y1, "x": x},
    )
    real = real_dtype(grad_y.dtype)
    C = rows.channels
    require_arrays("branches_backward_sums", (3, 2, C), real, moments=moments)
    sums = empty((4, C), real)
    partial = empty((rows.chunks, 4, C), real)
    launch(
        _FILE,
        "branches_backward_sums",
        grad_y.dtype,
        rows.grid(),
        rows.block,
        (grad_y, y, y3, y1, x, moments, partial, *rows.arguments),
    )
    launch(
        _FILE,
        "merge_sums",
        grad_y.dtype,
        (-(-4 * C // 32),),
        (32, 8),
        (partial, sums, np.int32(4 * C), np.int64(rows.chunks)),
    )
    return sums


def branch_grad_coefficients(
    sums: Array,
    moments: Array,
    inv_std: Array,
    gammas: Sequence[Array | None],
    *,
    count: int,
) -> BranchGradCoefficients:
    """From the sums: gradients of gamma and beta, and the coefficients of `branches_backward`.

    ``grad_gamma = inv_std * sum g * (y - mean)``, ``grad_beta = sum g`` and ``grad_y_k = p * g +
    q * y_k + r`` with ``p = gamma * inv_std``, ``q = -p * inv_std * grad_gamma / n``,
    ``r = -p * grad_beta / n - q * mean`` (Ioffe & Szegedy, arXiv 1502.03167, section 3).

    Parameters
    ----------
    sums : (4, C) array from `branches_backward_sums`
    moments, inv_std : (3, 2, C) and (3, C) arrays of the forward pass
    gammas : three (C,) arrays, None where there is no branch
    count : int, n = N * H * W
    """
    C = sums.shape[-1]
    require_arrays("branch_grad_coefficients", (4, C), moments.dtype, sums=sums)
    require_arrays("branch_grad_coefficients", (3, 2, C), moments.dtype, moments=moments)
    require_arrays("branch_grad_coefficients", (3, C), moments.dtype, inv_std=inv_std)
    vectors = {f"gammas[{k}]": gammas[k] for k in range(3)}
    require_arrays("branch_grad_coefficients", (C,), moments.dtype, **vectors)
    backward = empty((9, C), moments.dtype)
    grad_gamma = empty((3, C), moments.dtype)
    launch(
        _FILE,
        "branch_grad_coefficients",
        moments.dtype,
        (-(-C // 128),),
        (128,),
        (sums, moments, inv_std, *gammas, backward, grad_gamma, np.int64(count), np.int32(C)),
    )
    return BranchGradCoefficients(backward, grad_gamma, sums[0])


def branches_backward(
    grad_y: Array,
    y: Array | None,
    y3: Array,
    y1: Array | None,
    x: Array | None,
    coefficients: Array,
) -> tuple[Array, Array | None, Array | None]:
    """Gradients of the three convolution outputs, in one pass: ``p_k * g + q_k * y_k + r_k``.

    ``g = grad_y * (y > 0)``, or ``grad_y`` if `y` is None.

    Parameters
    ----------
    grad_y, y, y3, y1, x : (N, H, W, C) arrays of one shape and dtype
    coefficients : (9, C) array: p, q, r of 3x3, of 1x1, of the identity;
        `BranchGradCoefficients.backward`

    Returns
    -------
    grad_y3, grad_y1, grad_x : (N, H, W, C) arrays, None where there is no branch
        The last is the identity's share of the gradient of `x` alone.
    """
    operator = "branches_backward"
    inputs = (y3, y1, x)
    grads = [None if each is None else empty(each.shape, each.dtype) for each in inputs]
    named = {"grad_y": grad_y, "y": y, "y3": y3, "y1": y1, "x": x}
    rows = _rows(operator, 8, named | {f"grads[{k}]": grads[k] for k in range(3)})
    require_arrays(
        operator, (9, rows.channels), real_dtype(grad_y.dtype), coefficients=coefficients
    )
    launch(
        _FILE,
        "branches_backward",
        grad_y.dtype,
        rows.grid(),
        rows.block,
        (grad_y, y, *inputs, coefficients, *grads, *rows.arguments),
    )
    assert grads[0] is not None
    return grads[0], grads[1], grads[2]


def _rows(operator: str, least_rows: int, named: dict[str, Array | None], passes: int = 1) -> Rows:
    """How arrays of one shape and dtype, the first of which is there, are cut for `passes`."""
    first = next(array for array in named.values() if array is not None)
    if first.ndim == 0:
        raise ShapeError(f"{operator}: arrays must have channels as their last axis, got a scalar")
    require_arrays(operator, first.shape, first.dtype, **named)
    return split_rows(list(named.values()), least_rows=least_rows, blocks=_BLOCKS // passes)
