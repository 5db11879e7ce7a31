"""Gradients of convolutions, pool, linear layer and squeeze-and-excitation taken wrongly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.ops.conv2d import Conv2dGrads
from repvgg_ref.oracle.bugs.base import Variant, bug
from repvgg_ref.oracle.training.bugs.wrong_setup import TrainingSite, TrainingVariants, with_result
from repvgg_ref.oracle.training.run import Setup


@bug(
    "conv-input-gradient-unflipped",
    says="the convolution's input gradient correlates with the kernel instead of its mirror image",
    advice="the input gradient is a convolution with the kernel flipped in both directions",
)
def _conv_input_gradient_unflipped(site: TrainingSite) -> TrainingVariants:
    setup = site.program
    right = setup.ops.conv2d_backward

    def unflipped(grads: Conv2dGrads, grad_y: Array, cache: Any) -> Conv2dGrads:
        flipped = cache._replace(weight=np.ascontiguousarray(cache.weight[:, :, ::-1, ::-1]))
        return grads._replace(grad_x=right(grad_y, flipped).grad_x)

    yield Variant(with_result(setup, "conv2d_backward", unflipped))


@bug(
    "conv-weight-gradient-layout",
    says="the convolution's weight gradient is {detail}",
    advice="keep (O, I, kH, kW) and the kernel's own orientation",
)
def _conv_weight_gradient_layout(site: TrainingSite) -> TrainingVariants:
    yield Variant(_weight_gradient(site, lambda g, _: g[:, :, ::-1, ::-1]), detail="flipped")
    yield Variant(
        _weight_gradient(site, lambda g, _: g.transpose(0, 1, 3, 2)),
        detail="transposed (height and width)",
    )


@bug(
    "conv-weight-gradient-averaged",
    says="the convolution's weight gradient is a mean over {detail} instead of a sum",
    advice="sum over the images and the output pixels; the loss has divided by N already",
)
def _conv_weight_gradient_averaged(site: TrainingSite) -> TrainingVariants:
    yield Variant(_weight_gradient(site, lambda g, grad_y: g / len(grad_y)), detail="the images")
    yield Variant(
        _weight_gradient(site, lambda g, grad_y: g / (grad_y.size / grad_y.shape[1])),
        detail="images and pixels",
    )


def _weight_gradient(site: TrainingSite, change: Callable[[Array, Array], Array]) -> Setup:
    """The setup with `change` of the convolutions' weight gradients; it gets grad_y too."""
    return with_result(
        site.program,
        "conv2d_backward",
        lambda grads, grad_y, _: grads._replace(
            grad_weight=np.ascontiguousarray(change(grads.grad_weight, grad_y))
        ),
    )


@bug(
    "pool-gradient-not-divided",
    says="the global pool's gradient is not divided by the number of pixels",
    advice="every pixel gets grad / (H W)",
    scope="network",
)
def _pool_gradient_not_divided(site: TrainingSite) -> TrainingVariants:
    undivided = with_result(
        site.program,
        "global_avg_pool_backward",
        lambda grad_x, _, cache: grad_x * float(np.prod(cache.x_shape[2:])),
    )
    yield Variant(undivided)


@bug(
    "linear-bias-gradient-averaged",
    says="the linear layer's bias gradient is a mean over the batch instead of a sum",
    advice="sum over N: the loss has divided already",
    scope="network",
)
def _linear_bias_gradient_averaged(site: TrainingSite) -> TrainingVariants:
    averaged = with_result(
        site.program,
        "linear_backward",
        lambda grads, grad_y, _: grads._replace(grad_bias=grads.grad_bias / len(grad_y)),
    )
    yield Variant(averaged)


@bug(
    "se-gate-gradient-missing",
    says="squeeze-and-excitation: {detail}",
    advice="grad_x = gate * grad_y plus the gradient that went through pool, both layers and gate",
)
def _se_gate_gradient_missing(site: TrainingSite) -> TrainingVariants:
    setup = site.program
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
        yield Variant(with_result(setup, "squeeze_excitation_backward", change), detail=detail)
