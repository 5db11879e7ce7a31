"""Convolution with its gradients, NHWC: by cuDNN where it has a plan, else by matrix products.

Kernels come as the model holds them, (O, C/G, Kh, Kw) in float32. One pass puts them into the
order and dtype of the activations, (O, Kh, Kw, C/G); it is kept for the backward pass, and the
gradient goes the same way back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import cupy
import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.errors import require_equal
from repvgg_ref.gpu.gemm_conv import GemmConvolutions
from repvgg_ref.gpu.geometry import Geometry, geometry
from repvgg_ref.gpu.math_mode import Math, activation_dtype
from repvgg_ref.gpu.probe import use_cudnn
from repvgg_ref.ops import Conv2dGrads, IntOrPair


class Conv2dCache(NamedTuple):
    """What the backward pass needs: x (N, H, W, C) and the kernels, (O, Kh, Kw, C/G)."""

    x: Array
    kernels: Array
    geometry: Geometry
    has_bias: bool
    weight_dtype: Any


class Convolution(Protocol):
    """One way to convolve; every output is given, arrays are contiguous and of one dtype."""

    def forward(
        self, x: Array, kernels: Array, bias: Array | None, sizes: Geometry, y: Array, *, relu: bool
    ) -> bool:
        """Fill y (N, Ho, Wo, O); False if there is no way to do this case."""

    def grad_x(self, grad_y: Array, kernels: Array, sizes: Geometry, grad_x: Array) -> bool:
        """Fill grad_x (N, H, W, C)."""

    def grad_weight(self, x: Array, grad_y: Array, sizes: Geometry, grad: Array) -> bool:
        """Fill grad (O, Kh, Kw, C/G)."""


class Convolutions:
    """The convolutions of one arithmetic, under the names and signatures of the table.

    Parameters
    ----------
    math : {"fp32", "tf32", "bf16", "fp16"}
        float64 arrays stay float64 under "fp32", and are then never cuDNN's.
    deterministic : bool
        The same input gives the same bits, run after run.
    """

    def __init__(self, math: Math, *, deterministic: bool) -> None:
        self.math = math
        self._dtype = activation_dtype(math)
        self._ways: list[Convolution] = [GemmConvolutions(math)]
        self.cudnn: Any = None
        if use_cudnn():
            from repvgg_ref.gpu.cudnn_conv import CudnnConvolutions

            self.cudnn = CudnnConvolutions(math, deterministic=deterministic)
            self._ways.insert(0, self.cudnn)

    def dtype_of(self, x: Array) -> Any:
        """The dtype that activations made from `x` have."""
        return x.dtype if self.math == "fp32" and x.dtype == np.float64 else self._dtype

    def store(self, x: Array) -> Array:
        """`x` as activations are stored: contiguous, in this arithmetic's dtype."""
        stored: Array = cupy.ascontiguousarray(x, dtype=self.dtype_of(x))
        return stored

    def pack(self, weight: Array, dtype: Any) -> Array:
        """(O, C/G, Kh, Kw) -> (O, Kh, Kw, C/G), stored as activations are."""
        packed: Array = cupy.ascontiguousarray(weight.transpose(0, 2, 3, 1), dtype=dtype)
        return packed

    def forward(
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
        relu: bool = False,
    ) -> tuple[Array, Conv2dCache]:
        """`ops.conv2d.conv2d_forward` for x (N, H, W, C) and y (N, Ho, Wo, O)."""
        sizes = geometry(
            x.shape,
            weight.shape,
            None if bias is None else bias.shape,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
        )
        x = self.store(x)
        packed = self.pack(weight, x.dtype)
        stored = None if bias is None else cupy.ascontiguousarray(bias, dtype=x.dtype)
        y = self.convolve(x, packed, stored, sizes, relu=relu)
        return y, Conv2dCache(x, packed, sizes, bias is not None, weight.dtype)

    def bias_relu(self, x: Array, weight: Array, bias: Array | None, /, **settings: Any) -> Array:
        """`Ops.conv_bias_relu_forward`; settings as for `forward`."""
        return self.forward(x, weight, bias, relu=True, **settings)[0]

    def backward(self, grad_y: Array, cache: Conv2dCache) -> Conv2dGrads:
        """`ops.conv2d.conv2d_backward` for NHWC arrays; kernels' gradients as the model's dtype."""
        require_equal("conv2d", "grad_y.shape", grad_y.shape, "y.shape", cache.geometry.y_shape)
        grad_y = cupy.ascontiguousarray(grad_y, dtype=cache.x.dtype)
        wide = np.promote_types(grad_y.dtype, np.float32)
        grad_bias = grad_y.sum(axis=(0, 1, 2), dtype=wide) if cache.has_bias else None
        return Conv2dGrads(self.grad_x(grad_y, cache), self.grad_weight(grad_y, cache), grad_bias)

    def grad_x(self, grad_y: Array, cache: Conv2dCache) -> Array:
        """The gradient of x, (N, H, W, C); grad_y (N, Ho, Wo, O) as activations are stored."""
        sizes = cache.geometry
        grad_x: Array = cupy.empty(sizes.x_shape, cache.x.dtype)
        self._first(lambda way: way.grad_x(grad_y, cache.kernels, sizes, grad_x))
        return grad_x

    def grad_weight(self, grad_y: Array, cache: Conv2dCache) -> Array:
        """The gradient of the kernels, (O, C/G, Kh, Kw)."""
        grad = cupy.empty(cache.kernels.shape, cache.x.dtype)
        self._first(lambda way: way.grad_weight(cache.x, grad_y, cache.geometry, grad))
        # (O, Kh, Kw, C/G) -> (O, C/G, Kh, Kw)
        grad_weight: Array = cupy.ascontiguousarray(
            grad.transpose(0, 3, 1, 2), dtype=cache.weight_dtype
        )
        return grad_weight

    def convolve(
        self,
        x: Array,
        packed: Array,
        bias: Array | None,
        sizes: Geometry,
        *,
        relu: bool,
        out: Array | None = None,
    ) -> Array:
        """``[relu](conv2d(x, packed) + bias)`` into `out`, or into new memory."""
        y = cupy.empty(sizes.y_shape, x.dtype) if out is None else out
        self._first(lambda way: way.forward(x, packed, bias, sizes, y, relu=relu))
        return y

    def _first(self, attempt: Callable[[Convolution], bool]) -> None:
        """The first way that can do it; the last one can do everything."""
        done = any(attempt(way) for way in self._ways)
        assert done, "matrix products can do every convolution"
