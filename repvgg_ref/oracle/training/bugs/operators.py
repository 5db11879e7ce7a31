"""Gradients of convolutions, pool, linear layer and squeeze-and-excitation taken wrongly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.ops.conv2d import Conv2dGrads
from repvgg_ref.oracle.training.bugs.base import Wrong, training_bug, with_result
from repvgg_ref.oracle.training.run import Setup


@training_bug(
    "conv-input-gradient-unflipped",
    says="the convolution's input gradient correlates with the kernel instead of its mirror image",
    advice="the input gradient is a convolution with the kernel flipped in both directions",
    local=True,
)
def _conv_input_gradient_unflipped(setup: Setup) -> Iterator[Wrong]:
    right = setup.ops.conv2d_backward

    def unflipped(grads: Conv2dGrads, grad_y: Array, cache: Any) -> Conv2dGrads:
        flipped = cache._replace(weight=np.ascontiguousarray(cache.weight[:, :, ::-1, ::-1]))
        return grads._replace(grad_x=right(grad_y, flipped).grad_x)

    yield Wrong(with_result(setup, "conv2d_backward", unflipped))


@training_bug(
    "conv-weight-gradient-layout",
    says="the convolution's weight gradient is {detail}",
    advice="keep (O, I, kH, kW) and the kernel's own orientation",
    local=True,
)
def _conv_weight_gradient_layout(setup: Setup) -> Iterator[Wrong]:
    yield Wrong(_weight_gradient(setup, lambda g, _: g[:, :, ::-1, ::-1]), "flipped")
    yield Wrong(
        _weight_gradient(setup, lambda g, _: g.transpose(0, 1, 3, 2)),
        "transposed (height and width)",
    )


@training_bug(
    "conv-weight-gradient-averaged",
    says="the convolution's weight gradient is a mean over {detail} instead of a sum",
    advice="sum over the images and the output pixels; the loss has divided by N already",
    local=True,
)
def _conv_weight_gradient_averaged(setup: Setup) -> Iterator[Wrong]:
    yield Wrong(_weight_gradient(setup, lambda g, grad_y: g / len(grad_y)), "the images")
    yield Wrong(
        _weight_gradient(setup, lambda g, grad_y: g / (grad_y.size / grad_y.shape[1])),
        "images and pixels",
    )


def _weight_gradient(setup: Setup, change: Callable[[Array, Array], Array]) -> Setup:
    """The setup with `change` of the convolutions' weight gradients; it gets grad_y too."""
    return with_result(
        setup,
        "conv2d_backward",
        lambda grads, grad_y, _: grads._replace(
            grad_weight=np.ascontiguousarray(change(grads.grad_weight, grad_y))
        ),
    )


@training_bug(
    "pool-gradient-not-divided",
    says="the global pool's gradient is not divided by the number of pixels",
    advice="every pixel gets grad / (H W)",
)
def _pool_gradient_not_divided(setup: Setup) -> Iterator[Wrong]:
    undivided = with_result(
        setup,
        "global_avg_pool_backward",
        lambda grad_x, _, cache: grad_x * float(np.prod(cache.x_shape[2:])),
    )
    yield Wrong(undivided)


@training_bug(
    "linear-bias-gradient-averaged",
    says="the linear layer's bias gradient is a mean over the batch instead of a sum",
    advice="sum over N: the loss has divided already",
)
def _linear_bias_gradient_averaged(setup: Setup) -> Iterator[Wrong]:
    averaged = with_result(
        setup,
        "linear_backward",
        lambda grads, grad_y, _: grads._replace(grad_bias=grads.grad_bias / len(grad_y)),
    )
    yield Wrong(averaged)


@training_bug(
    "se-gate-gradient-missing",
    says="squeeze-and-excitation: {detail}",
    advice="grad_x = gate * grad_y plus the gradient that went through pool, both layers and gate",
    local=True,
)
def _se_gate_gradient_missing(setup: Setup) -> Iterator[Wrong]:
    if all(spec.se == "none" for spec in setup.network.blocks):
        return
    right = setup.ops.squeeze_excitation_backward

    def constant(grads: Any, grad_y: Array, cache: Any) -> Any:
        return grads._replace(grad_x=grad_y * cache.gate[:, :, None, None])

    def unmasked(_: Any, grad_y: Array, cache: Any) -> Any:
        everywhere = cache.relu._replace(blocked=np.zeros_like(cache.relu.blocked))
        return right(grad_y, cache._replace(relu=everywhere))

    for change, detail in (
        (constant, "the input gets no gradient through the gate"),
        (unmasked, "the ReLU between its layers lets every gradient pass"),
    ):
        yield Wrong(with_result(setup, "squeeze_excitation_backward", change), detail)
