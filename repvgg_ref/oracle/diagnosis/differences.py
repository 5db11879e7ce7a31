"""What an error in one layer does to the logits: differences from the right values, in float32.

An error is carried through the layers behind it as a *difference* d from what is right there, not
as a value beside it, so that one of 1e-7 keeps seven digits, and thousands run through the network
together. Linear layers take d as they take x, without their biases. Activations need the right
value z as well:

    ReLU      max(z + d, 0) - max(z, 0)
    gate      s(b) - s(a) = s(b) s(-a) (1 - exp(a - b)) for a < b,   s the sigmoid

Arrays are (B, H, W, C) here: one batch is many errors times the images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.programs.activation import SqueezeExcitationParams, sigmoid
from repvgg_ref.oracle.programs.block import BlockProgram
from repvgg_ref.oracle.programs.head import HeadProgram

_AT_ONCE = 6_000_000  # elements of the patches of one matrix product: they stay near the cache


@dataclass(frozen=True)
class Convolution:
    """A fused convolution of a batch (B, H, W, C), float32.

    Attributes
    ----------
    weight : (G, Kh * Kw * C/G, O/G) array
    pads : (top, left, bottom, right)
    """

    weight: Array
    size: tuple[int, int]
    stride: int
    dilation: int
    pads: tuple[int, int, int, int]

    @classmethod
    def of(cls, program: BlockProgram) -> Convolution:
        """The convolution of a right program, without its bias."""
        kernel = program.fused_kernel().weight.astype(np.float32)  # (O, C/G, Kh, Kw)
        groups = program.groups
        split = kernel.reshape(groups, len(kernel) // groups, *kernel.shape[1:])
        # (G, O/G, C/G, Kh, Kw) -> (G, Kh, Kw, C/G, O/G)
        turned = np.ascontiguousarray(split.transpose(0, 3, 4, 2, 1))
        flat = turned.reshape(groups, -1, turned.shape[-1])
        return cls(flat, program.size, program.stride, program.dilation, program.pads)

    def __call__(self, x: Array) -> Array:
        """(B, H, W, C) -> (B, Ho, Wo, O)."""
        patches = self._patches(x)
        row = int(np.prod(patches.shape[1:]))
        step = max(1, _AT_ONCE // row)
        parts = [self._product(patches[at : at + step]) for at in range(0, len(x), step)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def squared(self, x: Array) -> Array:
        """Sum of the squares of all products, at every output."""
        squares = Convolution(
            self.weight * self.weight, self.size, self.stride, self.dilation, self.pads
        )
        return squares(x * x)

    def _patches(self, x: Array) -> Array:
        """A view (B, Ho, Wo, Kh, Kw, C) of the padded batch."""
        top, left, bottom, right = self.pads
        padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
        reach = tuple((n - 1) * self.dilation + 1 for n in self.size)
        windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=(1, 2))
        step, apart = self.stride, self.dilation
        return windows[:, ::step, ::step, :, ::apart, ::apart].transpose(0, 1, 2, 4, 5, 3)

    def _product(self, patches: Array) -> Array:
        groups, _, outputs = self.weight.shape
        b, h, w, kh, kw, c = patches.shape
        split = patches.reshape(b * h * w, kh * kw, groups, c // groups)
        rows = np.moveaxis(split, 2, 0).reshape(groups, b * h * w, -1)
        y = rows @ self.weight  # (G, B*Ho*Wo, O/G)
        return np.moveaxis(y, 0, 1).reshape(b, h, w, groups * outputs)


@dataclass(frozen=True)
class Block:
    """One right block: its convolution, and its values on the images (N, Ho, Wo, O), float32.

    Attributes
    ----------
    before, after : arrays
        In front of the activation, and the block's output.
    bias : (O,) array
    """

    convolution: Convolution
    bias: Array
    before: Array
    after: Array
    activation: str
    se: SqueezeExcitationParams | None

    @classmethod
    def of(cls, program: BlockProgram, x: Array, y: Array) -> Block:
        """From the right program (fused), its input and its output, NCHW and float64."""
        before = program.evaluate_linear(x)
        se = program.se
        if se is not None:
            se = SqueezeExcitationParams(*(part.astype(np.float32) for part in se))
        return cls(
            Convolution.of(program),
            program.fused_kernel().bias.astype(np.float32),
            nhwc(before),
            nhwc(y),
            program.activation,
            se,
        )

    def difference(self, d: Array) -> Array:
        """From a difference of the input (M * N, H, W, C) to that of the output."""
        return self.activated(self.convolution(d))

    def activated(self, d: Array) -> Array:
        """From a difference in front of the activation, (M * N, Ho, Wo, O), to that behind it."""
        z = self.before
        d = d.reshape(-1, *z.shape)
        for step in self.activation.split("-"):
            if step == "relu":
                z, d = np.maximum(z, 0), _relu_difference(z, d)
            elif step == "se" and self.se is not None:
                z, d = _gated(self.se, z, d)
        return d.reshape(-1, *z.shape[1:])

    def value(self, x: Array) -> Array:
        """The output (B, Ho, Wo, O) for another input."""
        y = self.convolution(x) + self.bias
        for step in self.activation.split("-"):
            if step == "relu":
                y = np.maximum(y, 0)
            elif step == "se" and self.se is not None:
                y = y * sigmoid(_gate_input(self.se, y.mean(axis=(1, 2))))[:, None, None]
        return np.asarray(y)


def _relu_difference(z: Array, d: Array) -> Array:
    """``max(z + d, 0) - max(z, 0)``: d where both sides are on; of what crosses 0 a part is left.

    One of the two terms is exact: the second is 0 where z is on, the first -z where all is off.
    """
    found = np.maximum(d, -z)
    found += np.minimum(z, 0)
    return np.asarray(found)


def _gated(se: SqueezeExcitationParams, z: Array, d: Array) -> tuple[Array, Array]:
    """The gated z s(a(z)), and its difference, for z (N, H, W, C) and d (M, N, H, W, C)."""
    pooled, change = z.mean(axis=(1, 2)), d.mean(axis=(2, 3))
    hidden = pooled @ se.down_weight.T + se.down_bias
    hidden_change = _relu_difference(hidden, change @ se.down_weight.T)
    a = np.maximum(hidden, 0) @ se.up_weight.T + se.up_bias
    step = hidden_change @ se.up_weight.T
    gate, other = sigmoid(a), sigmoid(a + step)
    higher, lower = np.maximum(a, a + step), np.minimum(a, a + step)
    apart = -np.sign(step) * np.expm1(-np.abs(step))
    gate_change = sigmoid(higher) * sigmoid(-lower) * apart
    whole = other[:, :, None, None]  # (z + d) s' - z s = d s' + z (s' - s)
    return z * gate[:, None, None], d * whole + z * gate_change[:, :, None, None]


def _gate_input(se: SqueezeExcitationParams, pooled: Array) -> Array:
    hidden = np.maximum(pooled @ se.down_weight.T + se.down_bias, 0)
    return np.asarray(hidden @ se.up_weight.T + se.up_bias)


def nhwc(x: Array) -> Array:
    """(N, C, H, W), any type, to (N, H, W, C), float32."""
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1), np.float32)


@dataclass(frozen=True)
class Differences:
    """All right blocks in order, and the head's weight (classes, C) and bias."""

    blocks: Mapping[str, Block]
    weight: Array
    bias: Array

    @classmethod
    def of(cls, blocks: Mapping[str, Block], head: HeadProgram) -> Differences:
        """From the blocks and the right head."""
        return cls(blocks, head.weight.astype(np.float32), head.bias.astype(np.float32))

    def to_logits(self, name: str, d: Array) -> Array:
        """Differences of the output of the block `name`, (M * N, H, W, C): (M * N, classes)."""
        for each in self._after(name):
            d = self.blocks[each].difference(d)
        return np.asarray(d.mean(axis=(1, 2)) @ self.weight.T)

    def logits(self, name: str, y: Array) -> Array:
        """The logits (B, classes) where the block `name` gives `y` (B, H, W, C), of any extent."""
        for each in self._after(name):
            y = self.blocks[each].value(y)
        return np.asarray(y.mean(axis=(1, 2)) @ self.weight.T + self.bias)

    def _after(self, name: str) -> tuple[str, ...]:
        names = tuple(self.blocks)
        return names[names.index(name) + 1 :]
