"""The three-branch block in training mode by the fused kernels, and batch norm as one branch of it.

    forward    z_k = W_k * x;  statistics of every z_k in one pass;
               y = relu(sum of a_k z_k + b) in one pass, with a_k = gamma_k / sqrt(var_k + eps)
    backward   sums over the batch in one pass, grad z_k of all branches in one pass, then the
               gradients of the convolutions

Kept for the backward pass: x, the z_k and y. The equations stand in `kernels.branches`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Generic, NamedTuple, TypeVar

import cupy

from repvgg_ref.arrays import Array, Real
from repvgg_ref.blocks.recognise import ROLES
from repvgg_ref.errors import BackendError, require_equal
from repvgg_ref.gpu import kernels
from repvgg_ref.gpu.conv2d import Conv2dCache, Convolutions
from repvgg_ref.ops import BatchNormGrads, BranchArrays, BranchesForward, BranchGrads

T = TypeVar("T")
R = TypeVar("R")


class ByRole(NamedTuple, Generic[T]):
    """Something of each branch by its role, in the order of the kernels' arguments."""

    dense: T
    point: T | None = None
    identity: T | None = None

    @classmethod
    def of(cls, branches: Mapping[str, T]) -> ByRole[T]:
        """A block's branches in this order.

        Raises
        ------
        BackendError
            If there is another role (a sum leaves nothing out in silence), or nothing dense.
        """
        if ROLES[0] not in branches or not set(branches) <= set(ROLES):
            raise BackendError(
                "the fused kernels do not know such a block",
                got=", ".join(branches),
                wanted="{}, and beside it at most {} and {}".format(*ROLES),
            )
        return ByRole(**branches)

    def map(self, function: Callable[[T], R]) -> ByRole[R]:
        """`function` of each that is there."""
        point, identity = (None if each is None else function(each) for each in self[1:])
        return ByRole(function(self.dense), point, identity)


def present(three: Iterable[T | None]) -> dict[str, T]:
    """What is there of three, in the order of `ByRole`, under its role."""
    return {role: each for role, each in zip(ROLES, three, strict=True) if each is not None}


class Moments(NamedTuple):
    """A branch's mean and biased variance over the batch, (C,) each."""

    mean: Array
    var: Array


class NormsCache(NamedTuple):
    """What the backward pass of a sum of batch norms needs; `mean` and `var` are `dense`'s."""

    inputs: ByRole[Array]  # the z_k; the identity's is x
    gammas: ByRole[Array]
    moments: Array  # (3, 2, C)
    inv_std: Array  # (3, C)
    y: Array | None  # None without a ReLU

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


class NormsGrads(NamedTuple):
    """Gradients of the z_k; of gamma, (3, C); and of every beta, (C,)."""

    inputs: ByRole[Array]
    gamma: Array
    beta: Array


class BranchesCache(NamedTuple):
    """What the backward pass of a block needs; the identity has no convolution."""

    norms: NormsCache
    convolutions: ByRole[Conv2dCache | None]


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
        """`BranchPasses.forward_pass`; x (N, H, W, C), y (N, Ho, Wo, O)."""
        three = ByRole.of(branches)
        x = self._convolutions.store(x)

        def convolved(branch: BranchArrays) -> tuple[Array, Conv2dCache | None]:
            if branch.weight is None:
                return x, None
            padding = branch.weight.shape[-1] // 2 * dilation
            settings = {"stride": stride, "padding": padding, "dilation": dilation}
            return self._convolutions.forward(x, branch.weight, None, groups=groups, **settings)

        found = three.map(convolved)
        inputs = found.map(lambda each: each[0])
        moments = kernels.channel_moments(*inputs)
        gammas, betas = three.map(lambda each: each.gamma), three.map(lambda each: each.beta)
        y, norms = _norms_forward(inputs, gammas, betas, moments, eps=eps, relu=relu)
        stats = (
            None if branch is None else Moments(of_branch[0], of_branch[1])
            for branch, of_branch in zip(three, moments, strict=True)
        )
        cache = BranchesCache(norms, found.map(lambda each: each[1]))
        return BranchesForward(y, cache, present(stats))

    def backward(
        self, grad_y: Array, cache: BranchesCache
    ) -> tuple[Array, Mapping[str, BranchGrads]]:
        """`BranchPasses.backward_pass`: gradients of x and of the branches by role."""
        through = _norms_backward(grad_y, cache.norms)
        grad_x: Array | None = through.inputs.identity
        for grad_z, conv in zip(through.inputs, cache.convolutions, strict=True):
            if grad_z is not None and conv is not None:
                part = self._convolutions.grad_x(grad_z, conv)
                grad_x = part if grad_x is None else cupy.add(grad_x, part, out=part)
        assert grad_x is not None
        return grad_x, self._parameter_grads(through, cache)

    def parameter_grads(self, grad_y: Array, cache: BranchesCache) -> Mapping[str, BranchGrads]:
        """`BranchPasses.parameter_pass`: no gradient of x."""
        return self._parameter_grads(_norms_backward(grad_y, cache.norms), cache)

    def _parameter_grads(self, through: NormsGrads, cache: BranchesCache) -> dict[str, BranchGrads]:
        return present(
            None
            if grad_z is None
            else BranchGrads(
                None if conv is None else self._convolutions.grad_weight(grad_z, conv),
                grad_gamma,
                through.beta,
            )
            for grad_z, conv, grad_gamma in zip(
                through.inputs, cache.convolutions, through.gamma, strict=True
            )
        )


def batch_norm_train_forward(
    x: Array, gamma: Array, beta: Array, *, eps: Real
) -> tuple[Array, NormsCache]:
    """`ops.batch_norm.batch_norm_train_forward` for x (N, H, W, C): one branch without ReLU."""
    _require_vectors(x, gamma=gamma, beta=beta)
    alone = ByRole(x), ByRole(gamma), ByRole(beta)
    return _norms_forward(*alone, kernels.channel_moments(x), eps=eps, relu=False)


def batch_norm_train_backward(grad_y: Array, cache: NormsCache) -> BatchNormGrads:
    """`ops.batch_norm.batch_norm_train_backward` for grad_y (N, H, W, C)."""
    x = cache.inputs.dense
    require_equal("batch_norm", "grad_y.shape", grad_y.shape, "y.shape", x.shape)
    grads = _norms_backward(grad_y, cache)
    return BatchNormGrads(grads.inputs.dense, grads.gamma[0], grads.beta)


def batch_norm_eval_forward(
    x: Array, gamma: Array, beta: Array, mean: Array, var: Array, *, eps: Real
) -> tuple[Array, NormsCache]:
    """`ops.batch_norm.batch_norm_eval_forward` for x (N, H, W, C), by the running statistics."""
    _require_vectors(x, gamma=gamma, beta=beta, mean=mean, var=var)
    moments = cupy.zeros((3, 2, len(mean)), mean.dtype)
    moments[0, 0], moments[0, 1] = mean, var
    alone = ByRole(cupy.ascontiguousarray(x)), ByRole(gamma), ByRole(beta)
    return _norms_forward(*alone, moments, eps=eps, relu=False)


def batch_norm_eval_backward(grad_y: Array, cache: NormsCache) -> BatchNormGrads:
    """`ops.batch_norm.batch_norm_eval_backward` for grad_y (N, H, W, C)."""
    x, gamma = cache.inputs.dense, cache.gammas.dense
    require_equal("batch_norm", "grad_y.shape", grad_y.shape, "y.shape", x.shape)
    grad_y = cupy.ascontiguousarray(grad_y)
    sums = kernels.branches_backward_sums(grad_y, None, x, None, None, cache.moments)
    scale = cupy.zeros((4, len(gamma)), gamma.dtype)
    scale[0] = gamma * cache.inv_std[0]
    grad_x = kernels.branches_forward(grad_y, None, None, scale, relu=False)
    return BatchNormGrads(grad_x, sums[1] * cache.inv_std[0], sums[0])


def _norms_forward(
    inputs: ByRole[Array],
    gammas: ByRole[Array],
    betas: ByRole[Array],
    moments: Array,
    *,
    eps: Real,
    relu: bool,
) -> tuple[Array, NormsCache]:
    """``y = [relu](sum of batch norms)`` by these moments."""
    found = kernels.branch_coefficients(moments, gammas, betas, eps=float(eps))
    y = kernels.branches_forward(*inputs, found.forward, relu=relu)
    return y, NormsCache(inputs, gammas, moments, found.inv_std, y if relu else None)


def _norms_backward(grad_y: Array, cache: NormsCache) -> NormsGrads:
    """Backward of `_norms_forward` by moments of the batch."""
    z = cache.inputs.dense
    grad_y = cupy.ascontiguousarray(grad_y, dtype=z.dtype)
    sums = kernels.branches_backward_sums(grad_y, cache.y, *cache.inputs, cache.moments)
    found = kernels.branch_grad_coefficients(
        sums, cache.moments, cache.inv_std, cache.gammas, count=z.size // z.shape[-1]
    )
    grads = kernels.branches_backward(grad_y, cache.y, *cache.inputs, found.backward)
    return NormsGrads(ByRole(*grads), found.grad_gamma, found.grad_beta)


def _require_vectors(x: Array, **vectors: Array) -> None:
    require_equal("batch_norm", "x.ndim", x.ndim, "len((N, H, W, C))", 4)
    for name, vector in vectors.items():
        require_equal("batch_norm", f"{name}.shape", vector.shape, "(C,)", (x.shape[3],))
