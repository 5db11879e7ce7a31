"""How convolutions, products, sums and multiples are read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.form import Form, Lattice, Pair, Term
from repvgg_ref.files.onnx_graph.constants import setting
from repvgg_ref.oracle.candidates.onnx_blocked import DOMAIN, unblocked_kernel
from repvgg_ref.oracle.candidates.onnx_chain import is_mean
from repvgg_ref.oracle.candidates.onnx_reading import (
    CHANNELS,
    NCHW,
    RELU,
    Clamp,
    Gate,
    Opaque,
    Operand,
    Reader,
    Reading,
    Rules,
    total,
)
from weights_io import sanitize

LINEAR = Rules()
_POINT = Lattice((0, 0), (1, 1), (1, 1))


@LINEAR.linear("Conv", "FusedConv", "NhwcFusedConv")
def _convolved(node: Any, operands: list[Operand], reader: Reader) -> Operand:
    x, weight, *rest = operands
    bias, beside, *_ = *rest, None, None
    if node.domain == DOMAIN:
        weight = unblocked_kernel(weight)
    if is_mean(node, reader.constants) and not any(x.border):
        return replace(x, pooled=True)
    second, growth = _convolution(node, x, weight, bias)
    y = x.through(second, growth)
    y = replace(y, stored=y.stored | {reader.constants.stored_as(node.input[1])})
    if beside is not None:
        y = total([y, beside])
    return _activated(node, y)


def _convolution(node: Any, x: Reading, weight: Array, bias: Array | None) -> tuple[Form, Pair]:
    """A node's own form, and how much it makes an image grow."""
    if x.axes != NCHW or weight.ndim != 4:
        raise ValueError("no convolution of images in NCHW")
    step = tuple(setting(node, "dilations", (1, 1)))
    stride = tuple(setting(node, "strides", (1, 1)))
    spans = [d * (k - 1) for d, k in zip(step, weight.shape[2:], strict=True)]
    pads = [a + b for a, b in zip(border(node, spans, stride), x.border, strict=True)]
    lattice = Lattice((-pads[0], -pads[1]), step, weight.shape[2:])
    groups, channels = setting(node, "group", 1), len(x.form.bias)
    if groups == 1:
        weight = weight[:, :channels]
    elif groups == len(weight) > channels:  # the last block of channels is filled up
        weight, groups = weight[:channels], channels
    one = np.ones(len(weight))
    b = 0 * one if bias is None else np.asarray(bias, np.float64)[: len(weight)]
    form = Form((Term(weight, one, lattice),), b, abs(b), stride, groups, 0)
    return form, (pads[0] + pads[2] - spans[0], pads[1] + pads[3] - spans[1])


def border(node: Any, spans: list[int], stride: tuple[int, ...]) -> list[int]:
    """A convolution's padding (top, left, bottom, right); `spans` are dilation * (K - 1).

    SAME with a stride depends on the image. SAME_LOWER with stride 2 puts what is left over on top
    and left, where an odd kernel of an even image needs it: that is padding on both sides.

    Raises
    ------
    ValueError
        If it depends on the image, is told twice, or is none that ONNX knows.
    """
    kind, pads = setting(node, "auto_pad", "NOTSET"), list(setting(node, "pads", (0, 0, 0, 0)))
    if kind in ("NOTSET", ""):
        return pads
    if any(pads):
        raise ValueError("pads and auto_pad contradict each other")
    if kind == "VALID":
        return pads
    if kind not in ("SAME_UPPER", "SAME_LOWER"):
        raise ValueError("no auto_pad that ONNX knows")
    odd = all(span % 2 == 0 for span in spans)
    if odd and (stride == (1, 1) or (kind == "SAME_LOWER" and stride == (2, 2))):
        return [span // 2 for span in spans] * 2
    raise ValueError("the border depends on the image's size")


def _activated(node: Any, y: Reading) -> Operand:
    """ONNX Runtime's convolutions have their activation in an attribute."""
    activation = setting(node, "activation", "")
    if activation in ("", "Relu"):
        return y.then(RELU) if activation else y
    if activation == "Clip":
        return y.then(Clamp.between(*setting(node, "activation_params")))
    return y.then(Opaque(activation, sanitize(node.name)))


@LINEAR.linear("Gemm", "FusedGemm", "MatMul", "FusedMatMul")
def _multiplied(node: Any, operands: list[Operand], reader: Reader) -> Operand:
    """A product over the channels, where they are the last axis."""
    x, weight, *rest = operands
    if not isinstance(weight, np.ndarray) or weight.ndim != 2 or setting(node, "transA", 0):
        return None
    if x.axes[-1] != CHANNELS or any(x.border):
        return None
    matrix = weight if setting(node, "transB", 0) else weight.T  # (O, C)
    alpha, beta = setting(node, "alpha", 1.0), setting(node, "beta", 1.0)
    one = np.ones(len(matrix))
    bias = 0 * one
    if rest and rest[0] is not None:
        bias = bias + beta * np.asarray(rest[0], np.float64).reshape(-1)
    term = Term(matrix[:, :, None, None], alpha * one, _POINT)
    y = x.through(Form((term,), bias, abs(bias), (1, 1), 1, 0))
    y = replace(y, stored=y.stored | {reader.constants.stored_as(node.input[1])})
    return _activated(node, y)


@LINEAR.linear("Add", "Sum")
def _added(node: Any, operands: list[Operand], reader: Reader) -> Operand:
    readings = [each for each in operands if isinstance(each, Reading)]
    if len(readings) == len(operands):
        return total(readings)
    (x,) = readings
    (shift,) = [each for each in operands if not isinstance(each, Reading)]
    return _affine(x, 1.0, shift).named(node)


@LINEAR.linear("Sub")
def _subtracted(node: Any, operands: list[Operand], reader: Reader) -> Operand:
    first, second = operands
    if isinstance(first, Reading) and isinstance(second, Reading):
        return total([first, _affine(second, -1.0, 0.0)])
    if isinstance(first, Reading):
        return _affine(first, 1.0, -np.asarray(second, np.float64)).named(node)
    return _affine(second, -1.0, first).named(node)


@LINEAR.rule("Mul")
def _scaled(node: Any, operands: list[Operand], reader: Reader) -> Operand:
    first, second = operands
    if isinstance(first, Reading) and isinstance(second, Reading):
        return _gated(first, second)
    x, factor = (first, second) if isinstance(first, Reading) else (second, first)
    return _affine(x, factor, 0.0).named(node) if x.is_linear else None


@LINEAR.linear("Div")
def _divided(node: Any, operands: list[Operand], reader: Reader) -> Operand:
    x, divisor = operands
    if not isinstance(x, Reading) or isinstance(divisor, Reading):
        return None
    return _affine(x, 1 / np.asarray(divisor, np.float64), 0.0).named(node)


@LINEAR.linear("Neg")
def _negated(node: Any, operands: list[Operand], reader: Reader) -> Operand:
    return _affine(operands[0], -1.0, 0.0).named(node)


@LINEAR.linear("BatchNormalization")
def _normalised(node: Any, operands: list[Operand], reader: Reader) -> Operand:
    x, *vectors = operands
    if setting(node, "training_mode", 0) or any(x.border):
        return None
    gamma, beta, mean, var = (np.asarray(v, np.float64) for v in vectors)
    # eps is a float32 in the file: 1e-5 there is 9.99999974e-06, and 1e-5 was meant
    t = gamma / np.sqrt(var + float(str(np.float32(setting(node, "epsilon", 1e-5)))))
    return replace(x, form=x.form.scaled(t).shifted(beta - mean * t))


def _affine(x: Reading, factor: Any, shift: Any) -> Reading:
    """``factor * x + shift``; both a number, or one a channel."""
    scale, offset = (_along_channels(x, each) for each in (factor, shift))
    if any(x.border) and offset.any():
        raise ValueError("a shift of a border")
    return replace(x, form=x.form.scaled(scale).shifted(offset))


def _along_channels(x: Reading, constant: Any) -> Array:
    """A constant that is broadcast along every axis but the channels', as (C,)."""
    values = np.asarray(constant, np.float64)
    shape = (*(1,) * (len(x.axes) - values.ndim), *values.shape)
    at = x.axes.index(CHANNELS)
    if len(shape) > len(x.axes) or any(n != 1 for axis, n in enumerate(shape) if axis != at):
        raise ValueError("no number a channel")
    return np.broadcast_to(values.reshape(-1), (len(x.form.bias),))


def _gated(first: Reading, second: Reading) -> Reading | None:
    """A tensor times what is made of it: the part that is understood goes on."""
    plain = [each for each in (first, second) if not _is_opaque(each)]
    return plain[0].then(Gate()) if len(plain) == 1 else None


def _is_opaque(x: Reading) -> bool:
    return x.pooled or any(isinstance(each, Opaque) for each in x.after)
