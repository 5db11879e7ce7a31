"""What a node of a network may be, besides being wired: shapes, forward, backward, cost.

Every operation has the same few methods, so that the walk of `graph` needs to know none of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from math import prod
from typing import Any, Literal, NamedTuple, Protocol

from repvgg_ref.arrays import Array, array_module
from repvgg_ref.blocks.block import (
    SE_FIELDS,
    BlockCache,
    fused_block_forward,
    train_block_backward,
    train_block_forward,
    train_block_parameter_grads,
)
from repvgg_ref.blocks.catalogue import expression, fused_conv, is_fusible
from repvgg_ref.blocks.run import BatchStats
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.ops import Ops

Form = Literal["train", "deploy"]
Shapes = dict[str, tuple[int, ...]]
Extent = tuple[int, int, int]  # channels, height, width


@dataclass
class Pass:
    """One pass through a network: arrays by canonical name, how to compute, what was found.

    `draws` seeds what a training step leaves out at random; None: it leaves out nothing. `dropout`
    is the rate of dropout nodes, where it is not to be their own.
    """

    params: Mapping[str, Array]
    ops: Ops
    eps: Any
    form: Form = "train"
    training: bool = False
    draws: tuple[int, ...] | None = None
    momentum: Any = 0.1
    dropout: float | None = None
    stats: dict[str, BatchStats] = field(default_factory=dict)
    grads: dict[str, Array] = field(default_factory=dict)


class Macs(NamedTuple):
    """Multiply-accumulates of the fused form, direct and by F(2x2, 3x3) where that applies."""

    direct: int
    winograd: Fraction


class Operation(Protocol):
    """What a node does."""

    def shapes(self, form: Form) -> Shapes:
        """Its arrays: part name -> shape."""

    def forward(self, name: str, x: list[Array], run: Pass) -> tuple[Array, Any]:
        """Output and what `backward` needs; batch statistics go to `run.stats`."""

    def backward(
        self, name: str, grad_y: Array, cache: Any, run: Pass, *, wants_x: bool
    ) -> list[Array | None]:
        """Gradients of its inputs; those of its arrays go to `run.grads`."""

    def extent(self, x: list[Extent]) -> Extent:
        """Channels, height and width of the output."""

    def macs(self, y: Extent) -> Macs:
        """What an output of this extent costs."""


class Free:
    """An operation without arrays that costs nothing worth counting."""

    def shapes(self, form: Form) -> Shapes:
        """None."""
        return {}

    def macs(self, y: Extent) -> Macs:
        """Nothing."""
        return Macs(0, Fraction(0))


@dataclass(frozen=True, slots=True)
class Block:
    """A block: its linear expression, or the one convolution that equals it; SE; ReLU."""

    spec: BlockSpec

    def shapes(self, form: Form) -> Shapes:
        """The expression's arrays, or the fused kernel and bias; and SE's."""
        source = expression(self.spec) if form == "train" else fused_conv(self.spec)
        return source.shapes() | _se_shapes(self.spec)

    def forward(self, name: str, x: list[Array], run: Pass) -> tuple[Array, BlockCache | None]:
        """See `blocks.block`."""
        if run.form == "deploy":
            return fused_block_forward(self.spec, run.params, x[0], ops=run.ops), None
        y, cache = train_block_forward(
            self.spec,
            run.params,
            x[0],
            ops=run.ops,
            eps=run.eps,
            training=run.training,
            momentum=run.momentum,
        )
        run.stats |= {f"{name}.{norm}": seen for norm, seen in cache.stats.items()}
        return y, cache

    def backward(
        self, name: str, grad_y: Array, cache: Any, run: Pass, *, wants_x: bool
    ) -> list[Array | None]:
        """See `blocks.block`."""
        grad_x: Array | None = None
        if wants_x:
            grad_x, params = train_block_backward(self.spec, grad_y, cache)
        else:
            params = train_block_parameter_grads(self.spec, grad_y, cache)
        run.grads |= {f"{name}.{part}": grad for part, grad in params.items()}
        return [grad_x]

    def extent(self, x: list[Extent]) -> Extent:
        """Padding keeps the size but for the stride."""
        _, height, width = x[0]
        stride = self.spec.stride
        return self.spec.out_channels, (height - 1) // stride + 1, (width - 1) // stride + 1

    def macs(self, y: Extent) -> Macs:
        """The fused convolution's, 4/9 of them by Winograd at stride 1 (paper, section 3.1).

        Of a block that cannot be fused, all its convolutions'.
        """
        spec, pixels = self.spec, y[1] * y[2]
        gate = 2 * spec.out_channels * spec.se_channels
        found = Macs(gate, Fraction(gate))
        source = fused_conv(spec) if is_fusible(spec) else expression(spec)
        for shape in source.shapes().values():
            if len(shape) > 2:
                count = prod(shape) * pixels
                fast = shape[2:] == (3, 3) and spec.stride == 1
                some = count * (Fraction(4, 9) if fast else Fraction(1))
                found = Macs(found.direct + count, found.winograd + some)
        return found


@dataclass(frozen=True, slots=True)
class Linear:
    """``y = W x + b`` of features (N, C)."""

    features: int
    outputs: int
    relu: bool = False

    def shapes(self, form: Form) -> Shapes:
        """Matrix (outputs, features) and bias."""
        return {"weight": (self.outputs, self.features), "bias": (self.outputs,)}

    def forward(self, name: str, x: list[Array], run: Pass) -> tuple[Array, Any]:
        """See `ops.linear`."""
        weight, bias = run.params[f"{name}.weight"], run.params[f"{name}.bias"]
        y, cache = run.ops.linear_forward(x[0], weight, bias)
        if not self.relu:
            return y, (cache, None)
        y, relu = run.ops.relu_forward(y)
        return y, (cache, relu)

    def backward(
        self, name: str, grad_y: Array, cache: Any, run: Pass, *, wants_x: bool
    ) -> list[Array | None]:
        """See `ops.linear`."""
        linear, relu = cache
        grad = grad_y if relu is None else run.ops.relu_backward(grad_y, relu)
        grads = run.ops.linear_backward(grad, linear)
        run.grads[f"{name}.weight"] = grads.grad_weight
        run.grads[f"{name}.bias"] = grads.grad_bias
        return [grads.grad_x]

    def extent(self, x: list[Extent]) -> Extent:
        """One pixel."""
        return self.outputs, 1, 1

    def macs(self, y: Extent) -> Macs:
        """The matrix product's."""
        return Macs(self.features * self.outputs, Fraction(self.features * self.outputs))


@dataclass(frozen=True, slots=True)
class GlobalAvgPool(Free):
    """The mean of each channel: features (N, C)."""

    def forward(self, name: str, x: list[Array], run: Pass) -> tuple[Array, Any]:
        """See `ops.global_avg_pool`."""
        return run.ops.global_avg_pool_forward(x[0])

    def backward(
        self, name: str, grad_y: Array, cache: Any, run: Pass, *, wants_x: bool
    ) -> list[Array | None]:
        """See `ops.global_avg_pool`."""
        return [run.ops.global_avg_pool_backward(grad_y, cache)]

    def extent(self, x: list[Extent]) -> Extent:
        """One pixel."""
        return x[0][0], 1, 1


@dataclass(frozen=True, slots=True)
class MaxPool(Free):
    """The largest of each window."""

    kernel: int
    stride: int
    padding: int = 0

    def forward(self, name: str, x: list[Array], run: Pass) -> tuple[Array, Any]:
        """See `ops.max_pool`."""
        return run.ops.max_pool_forward(
            x[0], kernel=self.kernel, stride=self.stride, padding=self.padding
        )

    def backward(
        self, name: str, grad_y: Array, cache: Any, run: Pass, *, wants_x: bool
    ) -> list[Array | None]:
        """See `ops.max_pool`."""
        return [run.ops.max_pool_backward(grad_y, cache)]

    def extent(self, x: list[Extent]) -> Extent:
        """What fits."""
        channels, *size = x[0]
        height, width = ((n + 2 * self.padding - self.kernel) // self.stride + 1 for n in size)
        return channels, height, width


@dataclass(frozen=True, slots=True)
class AddRelu(Free):
    """``max(a + b, 0)``: the end of a residual block."""

    def forward(self, name: str, x: list[Array], run: Pass) -> tuple[Array, Any]:
        """See `ops.relu`."""
        return run.ops.relu_forward(x[0] + x[1])

    def backward(
        self, name: str, grad_y: Array, cache: Any, run: Pass, *, wants_x: bool
    ) -> list[Array | None]:
        """Both get the same."""
        grad = run.ops.relu_backward(grad_y, cache)
        return [grad, grad]

    def extent(self, x: list[Extent]) -> Extent:
        """As either's."""
        return x[0]


@dataclass(frozen=True, slots=True)
class Flatten(Free):
    """(N, C, H, W) as features (N, C H W), in that order."""

    def forward(self, name: str, x: list[Array], run: Pass) -> tuple[Array, Any]:
        """A copy where the table's layout is another."""
        nchw = run.ops.leave(x[0])
        return array_module(nchw).ascontiguousarray(nchw.reshape(len(nchw), -1)), nchw.shape

    def backward(
        self, name: str, grad_y: Array, cache: Any, run: Pass, *, wants_x: bool
    ) -> list[Array | None]:
        """Back to the image."""
        return [run.ops.enter(grad_y.reshape(cache))]

    def extent(self, x: list[Extent]) -> Extent:
        """One pixel."""
        return prod(x[0]), 1, 1


def _se_shapes(spec: BlockSpec) -> Shapes:
    if spec.se == "none":
        return {}
    wide, narrow = spec.out_channels, spec.se_channels
    shapes = ((narrow, wide, 1, 1), (narrow,), (wide, narrow, 1, 1), (wide,))
    return {f"se.{part}": shape for part, shape in zip(SE_FIELDS, shapes, strict=True)}
