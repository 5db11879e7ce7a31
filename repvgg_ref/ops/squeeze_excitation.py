"""Squeeze-and-excitation: each channel scaled by a gate computed from all channels' means."""

from __future__ import annotations

from typing import NamedTuple

from repvgg_ref.arrays import Array
from repvgg_ref.errors import require_equal
from repvgg_ref.ops.global_avg_pool import (
    GlobalAvgPoolCache,
    global_avg_pool_backward,
    global_avg_pool_forward,
)
from repvgg_ref.ops.half import rounds_half_once
from repvgg_ref.ops.linear import LinearCache, linear_backward, linear_forward
from repvgg_ref.ops.relu import ReluCache, relu_backward, relu_forward
from repvgg_ref.ops.sigmoid import SigmoidCache, sigmoid_backward, sigmoid_forward


class SqueezeExcitationCache(NamedTuple):
    """The input, the gate, and the caches of the operators in between, in their order."""

    x: Array
    gate: Array
    squeeze: GlobalAvgPoolCache
    down: LinearCache
    relu: ReluCache
    up: LinearCache
    sigmoid: SigmoidCache


class SqueezeExcitationGrads(NamedTuple):
    """Gradients with the shapes of the five inputs."""

    grad_x: Array
    grad_down_weight: Array
    grad_down_bias: Array
    grad_up_weight: Array
    grad_up_bias: Array


@rounds_half_once
def squeeze_excitation_forward(
    x: Array, down_weight: Array, down_bias: Array, up_weight: Array, up_bias: Array
) -> tuple[Array, SqueezeExcitationCache]:
    """Scale each channel by ``gate = sigmoid(up(relu(down(mean of x over H and W))))``.

    Hu et al., arXiv 1709.01507, equations 2 (squeeze), 3 (excitation, here with biases as in the
    official RepVGG) and 4 (scale). A 1x1 convolution of a 1x1 image is a linear layer.

    Parameters
    ----------
    x : (N, C, H, W) array, floating
    down_weight, down_bias : (Cm, C, 1, 1) and (Cm,) arrays, dtype of `x`; Cm channels in the middle
    up_weight, up_bias : (C, Cm, 1, 1) and (C,) arrays, dtype of `x`

    Returns
    -------
    y : (N, C, H, W) array, dtype of `x`
    cache : for `squeeze_excitation_backward`

    Raises
    ------
    ShapeError
        If the shapes do not fit together.
    InexactError
        If `x` holds exact rationals: the sigmoid is irrational.
    """
    _require_shapes(x, down_weight, down_bias, up_weight, up_bias)
    squeezed, squeeze = global_avg_pool_forward(x)
    # (N, Cm) = (N, C) @ (C, Cm) + (Cm,)
    middle, down = linear_forward(squeezed, down_weight[:, :, 0, 0], down_bias)
    active, relu = relu_forward(middle)
    # (N, C) = (N, Cm) @ (Cm, C) + (C,)
    logits, up = linear_forward(active, up_weight[:, :, 0, 0], up_bias)
    gate, sigmoid = sigmoid_forward(logits)
    y = x * gate[:, :, None, None]  # (N, C) -> (N, C, 1, 1)
    return y, SqueezeExcitationCache(x, gate, squeeze, down, relu, up, sigmoid)


@rounds_half_once
def squeeze_excitation_backward(
    grad_y: Array, cache: SqueezeExcitationCache
) -> SqueezeExcitationGrads:
    """Gradients through the scaling and through the gate.

    ``grad_x = gate * grad_y + (gradient of the gate's path)``, where the gate receives
    ``grad_gate = sum over H and W of grad_y * x`` (product rule on arXiv 1709.01507, equation 4).

    Parameters
    ----------
    grad_y : (N, C, H, W) array, dtype of ``x``
    cache : from `squeeze_excitation_forward`

    Returns
    -------
    SqueezeExcitationGrads

    Raises
    ------
    ShapeError
        If `grad_y` has not the shape of ``y``.
    """
    require_equal("squeeze_excitation", "grad_y.shape", grad_y.shape, "y.shape", cache.x.shape)
    grad_gate = (grad_y * cache.x).sum(axis=(2, 3))  # (N, C, H, W) -> (N, C)
    up = linear_backward(sigmoid_backward(grad_gate, cache.sigmoid), cache.up)
    down = linear_backward(relu_backward(up.grad_x, cache.relu), cache.down)
    through_gate = global_avg_pool_backward(down.grad_x, cache.squeeze)
    return SqueezeExcitationGrads(
        grad_y * cache.gate[:, :, None, None] + through_gate,
        down.grad_weight[:, :, None, None],  # (Cm, C) -> (Cm, C, 1, 1)
        down.grad_bias,
        up.grad_weight[:, :, None, None],  # (C, Cm) -> (C, Cm, 1, 1)
        up.grad_bias,
    )


def _require_shapes(
    x: Array, down_weight: Array, down_bias: Array, up_weight: Array, up_bias: Array
) -> None:
    operator = "squeeze_excitation"
    require_equal(operator, "x.ndim", x.ndim, "len((N, C, H, W))", 4)
    C, Cm = x.shape[1], len(down_bias)
    require_equal(operator, "down_weight.shape", down_weight.shape, "(Cm, C, 1, 1)", (Cm, C, 1, 1))
    require_equal(operator, "up_weight.shape", up_weight.shape, "(C, Cm, 1, 1)", (C, Cm, 1, 1))
    require_equal(operator, "up_bias.shape", up_bias.shape, "(C,)", (C,))
