"""The three-branch block in training mode by the fused kernels, and batch norm as one branch of it.

    forward    z_k = W_k * x;  statistics of every z_k in one pass;
               y = relu(sum of a_k z_k + b) in one pass, with a_k = gamma_k / sqrt(var_k + eps)
    backward   sums over the batch in one pass, grad z_k of all branches in one pass, then the
               gradients of the convolutions

Kept for the backward pass: x, z_3x3, z_1x1 and y. The equations stand in `kernels.branches`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cupy

from repvgg_ref.arrays import Array, Real
from repvgg_ref.errors import require_equal
from repvgg_ref.gpu import kernels
from repvgg_ref.gpu.conv2d import Conv2dCache, Convolutions
from repvgg_ref.ops import BatchNormGrads, BranchArrays, BranchesForward, BranchGrads

# The order of the kernels' arguments.
BRANCHES = ("branch_3x3", "branch_1x1", "branch_identity")


class Moments(NamedTuple):
    """A branch's mean and biased variance over the batch, (C,) each."""

    mean: Array
    var: Array


class BranchesCache(NamedTuple):
    """What the backward pass needs; lists are in the order of `BRANCHES`, None where absent."""

    outputs: list[Array | None]  # z_3x3, z_1x1, x
    convolutions: list[Conv2dCache | None]
    gammas: list[Array | None]
    moments: Array  # (3, 2, C)
    inv_std: Array  # (3, C)
    y: Array | None  # None without a ReLU


class BatchNormCache(NamedTuple):
    """What the backward pass needs; `mean` and `var` feed the running statistics."""

    x: Array
    gamma: Array
    moments: Array
    inv_std: Array

    @property
    def mean(self) -> Array:
        """Mean of the batch, (C,)."""
        mean: Array = self.moments[0, 0]
        return mean

    @property
    def var(self) -> Array:
        """Biased variance of the batch, (C,)."""
        var: Array = self.moments[0, 1]
        return var


class FusedBranches:
    """The block's two passes over one kind of convolution."""

    def __init__(self, convolutions: Convolutions) -> None:
        self._convolutions = convolutions

    def forward(
        self,
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
        """`Ops.fused_branches_forward`; x (N, H, W, C), y (N, Ho, Wo, O)."""
        x = self._convolutions.store(x)
        outputs: list[Array | None] = []
        caches: list[Conv2dCache | None] = []
        for name in BRANCHES:
            weight = branches[name].weight if name in branches else None
            if weight is None:
                outputs.append(x if name in branches else None)
                caches.append(None)
                continue
            z, cache = self._convolutions.forward(
                x,
                weight,
                None,
                stride=stride,
                padding=weight.shape[-1] // 2 * dilation,
                dilation=dilation,
                groups=groups,
            )
            outputs.append(z)
            caches.append(cache)
        z3, z1, identity = outputs
        assert z3 is not None, "every block has a 3x3 branch"
        moments = kernels.channel_moments(z3, z1, identity)
        gammas = [branches[name].gamma if name in branches else None for name in BRANCHES]
        betas = [branches[name].beta if name in branches else None for name in BRANCHES]
        found = kernels.branch_coefficients(moments, gammas, betas, eps=float(eps))
        y = kernels.branches_forward(z3, z1, identity, found.forward, relu=relu)
        stats = {
            name: Moments(moments[place, 0], moments[place, 1])
            for place, name in enumerate(BRANCHES)
            if name in branches
        }
        kept = y if relu else None
        return BranchesForward(
            y, BranchesCache(outputs, caches, gammas, moments, found.inv_std, kept), stats
        )

    def backward(
        self, grad_y: Array, cache: BranchesCache
    ) -> tuple[Array, Mapping[str, BranchGrads]]:
        """`Ops.fused_branches_backward`."""
        through, grads = self._through_norms(grad_y, cache)
        grad_x: Array | None = through[2]  # the identity's share
        for grad_z, conv in zip(through, cache.convolutions, strict=True):
            if conv is not None:
                assert grad_z is not None
                part = self._convolutions.grad_x(grad_z, conv)
                grad_x = part if grad_x is None else cupy.add(grad_x, part, out=part)
        assert grad_x is not None
        return grad_x, grads

    def parameter_grads(self, grad_y: Array, cache: BranchesCache) -> Mapping[str, BranchGrads]:
        """`Ops.fused_branches_parameter_grads`: no gradient of x."""
        return self._through_norms(grad_y, cache)[1]

    def _through_norms(
        self, grad_y: Array, cache: BranchesCache
    ) -> tuple[tuple[Array | None, ...], dict[str, BranchGrads]]:
        """Gradients of the branches' outputs before batch norm, and of all parameters."""
        z3 = cache.outputs[0]
        assert z3 is not None, "every block has a 3x3 branch"
        grad_y = cupy.ascontiguousarray(grad_y, dtype=z3.dtype)
        found, through = _backward(
            grad_y, cache.y, cache.outputs, cache.moments, cache.inv_std, cache.gammas
        )
        grads = {}
        for place, name in enumerate(BRANCHES):
            grad_z, conv = through[place], cache.convolutions[place]
            if grad_z is not None:
                weight = None if conv is None else self._convolutions.grad_weight(grad_z, conv)
                grads[name] = BranchGrads(weight, found.grad_gamma[place], found.grad_beta)
        return through, grads


def batch_norm_train_forward(
    x: Array, gamma: Array, beta: Array, *, eps: Real
) -> tuple[Array, BatchNormCache]:
    """`ops.batch_norm.batch_norm_train_forward` for x (N, H, W, C): one branch without ReLU."""
    _require_vectors(x, gamma=gamma, beta=beta)
    moments = kernels.channel_moments(x)
    found = kernels.branch_coefficients(
        moments, (gamma, None, None), (beta, None, None), eps=float(eps)
    )
    y = kernels.branches_forward(x, None, None, found.forward, relu=False)
    return y, BatchNormCache(x, gamma, moments, found.inv_std)


def batch_norm_train_backward(grad_y: Array, cache: BatchNormCache) -> BatchNormGrads:
    """`ops.batch_norm.batch_norm_train_backward` for grad_y (N, H, W, C)."""
    outputs, gammas = [cache.x, None, None], [cache.gamma, None, None]
    require_equal("batch_norm", "grad_y.shape", grad_y.shape, "y.shape", cache.x.shape)
    found, through = _backward(
        cupy.ascontiguousarray(grad_y), None, outputs, cache.moments, cache.inv_std, gammas
    )
    assert through[0] is not None
    return BatchNormGrads(through[0], found.grad_gamma[0], found.grad_beta)


def batch_norm_eval_forward(
    x: Array, gamma: Array, beta: Array, mean: Array, var: Array, *, eps: Real
) -> tuple[Array, BatchNormCache]:
    """`ops.batch_norm.batch_norm_eval_forward` for x (N, H, W, C), by the running statistics."""
    _require_vectors(x, gamma=gamma, beta=beta, mean=mean, var=var)
    moments = cupy.zeros((3, 2, len(mean)), mean.dtype)
    moments[0, 0], moments[0, 1] = mean, var
    found = kernels.branch_coefficients(
        moments, (gamma, None, None), (beta, None, None), eps=float(eps)
    )
    x = cupy.ascontiguousarray(x)
    y = kernels.branches_forward(x, None, None, found.forward, relu=False)
    return y, BatchNormCache(x, gamma, moments, found.inv_std)


def batch_norm_eval_backward(grad_y: Array, cache: BatchNormCache) -> BatchNormGrads:
    """`ops.batch_norm.batch_norm_eval_backward` for grad_y (N, H, W, C)."""
    require_equal("batch_norm", "grad_y.shape", grad_y.shape, "y.shape", cache.x.shape)
    grad_y = cupy.ascontiguousarray(grad_y)
    sums = kernels.branches_backward_sums(grad_y, None, cache.x, None, None, cache.moments)
    scale = cupy.zeros((4, len(cache.gamma)), cache.gamma.dtype)
    scale[0] = cache.gamma * cache.inv_std[0]
    grad_x = kernels.branches_forward(grad_y, None, None, scale, relu=False)
    return BatchNormGrads(grad_x, sums[1] * cache.inv_std[0], sums[0])


def _backward(
    grad_y: Array,
    y: Array | None,
    outputs: Sequence[Array | None],
    moments: Array,
    inv_std: Array,
    gammas: Sequence[Array | None],
) -> tuple[kernels.BranchGradCoefficients, tuple[Array | None, ...]]:
    """Gradients of gamma and beta, and of each branch's output before its batch norm."""
    z3, z1, x = outputs
    assert z3 is not None
    sums = kernels.branches_backward_sums(grad_y, y, z3, z1, x, moments)
    count = z3.size // z3.shape[-1]
    found = kernels.branch_grad_coefficients(sums, moments, inv_std, gammas, count=count)
    return found, kernels.branches_backward(grad_y, y, z3, z1, x, found.backward)


def _require_vectors(x: Array, **vectors: Array) -> None:
    require_equal("batch_norm", "x.ndim", x.ndim, "len((N, H, W, C))", 4)
    for name, vector in vectors.items():
        require_equal("batch_norm", f"{name}.shape", vector.shape, "(C,)", (x.shape[3],))
