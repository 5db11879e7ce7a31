"""An integer network as an ONNX file: operators on integers, or quantise-dequantise pairs.

"qlinear" spells every layer as the operator that ONNX Runtime has for it (QLinearConv; its own
QLinearGlobalAveragePool and QGemm). "qdq" puts DequantizeLinear and QuantizeLinear around float
operators, which its optimiser turns into the same. Both then compute "float-even", bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

import weights_io
from repvgg_ref.arrays import Array
from repvgg_ref.errors import ReportedError
from repvgg_ref.files.onnx import require_onnx
from repvgg_ref.integer.layers import IntegerLayer, Quantization
from repvgg_ref.integer.network import IntegerNetwork
from repvgg_ref.integer.schemes import ANY
from repvgg_ref.version import __version__

Style = Literal["qdq", "qlinear"]
STYLES: tuple[str, ...] = get_args(Style)
ROUNDING = "float-even"  # what ONNX's operators are defined to do
INPUT, LOGITS = "input", "logits"
_OPSET = 17
_CONTRIB = "com.microsoft"


def write_integer_onnx(
    path: str | Path,
    network: IntegerNetwork,
    *,
    style: Style = "qdq",
    size: tuple[int, int] | None = None,
) -> None:
    """Write `network`: real images in, real logits out; every layer's numbers under its name.

    Parameters
    ----------
    network : IntegerNetwork
        Rounding "float-even" or "any", and no multipliers of its own.
    style : {"qdq", "qlinear"}
    size : (height, width), optional
        Of the images; else open.

    Raises
    ------
    ReportedError
        If the network rounds as ONNX's operators do not.
    MissingExtraError
        If the onnx package is not installed.
    """
    if network.rounding not in (ROUNDING, ANY):
        raise ReportedError(
            "ONNX's operators round in one way",
            got=f"a network that rounds {network.rounding}",
            wanted=ROUNDING,
            advice="write .npz, or quantise with --rounding float-even",
        )
    for layer in network.layers:
        if layer.multiplier is not None:
            raise ReportedError(
                f"{layer.name} has a multiplier of its own, which ONNX has no place for",
                wanted="scales alone",
                advice="write .npz",
            )
    onnx = require_onnx()
    model = _model(network, style, size)
    with weights_io.atomic_path(path) as temporary:
        onnx.save_model(model, str(temporary), "protobuf")
        onnx.checker.check_model(str(temporary))


def _model(network: IntegerNetwork, style: Style, size: tuple[int, int] | None) -> Any:
    from onnx import TensorProto, helper

    graph = _Graph()
    graph.side("entry", network.layers[0].input)
    graph.add("QuantizeLinear", [INPUT, *graph.named("entry")], "entry")
    build = _qlinear if style == "qlinear" else _qdq
    last = "entry"
    for layer in network.layers:
        build(graph, layer, last)
        last = layer.name
    graph.add("DequantizeLinear", [last, *graph.named(last)], LOGITS)
    height, width = size or ("height", "width")
    head = [] if network.layers[-1].kind != "conv" else ["rows", "columns"]
    made = helper.make_graph(
        graph.nodes,
        "integer RepVGG",
        [
            helper.make_tensor_value_info(
                INPUT, TensorProto.FLOAT, ["batch", network.in_channels, height, width]
            )
        ],
        [
            helper.make_tensor_value_info(
                LOGITS, TensorProto.FLOAT, ["batch", network.out_channels, *head]
            )
        ],
        graph.initializers,
    )
    operators = [helper.make_opsetid("", _OPSET)]
    ir = helper.find_min_ir_version_for(operators)
    if any(node.domain for node in graph.nodes):
        operators.append(helper.make_opsetid(_CONTRIB, 1))
    return helper.make_model(
        made,
        opset_imports=operators,
        ir_version=ir,
        producer_name="repvgg-ref",
        producer_version=__version__,
    )


class _Graph:
    """Nodes and constants in the making."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """A node named after its only output, whose name is returned."""
        from onnx import helper

        domain = _CONTRIB if operator in ("QLinearGlobalAveragePool", "QGemm") else ""
        self.nodes.append(
            helper.make_node(operator, inputs, [output], output, domain=domain, **attributes)
        )
        return output

    def constant(self, name: str, array: Array) -> str:
        """An initializer."""
        from onnx import numpy_helper

        self.initializers.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    def side(self, tensor: str, quantization: Quantization) -> None:
        """The scale and zero point of a tensor."""
        self.constant(f"{tensor}.scale", quantization.scale)
        self.constant(f"{tensor}.zero_point", quantization.zero_point)

    @staticmethod
    def named(tensor: str) -> list[str]:
        """What `side` called them."""
        return [f"{tensor}.scale", f"{tensor}.zero_point"]


def _qlinear(graph: _Graph, layer: IntegerLayer, x: str) -> None:
    name = layer.name
    graph.side(name, layer.output)
    if layer.kind == "pool":
        sides = [*graph.named(x), *graph.named(name)]
        mean = graph.add("QLinearGlobalAveragePool", [x, *sides], f"{name}.mean", channels_last=0)
        graph.add("Flatten", [mean], name, axis=1)
        return
    weight, scale, zero, bias = _weights(graph, layer)
    y = f"{name}.sum" if _needs_max(layer) else name
    if layer.kind == "linear":
        inputs = [x, *graph.named(x), weight, scale, zero, bias, *graph.named(name)]
        graph.add("QGemm", inputs, y, transB=1)
    else:
        inputs = [x, *graph.named(x), weight, scale, zero, *graph.named(name), bias]
        graph.add("QLinearConv", inputs, y, **_geometry(layer))
    if _needs_max(layer):
        graph.add("Max", [y, graph.named(name)[1]], name)


def _qdq(graph: _Graph, layer: IntegerLayer, x: str) -> None:
    name = layer.name
    graph.side(name, layer.output)
    real = graph.add("DequantizeLinear", [x, *graph.named(x)], f"{name}.x")
    if layer.kind == "pool":
        mean = graph.add("GlobalAveragePool", [real], f"{name}.mean")
        numbers = graph.add("QuantizeLinear", [mean, *graph.named(name)], f"{name}.numbers")
        graph.add("Flatten", [numbers], name, axis=1)
        return
    weight, scale, zero, bias = _weights(graph, layer)
    axis = {"axis": 0} if layer.weight_scale is not None and layer.weight_scale.ndim else {}
    unit = graph.constant(f"{name}.bias_scale", layer.input.scale * layer.weight_scale)
    kernel = graph.add("DequantizeLinear", [weight, scale, zero], f"{weight}.real", **axis)
    offset = graph.add("DequantizeLinear", [bias, unit], f"{bias}.real", **axis)
    if layer.kind == "linear":
        y = graph.add("Gemm", [real, kernel, offset], f"{name}.y", transB=1)
    else:
        y = graph.add("Conv", [real, kernel, offset], f"{name}.y", **_geometry(layer))
    if layer.relu:
        y = graph.add("Relu", [y], f"{name}.relu")
    graph.add("QuantizeLinear", [y, *graph.named(name)], name)


def _weights(graph: _Graph, layer: IntegerLayer) -> Iterator[str]:
    """Names of the weights, their scale, their zero point (0) and the bias."""
    assert layer.weight is not None
    assert layer.bias is not None
    assert layer.weight_scale is not None
    zeros = np.zeros(layer.weight_scale.shape, np.int64)
    if layer.weight_zero_point is not None:
        zeros = zeros + layer.weight_zero_point
    across = zeros.reshape((-1,) + (1,) * (layer.weight.ndim - 1)) if zeros.ndim else zeros
    stored = layer.weight.astype(np.int64) + across
    yield graph.constant(f"{layer.name}.weight", stored.astype(np.int8))
    yield graph.constant(f"{layer.name}.weight_scale", layer.weight_scale)
    yield graph.constant(f"{layer.name}.weight_zero_point", zeros.astype(np.int8))
    yield graph.constant(f"{layer.name}.bias", layer.bias)


def _geometry(layer: IntegerLayer) -> dict[str, Any]:
    assert layer.weight is not None
    return {
        "kernel_shape": list(layer.weight.shape[2:]),
        "strides": [layer.stride] * 2,
        "pads": [layer.padding] * 4,
        "dilations": [layer.dilation] * 2,
        "group": layer.groups,
    }


def _needs_max(layer: IntegerLayer) -> bool:
    """Whether ReLU is more than saturation: the zero point is not the smallest number."""
    return layer.relu and int(layer.output.zero_point) != np.iinfo(layer.output.dtype).min
