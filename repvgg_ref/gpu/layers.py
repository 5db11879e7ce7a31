"""The operators around the blocks, NHWC: ReLU, pooling, squeeze-and-excitation, linear, loss.

The head of the network (pooled features, linear layer, loss) and the gates of SE are a thousandth
of the work: they are computed in float32 whatever the activations are stored in.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cupy
import numpy as np

from repvgg_ref.arrays import Array, Real
from repvgg_ref.errors import ShapeError, require_equal
from repvgg_ref.gpu import kernels
from repvgg_ref.gpu.kernels.launch import real_dtype
from repvgg_ref.gpu.math_mode import Math
from repvgg_ref.gpu.products import matmul
from repvgg_ref.ops import (
    REFERENCE,
    LinearGrads,
    RunningStats,
    SqueezeExcitationGrads,
    channels_last,
)
from repvgg_ref.ops.pixel_cross_entropy import require_pixel_labels


class ReluCache(NamedTuple):
    """Where the gradient stops: a boolean array, shape of ``x``."""

    blocked: Array


class PoolCache(NamedTuple):
    """The shape of ``x``, (N, H, W, C), and its dtype."""

    shape: tuple[int, ...]
    dtype: Any


class LinearCache(NamedTuple):
    """The operands, in float32 (float64)."""

    x: Array
    weight: Array


class SqueezeExcitationCache(NamedTuple):
    """The input, the gate (N, C), and what the layers in between need."""

    x: Array
    gate: Array
    down: LinearCache
    active: Array
    up: LinearCache


class CrossEntropyCache(NamedTuple):
    """`bad_label` is (1,) int32 on the device: 1 if a label is no class; the loss is then NaN."""

    probabilities: Array
    labels: Array
    label_smoothing: float
    dtype: Any
    bad_label: Array


def relu_forward(x: Array) -> tuple[Array, ReluCache]:
    """`ops.relu.relu_forward`: NaN stays NaN."""
    return cupy.maximum(x, 0), ReluCache(x <= 0)


def relu_backward(grad_y: Array, cache: ReluCache) -> Array:
    """`ops.relu.relu_backward`."""
    require_equal("relu", "grad_y.shape", grad_y.shape, "y.shape", cache.blocked.shape)
    grad_x = cupy.where(cache.blocked, cupy.zeros((), grad_y.dtype), grad_y)
    return _as(grad_y.dtype, grad_x)


def global_avg_pool_forward(x: Array) -> tuple[Array, PoolCache]:
    """`ops.global_avg_pool.global_avg_pool_forward` for x (N, H, W, C); y in float32."""
    require_equal("global_avg_pool", "x.ndim", x.ndim, "len((N, H, W, C))", 4)
    return kernels.spatial_sums(cupy.ascontiguousarray(x), mean=True), PoolCache(x.shape, x.dtype)


def global_avg_pool_backward(grad_y: Array, cache: PoolCache) -> Array:
    """`ops.global_avg_pool.global_avg_pool_backward`; grad_x in the dtype of ``x``."""
    N, H, W, C = cache.shape
    require_equal("global_avg_pool", "grad_y.shape", grad_y.shape, "y.shape", (N, C))
    shares = cupy.ascontiguousarray(grad_y, dtype=real_dtype(cache.dtype)) / (H * W)
    return kernels.spread_over_pixels(shares, shape=(N, H, W, C), dtype=cache.dtype)


def max_pool_forward(x: Array, *, kernel: int, stride: int, padding: int) -> tuple[Array, Any]:
    """`ops.max_pool.max_pool_forward` for x (N, H, W, C): a few launches for each tap."""
    require_equal("max_pool", "x.ndim", x.ndim, "len((N, H, W, C))", 4)
    y, cache = REFERENCE.max_pool_forward(
        x.transpose(0, 3, 1, 2), kernel=kernel, stride=stride, padding=padding
    )
    return _as(x.dtype, y.transpose(0, 2, 3, 1)), cache


def max_pool_backward(grad_y: Array, cache: Any) -> Array:
    """`ops.max_pool.max_pool_backward` for grad_y (N, Ho, Wo, C)."""
    grad_x = REFERENCE.max_pool_backward(grad_y.transpose(0, 3, 1, 2), cache)
    return _as(grad_y.dtype, grad_x.transpose(0, 2, 3, 1))


def softmax_cross_entropy_forward(
    logits: Array, labels: Array, *, label_smoothing: float
) -> tuple[Array, CrossEntropyCache]:
    """`ops.cross_entropy.softmax_cross_entropy_forward`; the loss stays on the device.

    Labels on the host are checked there. A wrong one on the device gives the loss NaN.
    """
    require_equal("softmax_cross_entropy", "logits.ndim", logits.ndim, "len((N, classes))", 2)
    real = np.promote_types(logits.dtype, np.float32)
    labels = _labels_on_device(logits.shape, labels, label_smoothing, real)
    found = kernels.softmax_cross_entropy_forward(logits, labels, label_smoothing=label_smoothing)
    cache = CrossEntropyCache(
        found.probabilities, labels, label_smoothing, logits.dtype, found.bad_label
    )
    return found.losses.mean(), cache


def softmax_cross_entropy_backward(cache: CrossEntropyCache) -> Array:
    """`ops.cross_entropy.softmax_cross_entropy_backward`."""
    return kernels.softmax_cross_entropy_backward(
        cache.probabilities,
        cache.labels,
        label_smoothing=cache.label_smoothing,
        scale=1 / len(cache.probabilities),
        dtype=cache.dtype,
    )


def pixel_cross_entropy_forward(
    logits: Array, labels: Array, *, ignored: int
) -> tuple[Array, channels_last.PixelLossCache]:
    """`ops.pixel_cross_entropy.pixel_cross_entropy_forward` for logits (N, H, W, classes).

    As of `softmax_cross_entropy_forward`: labels on the host are checked there, and a wrong one on
    the device gives the loss NaN.
    """
    shape = channels_last.to_nchw(logits).shape
    if not isinstance(labels, cupy.ndarray):
        require_pixel_labels(shape, labels, ignored=ignored)
    require_equal(
        "pixel_cross_entropy", "labels.shape", labels.shape, "(N, H, W)", logits.shape[:3]
    )
    labels = cupy.asarray(labels, dtype=np.int64)
    wrong = (labels != ignored) & ((labels < 0) | (labels >= shape[1]))
    right = cupy.where(wrong, ignored, labels)
    loss, cache = channels_last.pixel_loss_forward(logits, right, ignored=ignored)
    return cupy.where(wrong.any(), cupy.nan, loss).astype(loss.dtype), cache


def update_running_stats(
    running_mean: Array,
    running_var: Array,
    mean: Array,
    var: Array,
    *,
    momentum: Real,
    count: int,
) -> RunningStats:
    """`ops.batch_norm.update_running_stats`, in three launches each."""
    for name, value in {"running_var": running_var, "mean": mean, "var": var}.items():
        wanted = running_mean.shape
        require_equal("update_running_stats", f"{name}.shape", value.shape, "(C,)", wanted)
    if count < 2:
        raise ShapeError(
            f"update_running_stats: count (={count}) must be at least 2: "
            "one value per channel has no unbiased variance"
        )
    new = float(momentum)
    after_mean = running_mean * (1 - new)
    after_mean += new * mean
    after_var = running_var * (1 - new)
    after_var += (new * count / (count - 1)) * var
    return RunningStats(after_mean, after_var)


class Head:
    """The layers that multiply matrices, in one arithmetic: linear and squeeze-and-excitation."""

    def __init__(self, math: Math) -> None:
        self._math = math

    def linear_forward(self, x: Array, weight: Array, bias: Array) -> tuple[Array, LinearCache]:
        """`ops.linear.linear_forward`; y in float32."""
        require_equal("linear", "x.ndim", x.ndim, "len((N, features))", 2)
        require_equal("linear", "weight.ndim", weight.ndim, "len((classes, features))", 2)
        require_equal("linear", "weight.shape[1]", weight.shape[1], "features", x.shape[1])
        require_equal("linear", "bias.shape", bias.shape, "(classes,)", weight.shape[:1])
        x, weight = _wide(x), _wide(weight)
        y = matmul(x, weight.T, math=self._math)
        y += bias
        return y, LinearCache(x, weight)

    def linear_backward(self, grad_y: Array, cache: LinearCache) -> LinearGrads:
        """`ops.linear.linear_backward`."""
        x, weight = cache
        require_equal("linear", "grad_y.shape", grad_y.shape, "y.shape", (len(x), len(weight)))
        grad_y = _wide(grad_y)
        return LinearGrads(
            matmul(grad_y, weight, math=self._math),
            matmul(grad_y.T, x, math=self._math),
            grad_y.sum(axis=0),
        )

    def squeeze_excitation_forward(
        self, x: Array, down_weight: Array, down_bias: Array, up_weight: Array, up_bias: Array
    ) -> tuple[Array, SqueezeExcitationCache]:
        """`ops.squeeze_excitation.squeeze_excitation_forward` for x (N, H, W, C)."""
        operator, C, Cm = "squeeze_excitation", x.shape[-1], len(down_bias)
        wanted, back = (Cm, C, 1, 1), (C, Cm, 1, 1)
        require_equal(operator, "x.ndim", x.ndim, "len((N, H, W, C))", 4)
        require_equal(operator, "down_weight.shape", down_weight.shape, "(Cm, C, 1, 1)", wanted)
        require_equal(operator, "up_weight.shape", up_weight.shape, "(C, Cm, 1, 1)", back)
        require_equal(operator, "up_bias.shape", up_bias.shape, "(C,)", (C,))
        x = cupy.ascontiguousarray(x)
        squeezed = kernels.spatial_sums(x, mean=True)
        middle, down = self.linear_forward(squeezed, down_weight[:, :, 0, 0], down_bias)
        active = cupy.maximum(middle, 0)
        logits, up = self.linear_forward(active, up_weight[:, :, 0, 0], up_bias)
        decay = cupy.exp(-abs(logits))  # in [0, 1]: never overflows
        gate = cupy.where(logits < 0, decay, cupy.ones((), decay.dtype)) / (1 + decay)
        y = kernels.scale_channels(x, gate)
        return y, SqueezeExcitationCache(x, gate, down, active, up)

    def squeeze_excitation_backward(
        self, grad_y: Array, cache: SqueezeExcitationCache
    ) -> SqueezeExcitationGrads:
        """`ops.squeeze_excitation.squeeze_excitation_backward`."""
        x, gate = cache.x, cache.gate
        require_equal("squeeze_excitation", "grad_y.shape", grad_y.shape, "y.shape", x.shape)
        grad_y = cupy.ascontiguousarray(grad_y, dtype=x.dtype)
        grad_gate = kernels.spatial_sums(grad_y, x)
        up = self.linear_backward(grad_gate * gate * (1 - gate), cache.up)
        down = self.linear_backward(up.grad_x * (cache.active > 0), cache.down)
        shift = down.grad_x / (x.shape[1] * x.shape[2])
        return SqueezeExcitationGrads(
            kernels.scale_channels(grad_y, gate, shift),
            down.grad_weight[:, :, None, None],  # (Cm, C) -> (Cm, C, 1, 1)
            down.grad_bias,
            up.grad_weight[:, :, None, None],  # (C, Cm) -> (C, Cm, 1, 1)
            up.grad_bias,
        )


def _as(dtype: Any, x: Array) -> Array:
    """`x` contiguous in `dtype`: `cupy.where` gives float32 for bfloat16."""
    found: Array = cupy.ascontiguousarray(x, dtype=dtype)
    return found


def _wide(x: Array) -> Array:
    """16-bit arrays in float32."""
    wide: Array = cupy.ascontiguousarray(x, dtype=np.promote_types(x.dtype, np.float32))
    return wide


def _labels_on_device(
    shape: tuple[int, ...], labels: Array, label_smoothing: float, real: Any
) -> Array:
    """Class numbers as int64, or soft targets as `real`."""
    soft = labels.ndim != 1
    if not isinstance(labels, cupy.ndarray):
        whole = labels.dtype.kind in "iu" and labels.shape == shape[:1]
        if soft or not whole or not ((labels >= 0) & (labels < shape[1])).all():
            zeros = np.zeros(shape, real)
            REFERENCE.softmax_cross_entropy_forward(  # raises, naming the label
                zeros, labels, label_smoothing=label_smoothing
            )
    on_device: Array = cupy.asarray(labels, dtype=real if soft else np.int64)
    return on_device
