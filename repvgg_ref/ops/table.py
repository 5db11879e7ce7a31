"""A backend as a value: the table of operators, and the table of reference operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from repvgg_ref.arrays import Array, Real, array_module
from repvgg_ref.ops.batch_norm import (
    BatchNormGrads,
    RunningStats,
    batch_norm_eval_backward,
    batch_norm_eval_forward,
    batch_norm_train_backward,
    batch_norm_train_forward,
    update_running_stats,
)
from repvgg_ref.ops.conv2d import Conv2dGrads, IntOrPair, conv2d_backward, conv2d_forward
from repvgg_ref.ops.cross_entropy import (
    softmax_cross_entropy_backward,
    softmax_cross_entropy_forward,
)
from repvgg_ref.ops.gelu import gelu_backward, gelu_forward
from repvgg_ref.ops.global_avg_pool import global_avg_pool_backward, global_avg_pool_forward
from repvgg_ref.ops.linear import LinearGrads, linear_backward, linear_forward
from repvgg_ref.ops.max_pool import max_pool_backward, max_pool_forward
from repvgg_ref.ops.relu import relu_backward, relu_forward
from repvgg_ref.ops.sigmoid import sigmoid_backward, sigmoid_forward
from repvgg_ref.ops.silu import silu_backward, silu_forward
from repvgg_ref.ops.squeeze_excitation import (
    SqueezeExcitationGrads,
    squeeze_excitation_backward,
    squeeze_excitation_forward,
)

# A cache is `Any` here: each backend keeps what it likes, and only its own backward reads it.


class BatchStatistics(Protocol):
    """What every backend's training-mode batch norm cache must offer, (C,) each."""

    @property
    def mean(self) -> Array:
        """Mean of the batch."""

    @property
    def var(self) -> Array:
        """Biased variance of the batch."""


class BranchArrays(NamedTuple):
    """One branch: a convolution (`weight` None: the identity), then batch norm, (O,) vectors."""

    weight: Array | None
    gamma: Array
    beta: Array


class BranchGrads(NamedTuple):
    """Gradients of a `BranchArrays`."""

    weight: Array | None
    gamma: Array
    beta: Array


class BranchesForward(NamedTuple):
    """What a fused forward pass gives; `stats` by branch, or by norm in `BlockPasses`."""

    y: Array
    cache: Any
    stats: Mapping[str, Any]


class _Conv2dForward(Protocol):
    def __call__(
        self,
        x: Array,
        weight: Array,
        bias: Array | None,
        /,
        *,
        stride: IntOrPair,
        padding: IntOrPair,
        dilation: IntOrPair,
        groups: int,
    ) -> tuple[Array, Any]: ...


class _ConvBiasReluForward(Protocol):
    def __call__(
        self,
        x: Array,
        weight: Array,
        bias: Array | None,
        /,
        *,
        stride: IntOrPair,
        padding: IntOrPair,
        dilation: IntOrPair,
        groups: int,
    ) -> Array: ...


class BlockPasses(Protocol):
    """A table's own way through an expression that it recognised, in training mode.

    Arrays and gradients go by the expression's part names; `relu` asks for a ReLU at the end.
    """

    def forward(
        self, x: Array, params: Mapping[str, Array], *, eps: Real, momentum: Real, relu: bool
    ) -> BranchesForward:
        """Output, cache, and the `BatchStats` that each norm saw; momentum as in `Run`."""

    def backward(self, grad_y: Array, cache: Any) -> tuple[Array, dict[str, Array]]:
        """The gradients of x and of the arrays."""

    def parameter_grads(self, grad_y: Array, cache: Any) -> dict[str, Array]:
        """`backward` without x, for the first block of a network."""


class FastNetwork(Protocol):
    """A table's own way through a whole fused network; x is (N, C, H, W) where it computes."""

    def forward(self, x: Array) -> Array:
        """Logits (N, classes)."""

    def layers(self, x: Array) -> dict[str, Array]:
        """Every layer's output, NCHW, and the logits."""


class _BatchNormTrainForward(Protocol):
    def __call__(
        self, x: Array, gamma: Array, beta: Array, /, *, eps: Real
    ) -> tuple[Array, BatchStatistics]: ...


class _BatchNormEvalForward(Protocol):
    def __call__(
        self, x: Array, gamma: Array, beta: Array, mean: Array, var: Array, /, *, eps: Real
    ) -> tuple[Array, Any]: ...


class _UpdateRunningStats(Protocol):
    def __call__(
        self,
        running_mean: Array,
        running_var: Array,
        mean: Array,
        var: Array,
        /,
        *,
        momentum: Real,
        count: int,
    ) -> RunningStats: ...


class _SoftmaxCrossEntropyForward(Protocol):
    def __call__(
        self, logits: Array, labels: Array, /, *, label_smoothing: float
    ) -> tuple[Array, Any]: ...


class _MaxPoolForward(Protocol):
    def __call__(
        self, x: Array, /, *, kernel: int, stride: int, padding: int
    ) -> tuple[Array, Any]: ...


@dataclass(frozen=True)
class Ops:
    """One backend's operators, under the names and signatures of the reference.

    Functions of images take and give `layout`; a model converts at its entry and exit only. To
    plant a bug or try one kernel: ``dataclasses.replace(REFERENCE, relu_forward=mine)``.
    """

    name: str
    layout: Literal["NCHW", "NHWC"]
    conv2d_forward: _Conv2dForward
    conv2d_backward: Callable[[Array, Any], Conv2dGrads]
    batch_norm_train_forward: _BatchNormTrainForward
    batch_norm_train_backward: Callable[[Array, Any], BatchNormGrads]
    batch_norm_eval_forward: _BatchNormEvalForward
    batch_norm_eval_backward: Callable[[Array, Any], BatchNormGrads]
    update_running_stats: _UpdateRunningStats
    relu_forward: Callable[[Array], tuple[Array, Any]]
    relu_backward: Callable[[Array, Any], Array]
    sigmoid_forward: Callable[[Array], tuple[Array, Any]]
    sigmoid_backward: Callable[[Array, Any], Array]
    silu_forward: Callable[[Array], tuple[Array, Any]]
    silu_backward: Callable[[Array, Any], Array]
    gelu_forward: Callable[[Array], tuple[Array, Any]]
    gelu_backward: Callable[[Array, Any], Array]
    squeeze_excitation_forward: Callable[[Array, Array, Array, Array, Array], tuple[Array, Any]]
    squeeze_excitation_backward: Callable[[Array, Any], SqueezeExcitationGrads]
    global_avg_pool_forward: Callable[[Array], tuple[Array, Any]]
    global_avg_pool_backward: Callable[[Array, Any], Array]
    max_pool_forward: _MaxPoolForward
    max_pool_backward: Callable[[Array, Any], Array]
    linear_forward: Callable[[Array, Array, Array], tuple[Array, Any]]
    linear_backward: Callable[[Array, Any], LinearGrads]
    softmax_cross_entropy_forward: _SoftmaxCrossEntropyForward
    softmax_cross_entropy_backward: Callable[[Any], Array]
    fused_conv_bias_relu: _ConvBiasReluForward | None = None
    # A block's expression -> passes of this table's own, or None: it is then composed from the
    # primitives above. What a table does not know as a whole it declines.
    recognise_block: Callable[[Any], BlockPasses | None] = lambda linear: None
    from_host: Callable[[Array], Array] = np.asarray  # a NumPy array as one of this backend's
    on_device: bool = False  # arrays live in a device's memory, and must be brought there
    # (network, deploy arrays, dtype, ...) -> this table's way through the whole fused network,
    # buffers kept; None for one that it does not know: it is walked node by node.
    recognise_network: Callable[..., FastNetwork | None] = lambda *network, **how: None
    on_threads: Callable[[int | None], AbstractContextManager[None]] = lambda n: nullcontext()

    def enter(self, x: Array) -> Array:
        """NCHW, as models are given images, to this table's layout."""
        if self.layout == "NCHW" or x.ndim != 4:
            return x
        # (N, C, H, W) -> (N, H, W, C)
        nhwc: Array = array_module(x).ascontiguousarray(x.transpose(0, 2, 3, 1))
        return nhwc

    def leave(self, y: Array) -> Array:
        """Back to NCHW, as a view."""
        # (N, H, W, C) -> (N, C, H, W)
        return y if self.layout == "NCHW" or y.ndim != 4 else y.transpose(0, 3, 1, 2)

    def conv_bias_relu_forward(
        self,
        x: Array,
        weight: Array,
        bias: Array | None,
        *,
        stride: IntOrPair,
        padding: IntOrPair,
        dilation: IntOrPair,
        groups: int,
    ) -> Array:
        """Convolve, add the bias, rectify: a whole block of the fused network.

        ``y = max(conv2d(x, weight) + bias, 0)`` (RepVGG, arXiv 2101.03697, section 3.3), by
        `fused_conv_bias_relu` if the backend has one, else by this table's own primitives.
        Parameters and errors are those of `conv2d_forward`.
        """
        if self.fused_conv_bias_relu is not None:
            return self.fused_conv_bias_relu(
                x, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups
            )
        y, _ = self.conv2d_forward(
            x, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups
        )
        return self.relu_forward(y)[0]


REFERENCE = Ops(
    name="reference",
    layout="NCHW",
    conv2d_forward=conv2d_forward,
    conv2d_backward=conv2d_backward,
    batch_norm_train_forward=batch_norm_train_forward,
    batch_norm_train_backward=batch_norm_train_backward,
    batch_norm_eval_forward=batch_norm_eval_forward,
    batch_norm_eval_backward=batch_norm_eval_backward,
    update_running_stats=update_running_stats,
    relu_forward=relu_forward,
    relu_backward=relu_backward,
    sigmoid_forward=sigmoid_forward,
    sigmoid_backward=sigmoid_backward,
    silu_forward=silu_forward,
    silu_backward=silu_backward,
    gelu_forward=gelu_forward,
    gelu_backward=gelu_backward,
    squeeze_excitation_forward=squeeze_excitation_forward,
    squeeze_excitation_backward=squeeze_excitation_backward,
    global_avg_pool_forward=global_avg_pool_forward,
    global_avg_pool_backward=global_avg_pool_backward,
    max_pool_forward=max_pool_forward,
    max_pool_backward=max_pool_backward,
    linear_forward=linear_forward,
    linear_backward=linear_backward,
    softmax_cross_entropy_forward=softmax_cross_entropy_forward,
    softmax_cross_entropy_backward=softmax_cross_entropy_backward,
)
