"""Operations of gated networks such as EfficientNet: SiLU, gates of channels, sums that drop.

What is dropped at random is dropped in training only, and only where `Pass.draws` says so.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.models.graph import Network
from repvgg_ref.models.layers import Extent, Form, Free, Macs, Pass, Shapes


@dataclass(frozen=True, slots=True)
class Silu(Free):
    """``x sigmoid(x)``."""

    def forward(self, name: str, x: list[Array], run: Pass) -> tuple[Array, Any]:
        """See `ops.silu`."""
        return run.ops.silu_forward(x[0])

    def backward(
        self, name: str, grad_y: Array, cache: Any, run: Pass, *, wants_x: bool
    ) -> list[Array | None]:
        """See `ops.silu`."""
        return [run.ops.silu_backward(grad_y, cache)]

    def extent(self, x: list[Extent]) -> Extent:
        """As the input's."""
        return x[0]


@dataclass(frozen=True, slots=True)
class Gelu(Free):
    """``x Phi(x)``."""

    def forward(self, name: str, x: list[Array], run: Pass) -> tuple[Array, Any]:
        """See `ops.gelu`."""
        return run.ops.gelu_forward(x[0])

    def backward(
        self, name: str, grad_y: Array, cache: Any, run: Pass, *, wants_x: bool
    ) -> list[Array | None]:
        """See `ops.gelu`."""
        return [run.ops.gelu_backward(grad_y, cache)]

    def extent(self, x: list[Extent]) -> Extent:
        """As the input's."""
        return x[0]


@dataclass(frozen=True, slots=True)
class Gate:
    """``x sigmoid(up(silu(down(mean of x))))``, channel by channel; with a ReLU, if `relu`.

    Squeeze-and-excitation (arXiv 1709.01507) as EfficientNet has it; `hidden` channels between
    `down` and `up`, which are 1x1 convolutions of a 1x1 image.
    """

    channels: int
    hidden: int
    relu: bool = False

    def shapes(self, form: Form) -> Shapes:
        """Two kernels and their biases."""
        wide, narrow = self.channels, self.hidden
        return {
            "down.weight": (narrow, wide, 1, 1),
            "down.bias": (narrow,),
            "up.weight": (wide, narrow, 1, 1),
            "up.bias": (wide,),
        }

    def forward(self, name: str, x: list[Array], run: Pass) -> tuple[Array, Any]:
        """Its steps are the table's operators."""
        ops = run.ops
        weights = {
            layer: run.params[f"{name}.{layer}.weight"][:, :, 0, 0] for layer in ("down", "up")
        }
        squeezed, pool = ops.global_avg_pool_forward(x[0])
        # (N, Cm) = (N, C) @ (C, Cm) + (Cm,)
        middle, down = ops.linear_forward(
            squeezed, weights["down"], run.params[f"{name}.down.bias"]
        )
        active, within = (ops.relu_forward if self.relu else ops.silu_forward)(middle)
        # (N, C) = (N, Cm) @ (Cm, C) + (C,)
        logits, up = ops.linear_forward(active, weights["up"], run.params[f"{name}.up.bias"])
        gate, sigmoid = ops.sigmoid_forward(logits)
        over = gate[:, None, None, :] if ops.layout == "NHWC" else gate[:, :, None, None]
        return x[0] * over, (x[0], over, pool, down, within, up, sigmoid)

    def backward(
        self, name: str, grad_y: Array, cache: Any, run: Pass, *, wants_x: bool
    ) -> list[Array | None]:
        """Through the product, and through the gate."""
        ops, (x, over, pool, down, within, up, sigmoid) = run.ops, cache
        pixels = (1, 2) if ops.layout == "NHWC" else (2, 3)
        grad_gate = (grad_y * x).sum(axis=pixels)  # (N, C)
        of_up = ops.linear_backward(ops.sigmoid_backward(grad_gate, sigmoid), up)
        backward = ops.relu_backward if self.relu else ops.silu_backward
        of_down = ops.linear_backward(backward(of_up.grad_x, within), down)
        for layer, found in (("down", of_down), ("up", of_up)):
            run.grads[f"{name}.{layer}.weight"] = found.grad_weight[:, :, None, None]
            run.grads[f"{name}.{layer}.bias"] = found.grad_bias
        return [grad_y * over + ops.global_avg_pool_backward(of_down.grad_x, pool)]

    def extent(self, x: list[Extent]) -> Extent:
        """As the input's."""
        return x[0]

    def macs(self, y: Extent) -> Macs:
        """Two matrix products."""
        count = 2 * self.channels * self.hidden
        return Macs(count, Fraction(count))


@dataclass(frozen=True, slots=True)
class Add(Free):
    """``a + b``, where `a` is left out of some images in training: stochastic depth.

    Huang et al. (arXiv 1603.09382); an `a` that stays counts ``1 / (1 - rate)``.
    """

    rate: float = 0.0

    def forward(self, name: str, x: list[Array], run: Pass) -> tuple[Array, Any]:
        """One draw an image."""
        a, b = x
        factors = _factors(name, self.rate, (len(a), *[1] * (a.ndim - 1)), run, a.dtype)
        return (a + b if factors is None else a * factors + b), factors

    def backward(
        self, name: str, grad_y: Array, cache: Any, run: Pass, *, wants_x: bool
    ) -> list[Array | None]:
        """`a` gets its share where it was there."""
        return [grad_y if cache is None else grad_y * cache, grad_y]

    def extent(self, x: list[Extent]) -> Extent:
        """As either's."""
        return x[0]


@dataclass(frozen=True, slots=True)
class Dropout(Free):
    """Features set to 0 at random in training, the others times ``1 / (1 - rate)``.

    Srivastava et al., JMLR 15 (2014).
    """

    rate: float

    def forward(self, name: str, x: list[Array], run: Pass) -> tuple[Array, Any]:
        """One draw a feature."""
        rate = self.rate if run.dropout is None else run.dropout
        factors = _factors(name, rate, x[0].shape, run, x[0].dtype)
        return (x[0] if factors is None else x[0] * factors), factors

    def backward(
        self, name: str, grad_y: Array, cache: Any, run: Pass, *, wants_x: bool
    ) -> list[Array | None]:
        """Where the feature was there."""
        return [grad_y if cache is None else grad_y * cache]

    def extent(self, x: list[Extent]) -> Extent:
        """As the input's."""
        return x[0]


def kept(name: str, rate: float, shape: tuple[int, ...], run: Pass) -> Array | None:
    """What of `shape` stays, on the host; None where nothing is dropped.

    Every node has random numbers of its own, so that they do not hang on the order of nodes.
    """
    if not run.training or run.draws is None or rate == 0:
        return None
    rng = np.random.default_rng((*run.draws, zlib.crc32(name.encode())))
    chosen: Array = rng.random(shape) >= rate
    return chosen


def _factors(name: str, rate: float, shape: tuple[int, ...], run: Pass, dtype: Any) -> Array | None:
    """Factors 0 and ``1 / (1 - rate)``; None where nothing is dropped."""
    chosen = kept(name, rate, shape, run)
    return None if chosen is None else run.ops.from_host((chosen / (1 - rate)).astype(dtype))


def is_gated(arch: Network) -> bool:
    """Whether gates, GELU or sums without ReLU stand between blocks: RepViT, EfficientNet."""
    return any(isinstance(node.op, (Add, Gate, Gelu, Silu)) for node in arch.nodes)
