"""A quantised ONNX file as an integer network: operators on integers, or quantise-dequantise pairs.

The graph is followed from its image to its end. A real tensor is either numbers taken apart by
DequantizeLinear, or a layer still open, which the next QuantizeLinear closes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.files.onnx_graph.constants import setting
from repvgg_ref.integer.layers import IntegerLayer, Kind, Quantization
from repvgg_ref.integer.network import IntegerNetwork
from repvgg_ref.oracle.candidates.base import CandidateFailure
from repvgg_ref.oracle.candidates.onnx_load import load_onnx
from repvgg_ref.oracle.integers.onnx_arrays import QuantisedArrays
from weights_io import sanitize

ROUNDING = "float-even"
QUANTISING = frozenset({"QuantizeLinear", "QLinearConv", "QGemm", "QLinearMatMul"})
_SUFFIXES = ("_QuantizeLinear_Output", "_quantized", "_output_0")
_SHAPING = frozenset({"Flatten", "Reshape", "Squeeze", "Identity"})


@dataclass(frozen=True)
class ReadNetwork:
    """The network in a file, and where its numbers are: layer (or "input") -> tensor."""

    network: IntegerNetwork
    tensors: Mapping[str, str]
    model: Any = field(repr=False)


@dataclass
class _Open:
    """A layer whose numbers are not known yet."""

    kind: Kind
    weight: Array | None = None
    bias: Array | None = None
    weight_scale: Array | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    relu: bool = False


def is_quantised(model: Any) -> bool:
    """Whether activations are quantised in this ONNX model."""
    return any(node.op_type in QUANTISING for node in model.graph.node)


def read_integer_onnx(path: Path) -> ReadNetwork:
    """Read the quantised chain in `path`; see `files.integer_onnx` for what is written.

    Raises
    ------
    CandidateFailure
        If it is no chain of quantised convolutions, pooling and a linear layer; the operator that
        does not belong is named.
    """
    model = load_onnx(path)
    name = sanitize(path.name)
    try:
        return _Reader(model, name).read()
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise CandidateFailure(
            f"{name}: the graph is malformed", got=sanitize(type(error).__name__)
        ) from None


class _Reader(QuantisedArrays):
    def __init__(self, model: Any, name: str) -> None:
        super().__init__(model, name)
        self.model = model
        self.numbers: dict[str, Quantization] = {}  # tensor of 8-bit numbers -> what they mean
        self.real: dict[str, str | _Open] = {}  # real tensor -> its numbers, or an open layer
        self.layers: list[IntegerLayer] = []
        self.tensors: dict[str, str] = {}
        self.entered = ""

    def read(self) -> ReadNetwork:
        """Follow the nodes, in the order in which the file has them."""
        known = {each.name for each in self.model.graph.initializer}
        image = next(each.name for each in self.model.graph.input if each.name not in known)
        self.real[image] = ""
        for node in self.model.graph.node:
            if any(each in self.numbers or each in self.real for each in node.input):
                _HANDLERS.get(node.op_type, _Reader.refuse)(self, node)
        if not self.layers:
            raise self.failure("no quantised layer was found")
        self.tensors["input"] = self.entered
        return ReadNetwork(IntegerNetwork(tuple(self.layers), ROUNDING), self.tensors, self.model)

    def refuse(self, node: Any) -> None:
        if self.layers and not any(each in self.numbers for each in node.input):
            return  # whatever follows the last numbers is real arithmetic: softmax, arg max
        raise self.failure(
            "an operator that no chain of quantised layers has",
            got=f"{node.op_type} {sanitize(node.name)}".strip(),
            wanted="Conv, ReLU, average pooling and a linear layer, each quantised",
        )

    def close(self, layer: _Open, x: Quantization, y: Quantization, tensor: str) -> None:
        """A layer is complete once its output's scale is known."""
        name = _called(tensor, self.tensors)
        self.layers.append(
            IntegerLayer(
                name,
                layer.kind,
                x,
                y,
                layer.weight,
                layer.bias,
                layer.weight_scale,
                relu=layer.relu,
                **layer.settings,
            )
        )
        self.tensors[name] = tensor
        self.numbers[tensor] = y

    def source(self, tensor: str) -> Quantization:
        """What the numbers behind a real tensor mean."""
        behind = self.real.get(tensor)
        if not isinstance(behind, str) or behind not in self.numbers:
            raise self.failure(
                "a layer reads real numbers", got=sanitize(tensor), wanted="quantised ones"
            )
        return self.numbers[behind]


def _quantize(reader: _Reader, node: Any) -> None:
    tensor, made = node.input[0], node.output[0]
    found = reader.quantization(node.input[1], node.input[2])
    behind = reader.real.get(tensor)
    if behind == "":
        reader.numbers[made], reader.entered = found, made
    elif isinstance(behind, _Open):
        before = reader.layers[-1].output if reader.layers else reader.numbers[reader.entered]
        reader.close(behind, before, found, made)
    elif isinstance(behind, str):
        same = reader.numbers[behind]
        if (same.scale, same.zero_point) != (found.scale, found.zero_point):
            raise reader.failure("numbers are quantised twice", got=sanitize(made))
        reader.numbers[made] = found
        _renamed(reader, behind, made)
    else:
        raise reader.failure("a real tensor of unknown origin", got=sanitize(tensor))


def _dequantize(reader: _Reader, node: Any) -> None:
    if node.input[0] not in reader.numbers:
        raise reader.failure("numbers of unknown origin", got=sanitize(node.input[0]))
    reader.real[node.output[0]] = node.input[0]


def _conv(reader: _Reader, node: Any) -> None:
    x = reader.source(node.input[0])
    weight, scale = reader.weights(node.input[1])
    unit = float(x.scale) * scale.astype(np.float64)
    bias = reader.bias(node.input[2] if len(node.input) > 2 else "", len(weight), unit)
    settings = reader.conv_settings(node, weight)
    reader.real[node.output[0]] = _Open("conv", weight, bias, scale, settings)


def _gemm(reader: _Reader, node: Any) -> None:
    x = reader.source(node.input[0])
    is_gemm = node.op_type == "Gemm"
    transposed = not (is_gemm and setting(node, "transB", 0))
    weight, scale = reader.weights(node.input[1], transposed=transposed)
    unit = float(x.scale) * scale.astype(np.float64)
    bias = reader.bias(node.input[2] if len(node.input) > 2 else "", len(weight), unit)
    reader.real[node.output[0]] = _Open("linear", weight, bias, scale)


def _add(reader: _Reader, node: Any) -> None:
    """A bias that is added behind a matrix product."""
    names = list(node.input)
    at = next((i for i, each in enumerate(names) if isinstance(reader.real.get(each), _Open)), None)
    layer = None if at is None else reader.real[names[at]]
    if (
        not isinstance(layer, _Open)
        or layer.kind != "linear"
        or layer.bias is None
        or layer.bias.any()
    ):
        reader.refuse(node)
        return
    assert layer.weight_scale is not None
    before = reader.layers[-1].output
    unit = float(before.scale) * layer.weight_scale.astype(np.float64)
    bias = reader.bias(names[1 - (at or 0)], len(layer.bias), unit)
    reader.real[node.output[0]] = replace(layer, bias=bias)


def _relu(reader: _Reader, node: Any) -> None:
    behind = reader.real.get(node.input[0])
    if isinstance(behind, _Open):
        reader.real[node.output[0]] = replace(behind, relu=True)
    elif isinstance(behind, str) and behind in reader.numbers:
        # ReLU of numbers that were quantised before it: the next pair clips at the zero point.
        last = reader.layers[-1]
        reader.layers[-1] = replace(last, relu=True)
        reader.real[node.output[0]] = behind
    else:
        reader.refuse(node)


def _pool(reader: _Reader, node: Any) -> None:
    if node.op_type == "ReduceMean":
        axes = setting(node, "axes") or reader.value(node.input[1]).tolist()
        if sorted(axis % 4 for axis in axes) != [2, 3]:
            raise reader.failure("a mean that is no pooling", got=f"axes {list(axes)}")
    reader.source(node.input[0])
    reader.real[node.output[0]] = _Open("pool")


def _shape(reader: _Reader, node: Any) -> None:
    x, y = node.input[0], node.output[0]
    if x in reader.numbers:
        reader.numbers[y] = reader.numbers[x]
        _renamed(reader, x, y)
    else:
        reader.real[y] = reader.real[x]


def _renamed(reader: _Reader, before: str, after: str) -> None:
    """The numbers of a layer go on under another name, which is the one that is run for."""
    for name, tensor in reader.tensors.items():
        if tensor == before:
            reader.tensors[name] = after
    if reader.layers and reader.tensors.get(reader.layers[-1].name) == after:
        last = reader.layers[-1]
        name = _called(after, {k: v for k, v in reader.tensors.items() if k != last.name})
        if name != last.name and last.kind == "pool":
            del reader.tensors[last.name]
            reader.layers[-1] = replace(last, name=name)
            reader.tensors[name] = after


def _qlinear_conv(reader: _Reader, node: Any) -> None:
    x, xs, xz, w, ws, wz, ys, yz, *rest = node.input
    before, after = reader.quantization(xs, xz), reader.quantization(ys, yz)
    weight, scale = reader.signed(reader.value(w), reader.value(ws), reader.value(wz))
    bias = reader.bias(rest[0] if rest else "", len(weight), np.ones(()))
    layer = _Open("conv", weight, bias, scale, reader.conv_settings(node, weight))
    _require_same(reader, x, before)
    reader.close(layer, before, after, node.output[0])


def _qgemm(reader: _Reader, node: Any) -> None:
    x, xs, xz, w, ws, wz, b, ys, yz = node.input
    before, after = reader.quantization(xs, xz), reader.quantization(ys, yz)
    stored = reader.value(w)
    stored = stored if setting(node, "transB", 0) else stored.T
    weight, scale = reader.signed(stored, reader.value(ws), reader.value(wz))
    bias = reader.bias(b, len(weight), np.ones(()))
    _require_same(reader, x, before)
    reader.close(_Open("linear", weight, bias, scale), before, after, node.output[0])


def _qlinear_pool(reader: _Reader, node: Any) -> None:
    x, xs, xz, ys, yz = node.input
    before, after = reader.quantization(xs, xz), reader.quantization(ys, yz)
    _require_same(reader, x, before)
    reader.close(_Open("pool"), before, after, node.output[0])


def _max(reader: _Reader, node: Any) -> None:
    """ReLU on numbers: the larger of them and the zero point."""
    x, other = node.input
    last = reader.layers[-1]
    if x not in reader.numbers or reader.value(other).tolist() != last.output.zero_point.tolist():
        reader.refuse(node)
    reader.layers[-1] = replace(last, relu=True)
    reader.numbers[node.output[0]] = last.output
    del reader.tensors[last.name]
    name = _called(node.output[0], reader.tensors)
    reader.layers[-1] = replace(reader.layers[-1], name=name)
    reader.tensors[name] = node.output[0]


def _require_same(reader: _Reader, x: str, said: Quantization) -> None:
    made = reader.numbers.get(x)
    if made is None or (made.scale, made.zero_point) != (said.scale, said.zero_point):
        raise reader.failure("a layer takes its numbers for others", got=sanitize(x))


_HANDLERS: Mapping[str, Callable[[_Reader, Any], None]] = {
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _gemm,
    "Add": _add,
    "Relu": _relu,
    "GlobalAveragePool": _pool,
    "ReduceMean": _pool,
    "QLinearConv": _qlinear_conv,
    "QGemm": _qgemm,
    "QLinearGlobalAveragePool": _qlinear_pool,
    "Max": _max,
} | dict.fromkeys(_SHAPING, _shape)


def _called(tensor: str, taken: Mapping[str, str]) -> str:
    """A layer's name: its tensor's, without what exporters append."""
    name = tensor.strip("/")
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    name = sanitize(name) or "layer"
    return name if name not in taken else f"{name} {len(taken)}"
