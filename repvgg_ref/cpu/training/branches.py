"""A sum of branches in training, forward and backward, in few passes over memory.

    y = [ReLU]( sum BN(W_k * x) + sum BN(x W_j) + sum BN(z_i) )          each BN may be missing

The paper's block is ``y = ReLU(BN3(W3 * x) + BN1(W1 * x) + BN0(x))`` (arXiv 2101.03697, section
3.2). The z_i are computed elsewhere (`expression`) and count as outputs of a convolution.

The outputs ``y_k = W_k * x`` of larger kernels are computed and kept. Those of 1x1 kernels are
not, unless x is wide (`parts.WIDEST`). A 1x1 kernel is a matrix, the identity the matrix I (`W_j`,
(C, O)), so all that training asks of ``z_j = x W_j`` follows from small matrices:

    m   = mean of x                  S = sum over pixels of (x - m)^T (x - m)            (C, C)
    mean(z_j) = m W_j                n var(z_j) = diag(W_j^T S W_j)

With ``a = gamma / sqrt(var + eps)``, 1 where there is no norm, the rest is one product:

    y = ReLU( sum a_k y_k + x K + b ),    K = sum_j W_j diag(a_j)

Backward, g = grad_y where y > 0. Batch norm hands back (Ioffe & Szegedy, section 3)

    dz_j = a_j (g - mean(g) - B_j (z_j - mean(z_j)))
    B_j  = sum(g (z_j - mean(z_j))) / (n (var_j + eps))

Of the sums only ``P = sum over pixels of (x - m)^T g`` (C, O) asks for work:

    sum(g (z_j - mean(z_j))) = diag(W_j^T P)           dW_j = (P - S W_j diag(B_j)) diag(a_j)
    dx = g K^T - (x - m) L - mean(g) K^T               L = sum_j W_j diag(a_j B_j) W_j^T

and dy_k is formed, since a larger kernel's two convolutions need it. So the paper's block is five
products with a matrix (C, O) or (C, C), three Winograd convolutions and four passes over pixels
(`passes`), and keeps x, y_3 and y: two thirds of what separate operators do.

Where 9 C <= O (the images' block) a 3x3 kernel is a matrix too, of whole windows, (9 C, O), and
its output is not kept either. The identity without a 1x1 kernel beside it is an output, x.

Error. S is summed in float32 in pieces of some thousand pixels about the piece's mean, then in
float64. So var(z_j) errs by u (sum_c |W_cj| std(x_c))^2 at most, where computing z_j first errs by
u std(z_j) sum_c |W_cj| std(x_c): the same unless a 1x1 kernel cancels what its inputs share.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array, Real
from repvgg_ref.cpu.training import moments, passes
from repvgg_ref.cpu.training.convolutions import Geometry, input_gradient, weight_gradient
from repvgg_ref.cpu.training.moments import Moments
from repvgg_ref.cpu.training.parts import (
    Branch,
    Kept,
    Parts,
    as_kernel,
    require_vectors,
    sort_branches,
)
from repvgg_ref.cpu.training.passes import GradientSums
from repvgg_ref.cpu.workers import memory
from repvgg_ref.cpu.workers.pool import in_session
from repvgg_ref.errors import require_equal


class Statistics(NamedTuple):
    """A branch's batch norm, (O,) each: of the array's dtype, 1 / sqrt(var + eps) in float64."""

    mean: Array
    var: Array
    inv_std: Array


class BranchesCache(NamedTuple):
    """What `branches_backward` needs; `stats` and `of_outputs` are of branches with a norm."""

    x: Array | None
    branches: Mapping[str, Branch]
    parts: Parts
    stats: Mapping[str, Statistics]
    of_outputs: Mapping[str, Moments]
    shape: tuple[int, ...]
    y: Array | None  # None: no ReLU


class Forward(NamedTuple):
    """What `branches_forward` gives."""

    y: Array
    cache: BranchesCache
    stats: Mapping[str, Statistics]


@in_session
def branches_forward(
    x: Array | None,
    branches: Mapping[str, Branch],
    geometry: Geometry,
    /,
    *,
    eps: Real,
    relu: bool,
    kept: Kept | None = None,
) -> Forward:
    """The sum for x (N, H, W, C), None if all outputs are given."""
    parts = sort_branches(x, branches, geometry, kept)
    outputs, pixels = parts.outputs, parts.grid.pixels
    count, dtype = _output_kind(branches, parts)
    require_vectors(branches, count)
    normed = {name: branch for name, branch in branches.items() if branch.gamma is not None}
    of_outputs = {
        name: moments.channel_moments(z, parts.grid)
        for name, z in outputs.items()
        if name in normed
    }
    means, stats = dict[str, Array](), dict[str, Statistics]()
    for name in normed:
        if name in of_outputs:
            means[name], var = of_outputs[name].mean, of_outputs[name].about_mean / pixels
        else:
            means[name], var = _through(parts.matrices[name], parts.of_x, pixels)
        stats[name] = _statistics(means[name], var, eps, dtype)
    factors = {name: branch.gamma * stats[name].inv_std for name, branch in normed.items()}
    bias = np.zeros(count) + sum(
        branch.beta - factors[name] * means[name] for name, branch in normed.items()
    )
    scaled = [(z, factors[n].astype(dtype) if n in factors else None) for n, z in outputs.items()]
    total = [
        matrix * _by_group(factors[name], len(matrix)) if name in factors else matrix
        for name, matrix in parts.matrices.items()
    ]
    weight = np.asarray(sum(total), dtype) if total else None
    if len(branches) == 1 and scaled and not (normed or relu):
        y = scaled[0][0]
    else:
        vector = bias.astype(dtype)
        y = passes.combine(scaled, parts.inputs, weight, vector, parts.grid, relu=relu)
    after = y if relu else None
    cache = BranchesCache(x, branches, parts, stats, of_outputs, y.shape, after)
    return Forward(y, cache, stats)


class Gradients(NamedTuple):
    """Gradients of a `Branch`."""

    weight: Array | None = None
    gamma: Array | None = None
    beta: Array | None = None
    output: Array | None = None


@in_session
def branches_backward(
    grad_y: Array, cache: BranchesCache, *, wants_x: bool = True, into: Array | None = None
) -> tuple[Array | None, dict[str, Gradients]]:
    """The gradients of x and of the branches; that of x is added to `into`, if that is given."""
    sums, g = _gradient(grad_y, cache, wants_x=wants_x)
    grads: dict[str, Gradients] = {}
    grad_x = into
    for place, name in enumerate(cache.of_outputs):
        grads[name] = _norm_gradients(name, sums.with_z[place], sums.total, g, cache)
    for name, branch in cache.branches.items():
        if name not in cache.parts.outputs:
            continue
        grad_z, conv = grads[name].output if name in grads else g, cache.parts.convs.get(name)
        assert grad_z is not None
        found = grads.get(name, Gradients())
        if branch.output is not None:
            grads[name] = found._replace(output=grad_z)
            continue
        weight = None if conv is None else weight_gradient(grad_z, conv)
        grads[name] = found._replace(weight=weight, output=None)
        if wants_x:
            through = grad_z if conv is None else input_gradient(grad_z, conv)
            grad_x = _added(grad_x, through, fresh=conv is not None or name in cache.stats)
    if cache.parts.inputs is not None:
        grad_x = _matrix_gradients(g, sums, cache, grads, grad_x, wants_x=wants_x)
    return grad_x, grads


def _gradient(grad_y: Array, cache: BranchesCache, *, wants_x: bool) -> tuple[GradientSums, Array]:
    """Sums of the masked gradient g, and g; if that is not to be kept, grad_y in its place."""
    parts = cache.parts
    require_equal("branches", "grad_y.shape", grad_y.shape, "y.shape", cache.shape)
    grad_y = np.ascontiguousarray(grad_y)
    keep = cache.y is not None and (wants_x or bool(parts.outputs))
    masked = memory.empty(grad_y.shape, grad_y.dtype) if keep else None
    centres = [(parts.outputs[name], seen.mean) for name, seen in cache.of_outputs.items()]
    mean_x = None if parts.of_x is None else parts.of_x.mean
    sums = passes.gradient_sums(grad_y, cache.y, centres, parts.inputs, mean_x, masked, parts.grid)
    return sums, grad_y if masked is None else masked


def _norm_gradients(
    name: str, with_z: Array, total: Array, g: Array, cache: BranchesCache
) -> Gradients:
    """Of gamma and beta, and of what is before the norm."""
    grid, dtype, gamma = cache.parts.grid, g.dtype, cache.branches[name].gamma
    assert gamma is not None
    inv_std = cache.stats[name].inv_std
    factor = gamma * inv_std
    slope = factor * inv_std**2 * with_z / grid.pixels
    shift = factor * total / grid.pixels - slope * cache.of_outputs[name].mean
    of_g, of_z, shift = (vector.astype(dtype) for vector in (factor, slope, shift))
    grad_z = passes.through_norm(g, cache.parts.outputs[name], of_g, of_z, shift, grid)
    return Gradients(None, (inv_std * with_z).astype(dtype), total.astype(dtype), grad_z)


def _added(total: Array | None, other: Array, *, fresh: bool) -> Array:
    """``total + other``, in place; a first one that is not `fresh` is somebody else's."""
    if total is None:
        return other if fresh else other.copy()
    passes.accumulate(total, other)
    return total


def _matrix_gradients(
    g: Array,
    sums: GradientSums,
    cache: BranchesCache,
    grads: dict[str, Gradients],
    grad_x: Array | None,
    *,
    wants_x: bool,
) -> Array | None:
    """Gradients of the matrices into `grads`; what x gets by them is added to `grad_x`."""
    parts, inputs, of_x = cache.parts, cache.parts.inputs, cache.parts.of_x
    assert sums.with_x is not None
    assert inputs is not None
    dtype, groups = inputs.x.dtype, inputs.window.groups
    if of_x is None:
        of_x = Moments(np.zeros(inputs.channels), np.zeros(0))  # sums were about 0
    mean_x = of_x.mean.reshape(groups, -1, 1)
    with_x = sums.with_x.astype(dtype)
    about_0 = with_x + (mean_x * _by_group(sums.total, groups)).astype(dtype)
    plain, normed = np.zeros_like(with_x), np.zeros_like(with_x)
    from_x: Array | None = None
    for name, matrix in parts.matrices.items():
        weight, narrow = cache.branches[name].weight, matrix.astype(dtype)
        if name not in cache.stats:
            plain += narrow
            grads[name], grad_matrix = Gradients(), about_0
        else:
            found = _matrix_norm(name, sums, cache)
            grads[name], factor, slope = found.grads, found.factor, found.slope
            normed += narrow * factor
            spread = (narrow * (factor * slope)) @ narrow.swapaxes(1, 2)
            from_x = spread if from_x is None else from_x + spread
            # (G, C/G, O/G) = (G, C/G, O/G) - (G, C/G, C/G) @ (G, C/G, O/G)
            moved = of_x.about_mean.astype(dtype) @ (narrow * slope) if weight is not None else 0
            grad_matrix = (with_x - moved) * factor
        if weight is not None:
            kernel = as_kernel(grad_matrix, weight, inputs.window)
            grads[name] = grads[name]._replace(weight=kernel)
    if not wants_x:
        return grad_x
    mean_g = _by_group(sums.total, groups) / parts.grid.pixels
    # (G, 1, C/G) = (G, 1, C/G) @ (G, C/G, C/G) - (G, 1, O/G) @ (G, O/G, C/G)
    bias = (0 if from_x is None else mean_x.swapaxes(1, 2) @ from_x) - mean_g @ normed.swapaxes(
        1, 2
    )
    grad_x = np.zeros_like(inputs.x) if grad_x is None else grad_x
    from_g = np.ascontiguousarray((plain + normed).swapaxes(1, 2))
    passes.add_pointwise(grad_x, g, from_g, inputs, from_x, bias.reshape(-1).astype(dtype))
    return grad_x


class _MatrixNorm(NamedTuple):
    """What a matrix's norm makes of the gradient: its own, and diag(a), diag(B), (G, 1, O/G)."""

    grads: Gradients
    factor: Array
    slope: Array


def _matrix_norm(name: str, sums: GradientSums, cache: BranchesCache) -> _MatrixNorm:
    matrix, gamma = cache.parts.matrices[name], cache.branches[name].gamma
    assert sums.with_x is not None
    inv_std, groups = cache.stats[name].inv_std, len(matrix)
    with_z = (matrix * sums.with_x).sum(axis=1).reshape(-1)  # diag(W^T P)
    slope = _by_group(inv_std**2 * with_z / cache.parts.grid.pixels, groups)
    factor = _by_group(gamma * inv_std, groups)
    dtype = cache.stats[name].mean.dtype
    grads = Gradients(None, (inv_std * with_z).astype(dtype), sums.total.astype(dtype))
    return _MatrixNorm(grads, factor.astype(dtype), slope.astype(dtype))


def _output_kind(branches: Mapping[str, Branch], parts: Parts) -> tuple[int, Any]:
    """Channels and dtype of the sum."""
    for z in parts.outputs.values():
        return z.shape[3], z.dtype
    assert parts.inputs is not None
    matrix = next(iter(parts.matrices.values()))
    return matrix.shape[0] * matrix.shape[2], parts.inputs.x.dtype


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
