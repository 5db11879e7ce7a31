"""Attributes of quantised operators: which are understood, and with which values.

A setting that a reader passes over is a wrong verdict in waiting, so each operator lists what it
knows. Whatever else a node states is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from repvgg_ref.files.onnx_graph.constants import setting
from weights_io import sanitize

ONNX = frozenset({"", "ai.onnx"})
MICROSOFT = frozenset({"com.microsoft"})
_FLOAT, _UINT8, _INT8 = 1, 2, 3  # TensorProto.DataType
_Accepts = Callable[[Any], bool]


def _anything(value: Any) -> bool:
    """Read elsewhere, or without a meaning here."""
    return True


def _is(*wanted: Any) -> _Accepts:
    return lambda value: value in wanted


# `axis` is read where scales are: a single scale has none. `saturate` is about 8-bit floats.
_QUANTIZE: dict[str, _Accepts] = {
    "axis": _anything,
    "saturate": _anything,
    "block_size": _is(0),
    "output_dtype": _is(0, _UINT8, _INT8),
    "precision": _is(0, _FLOAT),
}
_DEQUANTIZE: dict[str, _Accepts] = {
    "axis": _anything,
    "block_size": _is(0),
    "output_dtype": _is(0, _FLOAT),
}
_CONV: dict[str, _Accepts] = dict.fromkeys(
    ("kernel_shape", "strides", "pads", "dilations", "group", "auto_pad"), _anything
)
_POOL: dict[str, _Accepts] = {
    **dict.fromkeys(("kernel_shape", "strides", "pads", "dilations", "auto_pad"), _anything),
    "ceil_mode": _anything,  # one window fits either way
    "count_include_pad": _anything,  # there is no padding
    "channels_last": _is(0),
}
_KNOWN: Mapping[str, tuple[frozenset[str], Mapping[str, _Accepts]]] = {
    "QuantizeLinear": (ONNX | MICROSOFT, _QUANTIZE),
    "DequantizeLinear": (ONNX | MICROSOFT, _DEQUANTIZE),
    "Conv": (ONNX, _CONV),
    "QLinearConv": (ONNX, _CONV),
    "Gemm": (
        ONNX,
        {"alpha": _is(1.0), "beta": _is(1.0), "transA": _is(0), "transB": _is(0, 1)},
    ),
    "QGemm": (MICROSOFT, {"alpha": _is(1.0), "transA": _is(0), "transB": _is(0, 1)}),
    "MatMul": (ONNX, {}),
    "QLinearMatMul": (ONNX, {}),
    "Add": (ONNX, {}),
    "QLinearAdd": (MICROSOFT, {}),
    "Relu": (ONNX, {}),
    "Clip": (ONNX, {"min": _anything, "max": _anything}),
    "Max": (ONNX, {}),
    "GlobalAveragePool": (ONNX, {}),
    "AveragePool": (ONNX, _POOL),
    "QLinearAveragePool": (MICROSOFT, _POOL),
    "QLinearGlobalAveragePool": (MICROSOFT, {"channels_last": _is(0)}),
    "ReduceMean": (
        ONNX,
        dict.fromkeys(("axes", "keepdims", "noop_with_empty_axes"), _anything),
    ),
    "Identity": (ONNX, {}),
    "Dropout": (ONNX, {"ratio": _anything, "seed": _anything}),
    "Flatten": (ONNX, {"axis": _anything}),
    "Reshape": (ONNX, {"allowzero": _anything}),
    "Squeeze": (ONNX, {"axes": _anything}),
    "Unsqueeze": (ONNX, {"axes": _anything}),
}


# Inputs that each must have; the rest is a bias, or a zero point that may be left out.
_NEEDED: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear", "Conv", "Gemm"), (0, 1)),
    **dict.fromkeys(("MatMul", "Add", "Max", "Reshape"), (0, 1)),
    "QLinearConv": tuple(range(8)),
    "QLinearMatMul": tuple(range(8)),
    "QGemm": (0, 1, 2, 3, 4, 5, 7, 8),
    "QLinearAdd": (0, 1, 3, 4, 6),
    **dict.fromkeys(("QLinearGlobalAveragePool", "QLinearAveragePool"), tuple(range(5))),
}


def not_understood(node: Any) -> str:
    """What of a node no rule here understands, in words; "" if all is."""
    known = _KNOWN.get(node.op_type)
    if known is None:
        return called(node)
    domains, accepts = known
    if node.domain not in domains:
        return f"{called(node)} of the domain {sanitize(node.domain) or 'ai.onnx'}"
    for attribute in node.attribute:
        value = setting(node, attribute.name)
        if attribute.name == "beta" and node.op_type == "Gemm" and not _has_bias(node):
            continue  # there is nothing that it could multiply
        if not accepts.get(attribute.name, _is())(value):
            return f"{called(node)} with {sanitize(attribute.name)} = {_short(value)}"
    return ""


def _has_bias(node: Any) -> bool:
    return len(node.input) > 2 and bool(node.input[2])


def lacks_input(node: Any) -> str:
    """Which input a node needs and has not, in words; "" if it has all."""
    for place in _NEEDED.get(node.op_type, (0,)):
        if len(node.input) <= place or not node.input[place]:
            return f"{called(node)}: has no input {place}"
    return ""


def called(node: Any) -> str:
    """An operator and its name, for messages."""
    return f"{sanitize(node.op_type)} {sanitize(node.name)}".strip()


def _short(value: Any) -> str:
    text = sanitize(f"{value:g}" if isinstance(value, float) else str(value))
    return text if len(text) < 40 else f"{text[:37]}..."
