"""Weights, biases, scales and settings of a quantised ONNX graph, for an integer network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.files.onnx_graph.constants import Constants, setting
from repvgg_ref.integer.layers import INT8, Quantization
from repvgg_ref.oracle.candidates.base import CandidateFailure
from repvgg_ref.oracle.candidates.onnx_rules_linear import border
from repvgg_ref.oracle.integers.onnx_settings import called, lacks_input, not_understood
from weights_io import sanitize

_EIGHT_BITS = (np.int8, np.uint8)
_SAME_UNIT = 1e-5  # relative: a product of two float32 scales, rounded in either order
_WHOLE = 1e-3  # of a step: a real bias so near to an integer is one


@dataclass(frozen=True)
class StatedBias:
    """A bias that a file holds in other units than ``input_scale * weight_scale``.

    `real` (O,) is what it is, `step` (O,) the distance of two numbers that the file could hold (0
    for real ones) and `numbers` (O,) what it holds, None for real ones.
    """

    real: Array
    step: Array
    numbers: Array | None = None

    def in_units(self, unit: Array) -> Array:
        """The nearest integers, int32."""
        limits = np.iinfo(np.int32)
        return np.clip(np.rint(self.real / unit), limits.min, limits.max).astype(np.int32)

    def is_whole(self, unit: Array) -> bool:
        """Whether nothing is lost where it is held in `unit`."""
        whole = self.real / unit
        return bool((np.abs(whole - np.rint(whole)) <= _WHOLE).all())


class Weights(NamedTuple):
    """Integers less their zero point, their scales, and that zero point: see `IntegerLayer`."""

    numbers: Array
    scale: Array
    zero_point: Array | None


class QuantisedArrays:
    """What the nodes of `model` hold; `file` is what messages call it."""

    def __init__(self, model: Any, file: str) -> None:
        opsets = {each.domain: int(each.version) for each in model.opset_import}
        self.file, self.opset = file, opsets.get("", 17)
        self.constants = Constants(model.graph, self.opset)

    def failure(
        self, what: str, *, got: str | None = None, wanted: str | None = None
    ) -> CandidateFailure:
        """What to raise, with the file's name before it."""
        return CandidateFailure(f"{self.file}: {what}", got=got, wanted=wanted)

    def require_understood(self, node: Any, most: int) -> None:
        """Refuse a node with a setting that is not read, or with more inputs than are."""
        if unread := not_understood(node):
            raise self.failure(
                "an operator that no chain of quantised layers has",
                got=unread,
                wanted="Conv, ReLU, average pooling and a linear layer, each quantised, with no "
                "other settings than change nothing",
            )
        if lacking := lacks_input(node):
            raise self.failure(lacking)
        if len(node.input) > most or not all(node.output[:1]):
            raise self.failure(f"{called(node)}: {len(node.input)} inputs", wanted=f"{most}")

    def value(self, name: str) -> Array:
        """A constant of the graph."""
        found = self.constants.value(name)
        if found is None:
            raise self.failure("a weight, scale or zero point is no constant", got=sanitize(name))
        return found

    def scale(self, name: str) -> Array:
        """Positive float32 numbers, shape () or (O,)."""
        scale = self.value(name)
        if scale.dtype != np.float32 or not scale.size or (scale.ndim > 1 and scale.size > 1):
            raise self.failure(
                f"the scale {sanitize(name)}",
                got=f"{scale.dtype} of shape {scale.shape}",
                wanted="float32, one number, or one a channel",
            )
        if not (np.isfinite(scale) & (scale > 0)).all():
            odd = scale.reshape(-1)[~(np.isfinite(scale) & (scale > 0)).reshape(-1)][0]
            raise self.failure(
                f"the scale {sanitize(name)} holds what is no scale",
                got=f"{odd:g}",
                wanted="positive numbers",
            )
        return scale.reshape(()) if scale.size == 1 else scale

    def quantization(self, scale: str, zero_point: str, dtype: Any = np.uint8) -> Quantization:
        """Scale and zero point of a tensor of activations; without one it is 0 of `dtype`."""
        s = self.scale(scale)
        z = self.value(zero_point) if zero_point else np.zeros((), dtype)
        if s.size != 1 or z.size != 1 or z.dtype not in _EIGHT_BITS:
            raise self.failure(
                f"the quantisation {sanitize(scale)} of an activation",
                got=f"{s.size} scales, {z.size} zero points of {z.dtype}",
                wanted="one scale, and a zero point of int8 or uint8",
            )
        return Quantization(s, z.reshape(()))

    def weights(self, name: str, *, transposed: bool = False) -> Weights:
        """Integers and scales of a weight that comes through DequantizeLinear."""
        node = self.dequantized(name)
        if node is None:
            raise self.failure(
                "weights that are not quantised", got=sanitize(name), wanted="DequantizeLinear"
            )
        zero = self.value(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        weight, scale = self.value(node.input[0]), self.scale(node.input[1])
        axis = setting(node, "axis", 1)
        if scale.size > 1 and axis % max(weight.ndim, 1) != (1 if transposed else 0):
            raise self.failure(
                f"{called(node)}: scales along another axis than the outputs",
                got=f"axis {axis} of {weight.shape}",
                wanted=f"axis {1 if transposed else 0}",
            )
        self.require_alike(node, scale, zero)
        return self.signed(weight.T if transposed else weight, scale, zero)

    def require_alike(self, node: Any, scale: Array, zero: Array | None) -> None:
        """Refuse a zero point for all channels beside a scale for each, or the reverse."""
        if zero is not None and zero.size != scale.size:
            raise self.failure(
                f"{called(node)}: scales and zero points",
                got=f"{scale.size} and {zero.size}",
                wanted="as many",
            )

    def dequantized(self, name: str) -> Any | None:
        """The understood DequantizeLinear that makes `name`, if one does."""
        node = self.constants.producers.get(name)
        if node is None or node.op_type != "DequantizeLinear":
            return None
        self.require_understood(node, 3)
        return node

    def signed(self, weight: Array, scale: Array, zero: Array | None) -> Weights:
        """Around zero, whatever zero point they are stored with."""
        zero = np.zeros((), weight.dtype) if zero is None else zero
        outputs = len(weight) if weight.ndim else 0
        fits = all(each.size == 1 or each.shape == (outputs,) for each in (scale, zero))
        if weight.dtype not in _EIGHT_BITS or zero.dtype != weight.dtype or not fits:
            raise self.failure(
                "weights and their scale do not go together",
                got=f"{weight.dtype} of shape {weight.shape}, {scale.size} scales, "
                f"{zero.size} zero points of {zero.dtype}",
                wanted="int8 or uint8, and one scale and zero point for all or for each output",
            )
        across = (-1,) + (1,) * (weight.ndim - 1)
        whole = weight.astype(np.int64)
        whole = whole - zero.astype(np.int64).reshape(across if zero.size > 1 else ())
        fits = not whole.size or bool(INT8.min <= whole.min() <= whole.max() <= INT8.max)
        middle = zero.astype(np.int64) - (128 if zero.dtype == np.uint8 else 0)
        middle = middle.reshape(()) if middle.size == 1 else middle
        numbers = whole.astype(np.int8 if fits else np.int16)
        return Weights(numbers, scale, middle if middle.any() else None)

    def bias(self, name: str, outputs: int, unit: Array) -> tuple[Array, StatedBias | None]:
        """Integers in units of `unit`; and the bias itself, where it is stored otherwise."""
        if not name:
            return np.zeros(outputs, np.int32), None
        stated = self.stated_bias(name, outputs)
        same = np.abs(stated.step / unit - 1) <= _SAME_UNIT
        if stated.numbers is not None and stated.numbers.dtype == np.int32 and same.all():
            return stated.numbers, None
        return stated.in_units(unit), stated

    def stated_bias(self, name: str, outputs: int) -> StatedBias:
        """A bias as the file states it: real numbers, or integers with a scale of their own."""
        node = self.dequantized(name)
        if node is None:
            real = self.broadcast(self.value(name), outputs, name)
            if real.dtype not in (np.float32, np.float64) or not np.isfinite(real).all():
                raise self.failure(
                    f"the bias {sanitize(name)}", got=str(real.dtype), wanted="finite float32"
                )
            return StatedBias(real.astype(np.float64), np.zeros(outputs))
        numbers, scale = self.value(node.input[0]), self.scale(node.input[1])
        zero = self.value(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        axis = setting(node, "axis", 1)
        if scale.size > 1 and axis % max(numbers.ndim, 1) != numbers.ndim - 1:
            raise self.failure(f"{called(node)}: scales along axis {axis}", wanted="the outputs'")
        return self.dequantized_bias(name, numbers, scale, zero, outputs)

    def dequantized_bias(
        self, name: str, numbers: Array, scale: Array, zero: Array | None, outputs: int
    ) -> StatedBias:
        """``scale * (numbers - zero)`` for each output."""
        if numbers.dtype not in (np.int32, *_EIGHT_BITS):
            raise self.failure(
                f"the bias {sanitize(name)}", got=str(numbers.dtype), wanted="int32 or 8 bits"
            )
        numbers = self.broadcast(numbers, outputs, name)
        step = self.broadcast(scale, outputs, name).astype(np.float64)
        none = np.zeros((), numbers.dtype)
        shift = self.broadcast(none if zero is None else zero, outputs, name).astype(np.int64)
        whole = numbers if not shift.any() else numbers.astype(np.int64) - shift
        return StatedBias(whole * step, step, whole)

    def integer_bias(self, name: str, outputs: int) -> Array:
        """The int32 bias of an operator on integers, shape (O,)."""
        numbers = self.value(name)
        if numbers.dtype != np.int32 or numbers.shape != (outputs,):
            raise self.failure(
                f"the bias {sanitize(name)}",
                got=f"{numbers.dtype} of shape {numbers.shape}",
                wanted=f"int32 of shape ({outputs},)",
            )
        return numbers

    def broadcast(self, array: Array, outputs: int, name: str) -> Array:
        """One number for each output, shape (O,), of an array that is broadcast to them."""
        flat = array.reshape(-1)
        wide = array.ndim and array.shape[-1] == array.size  # (O,), (1, O)
        if array.size == 1 or (wide and array.size == outputs):
            return np.broadcast_to(flat, (outputs,))
        raise self.failure(
            f"{sanitize(name)}: not one number for each of {outputs} outputs",
            got=f"shape {array.shape}",
        )

    def conv_settings(self, node: Any, weight: Array) -> dict[str, Any]:
        """Stride, padding, dilation and groups, the same both ways."""
        if weight.ndim != 4:
            raise self.failure(
                f"{called(node)}: no convolution of images", got=f"weights of shape {weight.shape}"
            )
        strides = setting(node, "strides", [1, 1])
        dilations = setting(node, "dilations", [1, 1])
        spans = [d * (k - 1) for d, k in zip(dilations, weight.shape[2:], strict=False)]
        try:
            pads = border(node, spans, tuple(strides))
        except ValueError as error:
            raise self.failure(
                f"{called(node)}: {error}",
                got=f"auto_pad {sanitize(setting(node, 'auto_pad'))} with strides {list(strides)}",
                wanted="the padding as numbers: export again with pads",
            ) from error
        kernel = setting(node, "kernel_shape", list(weight.shape[2:]))
        if list(kernel) != list(weight.shape[2:]):
            raise self.failure(
                f"{called(node)}: kernel_shape is not its weights'",
                got=str(list(kernel)),
                wanted=str(list(weight.shape[2:])),
            )
        for what, values, count, least in (
            ("strides", strides, 2, 1),
            ("pads", pads, 4, 0),
            ("dilations", dilations, 2, 1),
        ):
            if len(set(values)) != 1 or len(values) != count or min(values) < least:
                raise self.failure(
                    f"{called(node)}: uneven {what}", got=str(list(values)), wanted="one number"
                )
        groups = int(setting(node, "group", 1))
        if groups < 1 or len(weight) % groups:
            raise self.failure(
                f"{called(node)}: groups", got=str(groups), wanted=f"a divisor of {len(weight)}"
            )
        return {
            "stride": int(strides[0]),
            "padding": int(pads[0]),
            "dilation": int(dilations[0]),
            "groups": groups,
        }

    def axes(self, node: Any) -> list[int] | None:
        """The axes that a node states, as an attribute or as its second input."""
        found = setting(node, "axes")
        if found is None and len(node.input) > 1 and node.input[1]:
            found = self.value(node.input[1]).reshape(-1).tolist()
        return None if found is None else [int(axis) for axis in found]
