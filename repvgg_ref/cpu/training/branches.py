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

and dz_3 is formed, since the 3x3 kernel's two convolutions need it. So a block is five products
with a matrix (C, O) or (C, C), three Winograd convolutions and four passes over pixels (`passes`),
and keeps x, y3 and y: two thirds of what separate operators do.

Where 9 C <= O (the images' block) the 3x3 kernel is a matrix too, of whole windows, (9 C, O), and
y3 is not kept either.

Error. S is summed in float32 in pieces of some thousand pixels about the piece's mean, then in
float64. So var(z_j) errs by u (sum_c |W_cj| std(x_c))^2 at most, where computing z_j first errs by
u std(z_j) sum_c |W_cj| std(x_c): the same unless a 1x1 kernel cancels what its inputs share.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array, Real
from repvgg_ref.cpu.convolution.conv2d import (
    Conv2dCache,
    convolve,
    input_gradient,
    square_convolution,
    weight_gradient,
    window_of,
)
from repvgg_ref.cpu.convolution.direct import Window, pack_weight
from repvgg_ref.cpu.training import passes
from repvgg_ref.cpu.training.passes import GradientSums, Inputs, Moments
from repvgg_ref.cpu.workers import memory
from repvgg_ref.cpu.workers.pool import in_session
from repvgg_ref.errors import require_equal
from repvgg_ref.ops import BranchArrays, BranchesForward, BranchGrads


class Statistics(NamedTuple):
    """A branch's batch norm, (O,) each: of the array's dtype, 1 / sqrt(var + eps) in float64."""

    mean: Array
    var: Array
    inv_std: Array


class BranchesCache(NamedTuple):
    """What `branches_backward` needs."""

    branches: Mapping[str, BranchArrays]
    stats: Mapping[str, Statistics]
    conv: Conv2dCache  # x and the 3x3 kernel
    y3: Array | None  # None: the 3x3 kernel is one of the matrices
    of_y3: Moments | None
    y: Array | None  # None: no ReLU
    inputs: Inputs
    of_x: Moments | None  # None: there are no matrices


@in_session
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
    conv = square_convolution(
        x, weight, stride=stride, padding=dilation, dilation=dilation, groups=groups
    )
    _require_vectors(branches, len(weight))
    inputs = _inputs(conv)
    y3 = None if inputs.window.kernel > 1 else convolve(conv)
    matrices = _matrices(branches, inputs)
    of_x = passes.product_moments(inputs) if matrices else None
    of_y3 = None if y3 is None else passes.channel_moments(y3, inputs.grid)
    pixels = inputs.grid.pixels
    means, variances = {}, {}
    if of_y3 is not None:
        means[main], variances[main] = of_y3.mean, of_y3.about_mean / pixels
    for name, matrix in matrices.items():
        means[name], variances[name] = _through(matrix, of_x, pixels)
    stats = {name: _statistics(means[name], variances[name], eps, x.dtype) for name in branches}
    factors = {name: branch.gamma * stats[name].inv_std for name, branch in branches.items()}
    bias = sum(branches[name].beta - factors[name] * means[name] for name in branches)
    total = sum(matrix * _by_group(factors[name], groups) for name, matrix in matrices.items())
    y = passes.combine(
        y3,
        factors[main].astype(x.dtype),
        inputs,
        np.asarray(total, x.dtype) if matrices else None,
        np.asarray(bias, x.dtype),
        relu=relu,
    )
    cache = BranchesCache(branches, stats, conv, y3, of_y3, y if relu else None, inputs, of_x)
    return BranchesForward(y, cache, stats)


@in_session
def branches_backward(grad_y: Array, cache: BranchesCache) -> tuple[Array, dict[str, BranchGrads]]:
    """`Ops.fused_branches_backward` for NHWC arrays."""
    g, sums = _gradient(grad_y, cache, keep=True)
    grads: dict[str, BranchGrads] = {}
    if cache.y3 is None:
        grad_x = np.zeros_like(cache.inputs.x)
    else:
        grad_x = input_gradient(_kernel_gradient(g, sums, cache, grads), cache.conv)
    if cache.of_x is not None:
        from_g, from_x, bias = _matrix_gradients(sums, cache, cache.of_x, grads)
        passes.add_pointwise(grad_x, g, from_g, cache.inputs, from_x, bias)
    return grad_x, grads


@in_session
def branches_parameter_grads(grad_y: Array, cache: BranchesCache) -> dict[str, BranchGrads]:
    """`branches_backward` without grad_x."""
    g, sums = _gradient(grad_y, cache, keep=cache.y3 is not None)
    grads: dict[str, BranchGrads] = {}
    if cache.y3 is not None:
        _kernel_gradient(g, sums, cache, grads)
    if cache.of_x is not None:
        _matrix_gradients(sums, cache, cache.of_x, grads)
    return grads


def _gradient(grad_y: Array, cache: BranchesCache, *, keep: bool) -> tuple[Array, GradientSums]:
    """The masked gradient g and its sums; if g is not to be kept, its array is grad_y."""
    grid, of_y3, of_x = cache.inputs.grid, cache.of_y3, cache.of_x
    shape = (grid.images, grid.height, grid.width, cache.conv.shape.outputs)
    require_equal("branches", "grad_y.shape", grad_y.shape, "y.shape", shape)
    grad_y = np.ascontiguousarray(grad_y)
    masked = memory.empty(shape, grad_y.dtype) if keep and cache.y is not None else None
    sums = passes.gradient_sums(
        grad_y,
        cache.y,
        cache.y3,
        None if of_y3 is None else of_y3.mean,
        cache.inputs,
        None if of_x is None else of_x.mean,
        masked,
    )
    return grad_y if masked is None else masked, sums


def _kernel_gradient(
    g: Array, sums: GradientSums, cache: BranchesCache, grads: dict[str, BranchGrads]
) -> Array:
    """The 3x3 branch's gradients into `grads`; dz_3, which grad_x needs."""
    assert cache.y3 is not None
    assert cache.of_y3 is not None
    assert sums.with_y3 is not None
    main, _ = _main(cache.branches)
    grid, dtype = cache.inputs.grid, g.dtype
    inv_std = cache.stats[main].inv_std
    factor = cache.branches[main].gamma * inv_std
    slope = factor * inv_std**2 * sums.with_y3 / grid.pixels
    shift = factor * sums.total / grid.pixels - slope * cache.of_y3.mean
    grad_y3 = passes.through_norm(
        g, cache.y3, factor.astype(dtype), slope.astype(dtype), shift.astype(dtype), grid
    )
    grad_weight = weight_gradient(grad_y3, cache.conv)
    grads[main] = _branch_grads(grad_weight, inv_std * sums.with_y3, sums.total, dtype)
    return grad_y3


def _matrix_gradients(
    sums: GradientSums, cache: BranchesCache, of_x: Moments, grads: dict[str, BranchGrads]
) -> tuple[Array, Array, Array]:
    """Gradients of the other branches into `grads`; K^T, L and the constant of grad_x."""
    assert sums.with_x is not None
    inputs, dtype = cache.inputs, cache.inputs.x.dtype
    groups, pixels = inputs.window.groups, inputs.grid.pixels
    spread, with_x = of_x.about_mean.astype(dtype), sums.with_x.astype(dtype)
    from_g, from_x = np.zeros_like(with_x), np.zeros_like(spread)
    for name, matrix in _matrices(cache.branches, inputs).items():
        weight, gamma, _ = cache.branches[name]
        inv_std = cache.stats[name].inv_std
        with_z = (matrix * sums.with_x).sum(axis=1).reshape(-1)  # diag(W^T P)
        matrix = matrix.astype(dtype)
        slope = _by_group(inv_std**2 * with_z / pixels, groups).astype(dtype)
        factor = _by_group(gamma * inv_std, groups).astype(dtype)
        from_g += matrix * factor
        from_x += (matrix * (factor * slope)) @ matrix.swapaxes(1, 2)
        grad_weight = None
        if weight is not None:
            # (G, C/G, O/G) = (G, C/G, O/G) - (G, C/G, C/G) @ (G, C/G, O/G)
            grad_matrix = (with_x - spread @ (matrix * slope)) * factor
            grad_weight = _as_kernel(grad_matrix, weight, inputs.window)
        grads[name] = _branch_grads(grad_weight, inv_std * with_z, sums.total, dtype)
    from_g = np.ascontiguousarray(from_g.swapaxes(1, 2))
    mean_x, mean_g = of_x.mean.reshape(groups, 1, -1), sums.total.reshape(groups, 1, -1) / pixels
    # (G, 1, C/G) = (G, 1, C/G) @ (G, C/G, C/G) - (G, 1, O/G) @ (G, O/G, C/G)
    bias = mean_x @ from_x - mean_g @ from_g
    return from_g, from_x, bias.reshape(-1).astype(dtype)


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


def _inputs(conv: Conv2dCache) -> Inputs:
    """What matrices meet: whole windows if these are no longer than the outputs, else pixels."""
    shape, window = conv.shape, window_of(conv)
    if window.kernel**2 * shape.channels > shape.outputs:
        window = window._replace(kernel=1, dilation=1, border=0)
    channels = max(window.kernel**2 * shape.channels, shape.outputs)
    grid = passes.make_grid(shape.images, shape.height, shape.width, channels)
    return passes.make_inputs(grid, conv.x, window)


def _matrices(branches: Mapping[str, BranchArrays], inputs: Inputs) -> dict[str, Array]:
    """Kernels that are matrices, and the identity, as float64 (G, K * K * C/G, O/G)."""
    kernel, groups = inputs.window.kernel, inputs.window.groups
    inner = inputs.x.shape[3] // groups
    matrices = {}
    for name, (weight, gamma, _) in branches.items():
        if weight is None:
            matrix = np.broadcast_to(np.eye(inner), (groups, inner, inner))
        elif weight.shape[2] <= kernel:
            matrix = pack_weight(weight, groups).astype(np.float64)
        else:
            continue
        if matrix.shape[1] < kernel**2 * inner:  # it meets the pixel in the middle of the window
            centre = np.zeros((groups, kernel**2, inner, len(gamma) // groups))
            centre[:, kernel**2 // 2] = matrix
            matrix = centre.reshape(groups, kernel**2 * inner, -1)
        matrices[name] = matrix
    return matrices


def _as_kernel(matrix: Array, weight: Array, window: Window) -> Array:
    """Back from (G, K * K * C/G, O/G) to the shape of `weight`, (O, C/G, k, k) with k 1 or K."""
    outputs, inner, kernel, _ = weight.shape
    taps = matrix.reshape(len(matrix), window.kernel**2, inner, -1)
    if kernel < window.kernel:
        taps = taps[:, window.kernel**2 // 2 :][:, :1]
    # (G, k k, C/G, O/G) -> (G, O/G, C/G, k k) -> (O, C/G, k, k)
    return taps.transpose(0, 3, 2, 1).reshape(outputs, inner, kernel, kernel)


def _through(matrix: Array, of_x: Moments | None, pixels: int) -> tuple[Array, Array]:
    """Mean and biased variance (O,) of ``x W``."""
    assert of_x is not None
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
