"""Weights, biases, scales and settings of a quantised ONNX graph, for an integer network."""

from __future__ import annotations

from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.files.onnx_graph.constants import Constants, setting
from repvgg_ref.integer.layers import Quantization
from repvgg_ref.oracle.candidates.base import CandidateFailure
from weights_io import sanitize


class QuantisedArrays:
    """What the nodes of `model` hold; `file` is what messages call it."""

    def __init__(self, model: Any, file: str) -> None:
        opsets = {each.domain: int(each.version) for each in model.opset_import}
        self.file = file
        self.constants = Constants(model.graph, opsets.get("", 17))

    def failure(
        self, what: str, *, got: str | None = None, wanted: str | None = None
    ) -> CandidateFailure:
        """What to raise, with the file's name before it."""
        return CandidateFailure(f"{self.file}: {what}", got=got, wanted=wanted)

    def value(self, name: str) -> Array:
        """A constant of the graph."""
        found = self.constants.value(name)
        if found is None:
            raise self.failure("a weight, scale or zero point is no constant", got=sanitize(name))
        return found

    def quantization(self, scale: str, zero_point: str) -> Quantization:
        """Scale and zero point of a tensor of activations."""
        s = np.asarray(self.value(scale), np.float32)
        z = self.value(zero_point)
        if s.size != 1 or z.dtype not in (np.int8, np.uint8):
            raise self.failure(
                "an activation's scale",
                got=f"{s.size} numbers of {z.dtype}",
                wanted="one scale, and a zero point of int8 or uint8",
            )
        return Quantization(s.reshape(()), z.reshape(()))

    def weights(self, name: str, *, transposed: bool = False) -> tuple[Array, Array]:
        """Integers and scales of a weight that comes through DequantizeLinear."""
        node = self.constants.producers.get(name)
        if node is None or node.op_type != "DequantizeLinear":
            raise self.failure(
                "weights that are not quantised", got=sanitize(name), wanted="DequantizeLinear"
            )
        zero = self.value(node.input[2]) if len(node.input) > 2 else None
        weight = self.value(node.input[0])
        return self.signed(weight.T if transposed else weight, self.value(node.input[1]), zero)

    def signed(self, weight: Array, scale: Array, zero: Array | None) -> tuple[Array, Array]:
        """As int8 around zero, whatever zero point they are stored with."""
        across = (-1,) + (1,) * (weight.ndim - 1)
        whole = weight.astype(np.int64)
        if zero is not None and np.any(zero):
            whole = whole - zero.astype(np.int64).reshape(across if zero.size > 1 else ())
        if whole.size and not -128 <= whole.min() <= whole.max() <= 127:
            raise self.failure(
                "asymmetric weights", got=f"{whole.min()} to {whole.max()}", wanted="within int8"
            )
        scale = np.asarray(scale, np.float32)
        scale = scale.reshape(()) if scale.size == 1 else scale.reshape(-1)
        return whole.astype(np.int8), scale

    def bias(self, name: str, outputs: int, unit: Array) -> Array:
        """The integers of a bias: stored, or a real one in units of `unit`."""
        node = self.constants.producers.get(name) if name else None
        if not name:
            return np.zeros(outputs, np.int32)
        if node is not None and node.op_type == "DequantizeLinear":
            return np.asarray(self.value(node.input[0]), np.int32)
        real = self.value(name)
        if real.dtype == np.int32:
            return real
        return np.rint(real.astype(np.float64) / unit).astype(np.int32)

    def conv_settings(self, node: Any, weight: Array) -> dict[str, Any]:
        """Stride, padding, dilation and groups, the same both ways."""
        strides = setting(node, "strides", [1, 1])
        pads = setting(node, "pads", [0, 0, 0, 0])
        dilations = setting(node, "dilations", [1, 1])
        if setting(node, "auto_pad", "NOTSET") != "NOTSET" or weight.ndim != 4:
            raise self.failure(
                "a convolution's padding is not written out", got=sanitize(node.name)
            )
        for what, values in (("strides", strides), ("pads", pads), ("dilations", dilations)):
            if len(set(values)) != 1:
                raise self.failure(
                    f"{sanitize(node.name)}: uneven {what}",
                    got=str(list(values)),
                    wanted="one number",
                )
        return {
            "stride": int(strides[0]),
            "padding": int(pads[0]),
            "dilation": int(dilations[0]),
            "groups": int(setting(node, "group", 1)),
        }
