"""The three-branch block in training, forward and backward, in few passes over memory.

    y = ReLU( BN3(W3 * x) + BN1(W1 * x) + BN0(x) )          (arXiv 2101.03697, section 3.2)

The 3x3 convolution's output y3 is computed and kept. That of the 1x1 convolution never is. A 1x1
kernel is a matrix, the identity the matrix I (`W_j`, (C, O), j = 1, 0), so all that training
asks of ``z_j = x W_j`` follows from small matrices:

    m   = mean of x                  S = sum over pixels of (x - m)^T (x - m)            (C, C)
    mean(z_j) = m W_j                n var(z_j) = diag(W_j^T S W_j)

With ``a_j = gamma_j / sqrt(var_j + eps)`` the forward pass is the convolution and one product:

    y = ReLU( a_3 y3 + x K + b ),    K = sum_j W_j diag(a_j)

Backward, g = grad_y where y > 0. Batch norm hands back (Ioffe & Szegedy, section 3)

    dz_j = a_j (g - mean(g) - B_j (z_j - mean(z_j)))
    B_j  = sum(g (z_j - mean(z_j))) / (n (var_j + eps))

Of the sums only ``P = sum over pixels of (x - m)^T g`` (C, O) asks for work:

    sum(g (z_j - mean(z_j))) = diag(W_j^T P)           dW_j = (P - S W_j diag(B_j)) diag(a_j)
    dx = g K^T - (x - m) L - mean(g) K^T               L = sum_j W_j diag(a_j B_j) W_j^T

and for the 3x3 branch ``dz_3 = a_3 h, h = g - mean(g) - B_3 (y3 - mean(y3))`` meets kernels scaled
by a_3. So a block is five products with a matrix (C, O) or (C, C), three Winograd convolutions and
four passes over pixels (`passes`), and keeps x, y3 and y: two thirds of what separate operators do.

Error. S is summed in float32 in pieces of some hundred pixels about the piece's mean, then in
float64. So var(z_j) errs by u (sum_c |W_cj| std(x_c))^2 at most, where computing z_j first errs by
u std(z_j) sum_c |W_cj| std(x_c): the same unless a 1x1 kernel cancels what its inputs share.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array, Real
from repvgg_ref.cpu import passes
from repvgg_ref.cpu.conv2d import Conv2dCache, conv2d_forward, input_gradient, weight_gradient
from repvgg_ref.cpu.passes import Grid, Moments, make_grid
from repvgg_ref.errors import require_equal
from repvgg_ref.ops import BranchArrays, BranchesForward, BranchGrads


class Statistics(NamedTuple):
    """A branch's batch norm, (O,) each: of the array's dtype, 1 / sqrt(var + eps) in float64."""

    mean: Array
    var: Array
    inv_std: Array


class BranchesCache(NamedTuple):
    """What `branches_backward` needs."""

    conv: Conv2dCache  # x and the 3x3 kernel
    y3: Array
    y: Array | None  # None: no ReLU
    branches: Mapping[str, BranchArrays]
    stats: Mapping[str, Statistics]
    of_x: Moments | None  # None: no branch but the 3x3 one
    grid: Grid
    main: str


def branches_forward(
    x: Array,
    branches: Mapping[str, BranchArrays],
    /,
    *,
    stride: int,
    dilation: int,
    groups: int,
    eps: Real,
    relu: bool,
) -> BranchesForward:
    """`Ops.fused_branches_forward` for x (N, H, W, C): one 3x3 branch, any number of 1x1 ones."""
    main, weight = _main(branches)
    _, gamma, beta = branches[main]
    y3, conv = conv2d_forward(
        x, weight, None, stride=stride, padding=dilation, dilation=dilation, groups=groups
    )
    channels = x.shape[3]
    _require_vectors(branches, len(weight))
    grid = make_grid(y3, channels, stride, groups)
    matrices = {
        name: _matrix(branch, groups, channels) for name, branch in branches.items() if name != main
    }
    seen = x if matrices else None
    of_y3, of_x = passes.moments_of(seen, y3, channels, grid)
    stats = {main: _statistics(of_y3.mean, of_y3.about_mean / grid.pixels, eps, x.dtype)}
    scale = gamma * stats[main].inv_std
    bias = beta - scale * of_y3.mean
    total = np.zeros((groups, channels // groups, y3.shape[3] // groups))
    for name, matrix in matrices.items():
        assert of_x is not None
        mean, var = _through(matrix, of_x, grid.pixels)
        stats[name] = _statistics(mean, var, eps, x.dtype)
        factor = branches[name].gamma * stats[name].inv_std
        total += matrix * _by_group(factor, groups)
        bias = bias + branches[name].beta - factor * mean
    y = passes.combine(
        seen,
        y3,
        scale.astype(x.dtype),
        total.astype(x.dtype) if matrices else None,
        bias.astype(x.dtype),
        grid,
        relu=relu,
    )
    cache = BranchesCache(conv, y3, y if relu else None, branches, stats, of_x, grid, main)
    return BranchesForward(y, cache, stats)


def branches_backward(grad_y: Array, cache: BranchesCache) -> tuple[Array, dict[str, BranchGrads]]:
    """`Ops.fused_branches_backward` for NHWC arrays."""
    require_equal("branches", "grad_y.shape", grad_y.shape, "y.shape", cache.y3.shape)
    grid, main, x, dtype = cache.grid, cache.main, cache.conv.x, cache.y3.dtype
    of_x, groups = cache.of_x, cache.grid.groups
    sums = passes.gradient_sums(
        np.ascontiguousarray(grad_y),
        cache.y,
        cache.y3,
        cache.stats[main].mean,
        None if of_x is None else x,
        None if of_x is None else of_x.mean.astype(dtype),
        grid,
    )
    mean_g = sums.total / grid.pixels
    grads: dict[str, BranchGrads] = {}

    inv_std = cache.stats[main].inv_std
    _, gamma, _ = cache.branches[main]
    slope = inv_std**2 * sums.with_y3 / grid.pixels
    shift = mean_g - slope * cache.stats[main].mean
    h = np.empty_like(cache.y3)
    passes.through_norm(sums.g, cache.y3, slope.astype(dtype), shift.astype(dtype), h, grid)
    scale = (gamma * inv_std).astype(dtype)[:, None, None, None]
    grad_kernel = weight_gradient(h, cache.conv)
    grad_kernel *= scale
    grads[main] = _branch_grads(grad_kernel, inv_std * sums.with_y3, sums.total, dtype)
    conv = cache.conv._replace(weight=cache.conv.weight * scale)
    if of_x is None:
        return input_gradient(h, conv), grads

    assert sums.with_x is not None
    from_g = np.zeros(sums.with_x.shape)
    from_x = np.zeros(of_x.about_mean.shape)
    for name, branch in cache.branches.items():
        if name == main:
            continue
        matrix = _matrix(branch, groups, x.shape[3])
        inv_std = cache.stats[name].inv_std
        with_z = (matrix * sums.with_x).sum(axis=1).reshape(-1)  # diag(W^T P)
        factor = branch.gamma * inv_std
        slope = inv_std**2 * with_z / grid.pixels
        from_g += matrix * _by_group(factor, groups)
        from_x += (matrix * _by_group(factor * slope, groups)) @ matrix.swapaxes(1, 2)
        grad_weight = None
        if branch.weight is not None:
            spread = of_x.about_mean @ (matrix * _by_group(slope, groups))
            grad_matrix = (sums.with_x - spread) * _by_group(factor, groups)
            # (G, C/G, O/G) -> (G, O/G, C/G) -> (O, C/G, 1, 1)
            grad_weight = grad_matrix.swapaxes(1, 2).reshape(branch.weight.shape)
        grads[name] = _branch_grads(grad_weight, inv_std * with_z, sums.total, dtype)
    mean_x = of_x.mean.reshape(groups, 1, -1)
    # (G, 1, C/G) = (G, 1, C/G) @ (G, C/G, C/G) - (G, 1, O/G) @ (G, O/G, C/G)
    bias = mean_x @ from_x - mean_g.reshape(groups, 1, -1) @ from_g.swapaxes(1, 2)
    grad_x = input_gradient(h, conv)
    passes.add_pointwise(
        grad_x,
        sums.g,
        np.ascontiguousarray(from_g.swapaxes(1, 2), dtype),
        x,
        from_x.astype(dtype),
        bias.reshape(-1).astype(dtype),
        grid,
    )
    return grad_x, grads


def _main(branches: Mapping[str, BranchArrays]) -> tuple[str, Array]:
    """The 3x3 branch's name and kernel."""
    return next(
        (name, branch.weight)
        for name, branch in branches.items()
        if branch.weight is not None and branch.weight.shape[2] > 1
    )


def _require_vectors(branches: Mapping[str, BranchArrays], outputs: int) -> None:
    for name, branch in branches.items():
        for what in ("gamma", "beta"):
            shape = getattr(branch, what).shape
            require_equal("branches", f"{name}.{what}.shape", shape, "(O,)", (outputs,))


def _matrix(branch: BranchArrays, groups: int, channels: int) -> Array:
    """A 1x1 kernel, or the identity, as float64 (G, C/G, O/G)."""
    inner = channels // groups
    if branch.weight is None:
        return np.broadcast_to(np.eye(inner), (groups, inner, inner))
    split = branch.weight.reshape(groups, -1, inner).swapaxes(1, 2)
    return np.ascontiguousarray(split, np.float64)


def _through(matrix: Array, of_x: Moments, pixels: int) -> tuple[Array, Array]:
    """Mean and biased variance (O,) of ``x W``."""
    mean = of_x.mean.reshape(len(matrix), 1, -1) @ matrix
    squares = (matrix * (of_x.about_mean @ matrix)).sum(axis=1)  # diag(W^T S W)
    return mean.reshape(-1), np.maximum(squares.reshape(-1), 0) / pixels


def _statistics(mean: Array, var: Array, eps: Real, dtype: Any) -> Statistics:
    return Statistics(mean.astype(dtype), var.astype(dtype), 1 / np.sqrt(var + float(eps)))


def _by_group(vector: Array, groups: int) -> Array:
    """(O,) -> (G, 1, O/G)."""
    return vector.reshape(groups, 1, -1)


def _branch_grads(weight: Array | None, gamma: Array, beta: Array, dtype: Any) -> BranchGrads:
    return BranchGrads(
        None if weight is None else weight.astype(dtype, copy=False),
        gamma.astype(dtype),
        beta.astype(dtype),
    )
