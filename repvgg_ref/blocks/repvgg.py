"""The RepVGG block: three branches in training, one convolution in inference.

    y = ReLU(SE( BN3(W3 * x) + BN1(W1 * x) + BN0(x) ))        (paper, section 3.2, figure 4)
    y = ReLU(SE( W * x + b ))                                  (fused; section 3.3)

SE, where a model has one, sits before the ReLU in D2se and after it in RepVGGplus. Each branch is
an optional convolution followed by batch norm, so forward and backward are loops over branches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.ops import BranchArrays, BranchGrads, Ops

BRANCHES = ("branch_3x3", "branch_1x1", "branch_identity")
_SE_FIELDS = ("down.weight", "down.bias", "up.weight", "up.bias")


class Branch(NamedTuple):
    """Convolution (`weight` None: identity), then batch norm; vectors are ``(out_channels,)``."""

    weight: Array | None
    gamma: Array
    beta: Array
    running_mean: Array
    running_var: Array


class BatchStats(NamedTuple):
    """What one training step saw: biased variance over ``pixels = N * Ho * Wo`` values."""

    mean: Array
    var: Array
    pixels: int


class BlockCache(NamedTuple):
    """What the backward pass needs, and the batch statistics for the running averages."""

    branches: dict[str, tuple[Any, Any]]
    se: Any
    relu: Any
    stats: dict[str, BatchStats]
    fused: Any = None  # the cache of `ops.fused_branches_forward`, in place of `branches`, `relu`


class BlockGrads(NamedTuple):
    """`params` holds a gradient per trainable array, named as in the block's own part names."""

    x: Array
    params: dict[str, Array]


def branch_names(spec: BlockSpec) -> tuple[str, ...]:
    """The branches that `spec` has, in the paper's order."""
    present = {"branch_3x3": True, "branch_1x1": spec.has_1x1, "branch_identity": spec.has_identity}
    return tuple(name for name in BRANCHES if present[name])


def block_branches(spec: BlockSpec, params: Mapping[str, Array]) -> dict[str, Branch]:
    """Collect the branches of `spec` out of a model's flat `params`."""
    return {
        name: Branch(
            None if name == "branch_identity" else params[f"{spec.name}.{name}.conv.weight"],
            params[f"{spec.name}.{name}.bn.gamma"],
            params[f"{spec.name}.{name}.bn.beta"],
            params[f"{spec.name}.{name}.bn.running_mean"],
            params[f"{spec.name}.{name}.bn.running_var"],
        )
        for name in branch_names(spec)
    }


def train_block_forward(
    spec: BlockSpec,
    params: Mapping[str, Array],
    x: Array,
    *,
    ops: Ops,
    eps: Any,
    training: bool,
) -> tuple[Array, BlockCache]:
    """Run the three-branch form.

    Parameters
    ----------
    x : array, shape (N, C, H, W), or (N, H, W, C) where `ops` says so
    params : mapping
        The model's arrays under their canonical names, ``stage1.0.branch_3x3.conv.weight``.
    training : bool
        Normalise by the batch's statistics; otherwise by the running ones.

    Returns
    -------
    y : array, shape (N, O, Ho, Wo)
    cache : BlockCache
        `cache.stats` is empty in evaluation mode.
    """
    if training and ops.fused_branches_forward is not None:
        return _fused_training_forward(spec, params, x, ops=ops, eps=eps)
    total: Array | None = None
    caches: dict[str, tuple[Any, Any]] = {}
    stats: dict[str, BatchStats] = {}
    for name, branch in block_branches(spec, params).items():
        z, conv_cache = (x, None) if branch.weight is None else _conv(spec, x, branch.weight, ops)
        if training:
            y, bn_cache = ops.batch_norm_train_forward(z, branch.gamma, branch.beta, eps=eps)
            pixels = z.size // len(bn_cache.mean)  # N * Ho * Wo, whatever the table's layout
            stats[name] = BatchStats(bn_cache.mean, bn_cache.var, pixels)
        else:
            y, bn_cache = ops.batch_norm_eval_forward(
                z, branch.gamma, branch.beta, branch.running_mean, branch.running_var, eps=eps
            )
        caches[name] = (conv_cache, bn_cache)
        total = y if total is None else total + y
    y, se_cache, relu_cache = activate(spec, params, total, ops=ops)
    return y, BlockCache(caches, se_cache, relu_cache, stats)


def train_block_backward(
    spec: BlockSpec, grad_y: Array, cache: BlockCache, *, ops: Ops, training: bool
) -> BlockGrads:
    """Send `grad_y` of shape (N, O, Ho, Wo) back through the block.

    The sum of branches hands the same gradient to each; their input gradients add up.
    """
    if cache.fused is not None:
        return _fused_training_backward(spec, grad_y, cache, ops)
    grads: dict[str, Array] = {}
    grad_total = _activate_backward(spec, grad_y, cache, grads, ops)
    bn_backward = ops.batch_norm_train_backward if training else ops.batch_norm_eval_backward
    grad_x: Array | None = None
    for name, (conv_cache, bn_cache) in cache.branches.items():
        bn = bn_backward(grad_total, bn_cache)
        grads[f"{name}.bn.gamma"], grads[f"{name}.bn.beta"] = bn.grad_gamma, bn.grad_beta
        through = bn.grad_x
        if conv_cache is not None:
            conv = ops.conv2d_backward(bn.grad_x, conv_cache)
            grads[f"{name}.conv.weight"], through = conv.grad_weight, conv.grad_x
        grad_x = through if grad_x is None else grad_x + through
    assert grad_x is not None, "every block has a 3x3 branch"
    return BlockGrads(grad_x, grads)


def train_block_parameter_grads(
    spec: BlockSpec, grad_y: Array, cache: BlockCache, *, ops: Ops
) -> dict[str, Array]:
    """`train_block_backward` in training mode without ``x``: nobody trains the images."""
    if cache.fused is None or ops.fused_branches_parameter_grads is None:
        return train_block_backward(spec, grad_y, cache, ops=ops, training=True).params
    grad_total, grads = _fused_activate_backward(spec, grad_y, cache, ops)
    return grads | _named(ops.fused_branches_parameter_grads(grad_total, cache.fused))


def fused_block_forward(
    spec: BlockSpec, params: Mapping[str, Array], x: Array, *, ops: Ops
) -> Array:
    """Run the fused form: one 3x3 convolution with bias, SE if any, ReLU."""
    weight, bias = params[f"{spec.name}.fused.weight"], params[f"{spec.name}.fused.bias"]
    geometry = {
        "stride": spec.stride,
        "padding": spec.dilation,
        "dilation": spec.dilation,
        "groups": spec.groups,
    }
    if spec.se == "none":
        return ops.conv_bias_relu_forward(x, weight, bias, **geometry)
    y, _ = ops.conv2d_forward(x, weight, bias, **geometry)
    return activate(spec, params, y, ops=ops)[0]


def activate(
    spec: BlockSpec, params: Mapping[str, Array], x: Array | None, *, ops: Ops
) -> tuple[Array, Any, Any]:
    """ReLU and SE in the model's order; return the output and both caches."""
    assert x is not None, "every block has a 3x3 branch"
    if spec.se == "none":
        y, relu_cache = ops.relu_forward(x)
        return y, None, relu_cache
    weights = _se_weights(spec, params)
    if spec.se == "before_relu":
        scaled, se_cache = ops.squeeze_excitation_forward(x, *weights)
        y, relu_cache = ops.relu_forward(scaled)
        return y, se_cache, relu_cache
    activated, relu_cache = ops.relu_forward(x)
    y, se_cache = ops.squeeze_excitation_forward(activated, *weights)
    return y, se_cache, relu_cache


def _activate_backward(
    spec: BlockSpec, grad_y: Array, cache: BlockCache, grads: dict[str, Array], ops: Ops
) -> Array:
    """Backward of `activate`; puts the SE gradients into `grads`."""
    if spec.se == "none":
        return ops.relu_backward(grad_y, cache.relu)
    if spec.se == "before_relu":
        grad_y = ops.relu_backward(grad_y, cache.relu)
    grad_x = _se_backward(grad_y, cache, grads, ops)
    return grad_x if spec.se == "before_relu" else ops.relu_backward(grad_x, cache.relu)


def _se_weights(spec: BlockSpec, params: Mapping[str, Array]) -> list[Array]:
    return [params[f"{spec.name}.se.{field}"] for field in _SE_FIELDS]


def _se_backward(grad_y: Array, cache: BlockCache, grads: dict[str, Array], ops: Ops) -> Array:
    grad_x, *grad_weights = ops.squeeze_excitation_backward(grad_y, cache.se)
    grads.update(zip((f"se.{field}" for field in _SE_FIELDS), grad_weights, strict=True))
    return grad_x


def _fused_training_forward(
    spec: BlockSpec, params: Mapping[str, Array], x: Array, *, ops: Ops, eps: Any
) -> tuple[Array, BlockCache]:
    """The three branches by the table's own fused passes, with the ReLU that follows them."""
    assert ops.fused_branches_forward is not None
    y, cache, seen = ops.fused_branches_forward(
        x,
        {
            name: BranchArrays(branch.weight, branch.gamma, branch.beta)
            for name, branch in block_branches(spec, params).items()
        },
        stride=spec.stride,
        dilation=spec.dilation,
        groups=spec.groups,
        eps=eps,
        relu=spec.se != "before_relu",
    )
    pixels = y.size // spec.out_channels  # N * Ho * Wo, whatever the table's layout
    stats = {name: BatchStats(batch.mean, batch.var, pixels) for name, batch in seen.items()}
    if spec.se == "none":
        return y, BlockCache({}, None, None, stats, cache)
    y, se_cache = ops.squeeze_excitation_forward(y, *_se_weights(spec, params))
    if spec.se == "after_relu":
        return y, BlockCache({}, se_cache, None, stats, cache)
    y, relu_cache = ops.relu_forward(y)
    return y, BlockCache({}, se_cache, relu_cache, stats, cache)


def _fused_training_backward(
    spec: BlockSpec, grad_y: Array, cache: BlockCache, ops: Ops
) -> BlockGrads:
    """Backward of `_fused_training_forward`."""
    assert ops.fused_branches_backward is not None
    grad_total, grads = _fused_activate_backward(spec, grad_y, cache, ops)
    grad_x, branches = ops.fused_branches_backward(grad_total, cache.fused)
    return BlockGrads(grad_x, grads | _named(branches))


def _fused_activate_backward(
    spec: BlockSpec, grad_y: Array, cache: BlockCache, ops: Ops
) -> tuple[Array, dict[str, Array]]:
    """Back to the sum of branches (with its ReLU, where no SE comes before it); SE's gradients."""
    grads: dict[str, Array] = {}
    if spec.se == "before_relu":
        grad_y = ops.relu_backward(grad_y, cache.relu)
    if spec.se != "none":
        grad_y = _se_backward(grad_y, cache, grads, ops)
    return grad_y, grads


def _named(branches: Mapping[str, BranchGrads]) -> dict[str, Array]:
    """Gradients of branches under the block's part names."""
    grads: dict[str, Array] = {}
    for name, branch in branches.items():
        grads[f"{name}.bn.gamma"], grads[f"{name}.bn.beta"] = branch.gamma, branch.beta
        if branch.weight is not None:
            grads[f"{name}.conv.weight"] = branch.weight
    return grads


def _conv(spec: BlockSpec, x: Array, weight: Array, ops: Ops) -> tuple[Array, Any]:
    """A branch's convolution; the 1x1 kernel sits on the centre tap, so it needs no padding."""
    reach = weight.shape[-1] // 2
    return ops.conv2d_forward(
        x,
        weight,
        None,
        stride=spec.stride,
        padding=reach * spec.dilation,
        dilation=spec.dilation,
        groups=spec.groups,
    )
