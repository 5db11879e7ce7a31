"""A block: a linear expression, then squeeze-and-excitation where a model has it, then ReLU.

    y = ReLU(SE( BN3(W3 * x) + BN1(W1 * x) + BN0(x) ))        (paper, section 3.2, figure 4)
    y = ReLU(SE( W * x + b ))                                  (fused; section 3.3)

SE sits before the ReLU in D2se and after it in RepVGGplus. What is summed is the expression that
`catalogue` has for the block; a table of operators may have faster passes for one it recognises.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.catalogue import expression, fused_conv, part_of
from repvgg_ref.blocks.run import BatchStats, Run
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.ops import BlockPasses, Ops

SE_FIELDS = ("down.weight", "down.bias", "up.weight", "up.bias")


class BlockCache(NamedTuple):
    """What the backward pass needs, and the batch statistics for the running averages.

    `linear` is the cache of the expression, or of `passes`, the table's own, which apply the ReLU
    too where no SE comes before it.
    """

    linear: Any
    se: Any
    relu: Any
    run: Run
    passes: BlockPasses | None = None

    @property
    def stats(self) -> dict[str, BatchStats]:
        """Norm -> what it saw; empty in evaluation mode."""
        return self.run.stats


class BlockGrads(NamedTuple):
    """`params` holds a gradient per trainable array, named as in the block's own part names."""

    x: Array
    params: dict[str, Array]


def train_block_forward(
    spec: BlockSpec,
    params: Mapping[str, Array],
    x: Array,
    *,
    ops: Ops,
    eps: Any,
    training: bool,
    momentum: Any = 0.1,
) -> tuple[Array, BlockCache]:
    """Run the train form.

    Parameters
    ----------
    x : array, shape (N, C, H, W), or (N, H, W, C) where `ops` says so
    params : mapping
        The model's arrays under their canonical names, ``stage1.0.branch_3x3.conv.weight``.
    training : bool
        Normalise by the batch's statistics; otherwise by the running ones.
    momentum : float
        Of the running statistics, which a diverse-branch block's borders are made of.

    Returns
    -------
    y : array, shape (N, O, Ho, Wo)
    cache : BlockCache
        `cache.stats` is empty in evaluation mode.
    """
    linear = expression(spec)
    run = Run(part_of(spec, params), ops, eps, training, momentum)
    passes = ops.recognise_block(linear) if training else None
    if passes is None:
        y, cache = linear.forward(x, run)
        y, se_cache, relu_cache = activate(spec, params, y, ops=ops)
        return y, BlockCache(cache, se_cache, relu_cache, run)
    rectified = spec.activation == "relu" and spec.se != "before_relu"
    y, cache, seen = passes.forward(x, run.params, eps=eps, momentum=momentum, relu=rectified)
    run.stats |= seen
    se_cache = relu_cache = None
    if spec.se != "none":
        y, se_cache = ops.squeeze_excitation_forward(y, *_se_weights(spec, params))
    if spec.se == "before_relu":
        y, relu_cache = ops.relu_forward(y)
    return y, BlockCache(cache, se_cache, relu_cache, run, passes)


def train_block_backward(spec: BlockSpec, grad_y: Array, cache: BlockCache) -> BlockGrads:
    """Send `grad_y` of shape (N, O, Ho, Wo) back through the block."""
    grad, grads = _before_linear(spec, grad_y, cache)
    if cache.passes is None:
        run = replace(cache.run, grads={})  # a second pass through one cache starts anew
        grad_x = expression(spec).backward(grad, cache.linear, run)
        return BlockGrads(grad_x, grads | run.grads)
    grad_x, of_linear = cache.passes.backward(grad, cache.linear)
    return BlockGrads(grad_x, grads | of_linear)


def train_block_parameter_grads(
    spec: BlockSpec, grad_y: Array, cache: BlockCache
) -> dict[str, Array]:
    """`train_block_backward` without ``x``: nobody trains the images."""
    if cache.passes is None:
        return train_block_backward(spec, grad_y, cache).params
    grad, grads = _before_linear(spec, grad_y, cache)
    return grads | cache.passes.parameter_grads(grad, cache.linear)


def fused_block_forward(
    spec: BlockSpec, params: Mapping[str, Array], x: Array, *, ops: Ops
) -> Array:
    """Run the fused form: one convolution with bias, SE if any, ReLU."""
    weight, bias = params[f"{spec.name}.fused.weight"], params[f"{spec.name}.fused.bias"]
    settings = fused_conv(spec).settings
    if spec.se == "none" and spec.activation == "relu":
        return ops.conv_bias_relu_forward(x, weight, bias, **settings)
    y, _ = ops.conv2d_forward(x, weight, bias, **settings)
    return activate(spec, params, y, ops=ops)[0]


def activate(
    spec: BlockSpec, params: Mapping[str, Array], x: Array, *, ops: Ops
) -> tuple[Array, Any, Any]:
    """ReLU and SE in the model's order; return the output and both caches."""
    se_cache = relu_cache = None
    if spec.se == "before_relu":
        x, se_cache = ops.squeeze_excitation_forward(x, *_se_weights(spec, params))
    if spec.activation == "relu":
        x, relu_cache = ops.relu_forward(x)
    if spec.se == "after_relu":
        x, se_cache = ops.squeeze_excitation_forward(x, *_se_weights(spec, params))
    return x, se_cache, relu_cache


def _before_linear(
    spec: BlockSpec, grad: Array, cache: BlockCache
) -> tuple[Array, dict[str, Array]]:
    """Back to what the expression, or the table's passes, gave; the gradients of SE."""
    ops, grads = cache.run.ops, dict[str, Array]()
    if spec.se == "after_relu":
        grad = _se_backward(grad, cache, grads)
    if cache.relu is not None:
        grad = ops.relu_backward(grad, cache.relu)
    if spec.se == "before_relu":
        grad = _se_backward(grad, cache, grads)
    return grad, grads


def _se_backward(grad_y: Array, cache: BlockCache, grads: dict[str, Array]) -> Array:
    grad_x, *grad_weights = cache.run.ops.squeeze_excitation_backward(grad_y, cache.se)
    grads.update(zip((f"se.{field}" for field in SE_FIELDS), grad_weights, strict=True))
    return grad_x


def _se_weights(spec: BlockSpec, params: Mapping[str, Array]) -> list[Array]:
    return [params[f"{spec.name}.se.{field}"] for field in SE_FIELDS]
