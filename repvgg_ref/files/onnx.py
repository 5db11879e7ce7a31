"""The fused network as an ONNX file: one Conv for each block, wired as the network is.

What stands in the file goes through ONNX's own checker, strict shape inference included.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import weights_io
from repvgg_ref.arrays import Array
from repvgg_ref.blocks.catalogue import fused_conv
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.errors import CheckpointError, MissingExtraError, require_equal
from repvgg_ref.files.onnx_dense import dense_nodes, require_dense_opset
from repvgg_ref.models.arguments import require_reduced
from repvgg_ref.models.dense import AdaptiveAvgPool, ChannelDropout, Concat, ResizeAs, Zoom
from repvgg_ref.models.gated import Add, Dropout, Gate, Gelu, Silu
from repvgg_ref.models.graph import INPUT, Network
from repvgg_ref.models.layers import AddRelu, Block, Flatten, GlobalAvgPool, Linear, MaxPool
from repvgg_ref.models.names import official_names
from repvgg_ref.models.parameters import param_shapes
from repvgg_ref.version import __version__

OPSET = 17
# The first whose files may keep weights out of the graph's inputs (IR version 4).
OLDEST_OPSET = 9

_MOST_BYTES = 2**31 - 2**20  # protobuf's limit on one message, less the graph itself
_TYPES = {
    np.dtype(np.float16): "FLOAT16",
    np.dtype(np.float32): "FLOAT",
    np.dtype(np.float64): "DOUBLE",
}


def write_onnx(
    path: str | Path,
    arch: Network,
    params: Mapping[str, Array],
    *,
    metadata: Mapping[str, str],
    batch: int | None = None,
    size: int | tuple[int, int] | None = None,
    opset: int = OPSET,
) -> None:
    """Write the deploy form of `arch`; layer outputs are called ``stage0`` ... ``linear``.

    Parameters
    ----------
    path : str or Path
    arch : Network
    params : mapping
        Canonical deploy name -> array, all float16, all float32 or all float64; input and output
        have that type too. Initializers get the official names.
    metadata : mapping of str to str
        Becomes the file's ``metadata_props``.
    batch, size : int, or (height, width) for `size`; optional
        Fixed extents of the input; dynamic by default.
    opset : int
        Version of ONNX's operators, from `OLDEST_OPSET` to what the onnx package knows; the file's
        IR version is the oldest that has it, since newer ones shut out older runtimes.

    Raises
    ------
    MissingExtraError
        If the onnx package is not installed.
    ShapeError
        If an array is missing or superfluous, or not as `arch` wants it.
    CheckpointError
        If the arrays are of another type, or exceed ONNX's 2 GiB, or there is no such opset.
    """
    onnx = require_onnx()
    _require_opset(opset, onnx.defs.onnx_opset_version())
    require_dense_opset(arch, opset)
    shapes = param_shapes(arch, "deploy")
    dtype = _require_arrays(params, shapes)
    size = (size, size) if isinstance(size, int) else size
    if arch.is_dense and size is not None:
        require_reduced(arch, *size)
    graph = _graph(arch, _TYPES[dtype], batch, size, opset)
    for name, official in official_names(arch, "deploy").items():
        array = np.ascontiguousarray(params[name])
        graph.initializer.append(onnx.numpy_helper.from_array(array, official))
    with weights_io.atomic_path(path) as temporary:
        onnx.save_model(_model(arch, graph, metadata, opset), str(temporary), "protobuf")
        del graph
        onnx.checker.check_model(str(temporary), full_check=True)


def _require_opset(opset: int, newest: int) -> None:
    if opset is True or not isinstance(opset, int) or not OLDEST_OPSET <= opset <= newest:
        raise CheckpointError(
            "there is no such ONNX opset to write",
            got=repr(opset),
            wanted=f"{OLDEST_OPSET} to {newest}, what the installed onnx package knows",
        )


def _require_arrays(
    arrays: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]]
) -> np.dtype[Any]:
    """The common dtype of exactly the arrays that a network of these `shapes` has."""
    missing, spare = sorted(shapes.keys() - arrays.keys()), sorted(arrays.keys() - shapes.keys())
    require_equal("write_onnx", "missing arrays", missing, "none", [])
    require_equal("write_onnx", "superfluous arrays", spare, "none", [])
    dtype = next(iter(arrays.values())).dtype
    if dtype not in _TYPES:
        raise CheckpointError(
            "these weights cannot be written as ONNX",
            got=str(dtype),
            wanted="one of " + ", ".join(map(str, _TYPES)),
        )
    for name, array in arrays.items():
        require_equal("write_onnx", f"{name}.shape", array.shape, "its place", shapes[name])
        require_equal("write_onnx", f"{name}.dtype", array.dtype, "the others'", dtype)
    total = sum(array.nbytes for array in arrays.values())
    if total > _MOST_BYTES:
        raise CheckpointError(
            "the network is too large for an ONNX file",
            got=f"{total} bytes of weights",
            wanted=f"at most {_MOST_BYTES}",
            advice="write float32, or another format",
        )
    return dtype


def require_onnx() -> Any:
    """The package onnx with what is used of it, or `MissingExtraError`."""
    try:
        import onnx.checker
        import onnx.numpy_helper  # takes 0.2 s: only who writes ONNX should wait for it
    except ImportError:
        raise MissingExtraError(
            "writing ONNX needs the onnx package",
            got="it is not installed",
            wanted="the extra 'onnx'",
            advice='pip install "repvgg-ref[onnx]"',
        ) from None
    return onnx


def _graph(
    arch: Network, type_name: str, batch: int | None, size: tuple[int, int] | None, opset: int
) -> Any:
    from onnx import TensorProto, helper

    element = getattr(TensorProto, type_name)
    height, width = size or ("height", "width")
    images = [batch or "batch", arch.in_channels, height, width]
    logits = [batch or "batch", arch.num_classes or arch.features]
    if arch.is_dense:
        logits += [height, width]
    return helper.make_graph(
        list(_nodes(arch, element, opset)),
        arch.name,
        [helper.make_tensor_value_info(INPUT, element, images)],
        [helper.make_tensor_value_info(arch.head.name, element, logits)],
    )


def _nodes(arch: Network, element: int, opset: int) -> Iterator[Any]:
    names = official_names(arch, "deploy")
    for node in arch.evaluated:
        inputs, op = list(node.inputs), node.op
        if isinstance(op, Block):
            yield from _block_nodes(op.spec, inputs[0], names)
        elif isinstance(op, Linear):
            yield from _linear_nodes(node.name, op, inputs[0], names)
        elif isinstance(op, GlobalAvgPool):
            yield _node("GlobalAveragePool", inputs, f"{node.name}.mean")
            yield _node("Flatten", [f"{node.name}.mean"], node.name, axis=1)
        elif isinstance(op, Flatten):
            yield _node("Flatten", inputs, node.name, axis=1)
        elif isinstance(op, MaxPool):
            sizes = {"kernel_shape": [op.kernel] * 2, "strides": [op.stride] * 2}
            yield _node("MaxPool", inputs, node.name, **sizes, pads=[op.padding] * 4)
        elif isinstance(op, AddRelu):
            yield _node("Add", inputs, f"{node.name}.sum")
            yield _node("Relu", [f"{node.name}.sum"], node.name)
        elif isinstance(op, Silu):
            yield from _silu_nodes(node.name, inputs[0])
        elif isinstance(op, Gate):
            yield from _se_nodes(node.name, node.name, inputs[0], names, silu=not op.relu)
        elif isinstance(op, Gelu):
            yield from _gelu_nodes(node.name, inputs[0], element)
        elif isinstance(op, Add):
            yield _node("Add", inputs, node.name)
        elif isinstance(op, Dropout):
            yield _node("Identity", inputs, node.name)
        elif isinstance(op, AdaptiveAvgPool | ResizeAs | Zoom | Concat | ChannelDropout):
            yield from dense_nodes(node.name, op, inputs, _node, opset)
        else:
            raise CheckpointError(
                f"{node.name} has no ONNX form here",
                got=type(op).__name__,
                wanted="an operation of models.layers",
            )


def _linear_nodes(name: str, op: Linear, x: str, names: Mapping[str, str]) -> Iterator[Any]:
    y = f"{name}.sum" if op.relu else name
    arrays = [names[f"{name}.weight"], names[f"{name}.bias"]]
    yield _node("Gemm", [x, *arrays], y, alpha=1.0, beta=1.0, transA=0, transB=1)
    if op.relu:
        yield _node("Relu", [y], name)


def _block_nodes(spec: BlockSpec, x: str, names: Mapping[str, str]) -> Iterator[Any]:
    """Conv, then ReLU and SE in the block's order; the last output has the block's name."""
    block = spec.name
    conv = fused_conv(spec)
    geometry = {
        "kernel_shape": list(conv.kernel),
        "strides": list(conv.stride),
        "pads": [*conv.padding, *conv.padding],
        "dilations": list(conv.dilation),
        "group": conv.groups,
    }
    kernel = [names[f"{block}.fused.weight"], names[f"{block}.fused.bias"]]
    plain = spec.se == "none" and spec.activation == "none"
    yield _node("Conv", [x, *kernel], block if plain else f"{block}.conv", **geometry)
    if plain:
        return
    if spec.se == "none":
        yield _node("Relu", [f"{block}.conv"], block)
    elif spec.se == "before_relu":
        yield from _se_nodes(f"{block}.se", f"{block}.scaled", f"{block}.conv", names)
        yield _node("Relu", [f"{block}.scaled"], block)
    else:
        yield _node("Relu", [f"{block}.conv"], f"{block}.relu")
        yield from _se_nodes(f"{block}.se", block, f"{block}.relu", names)


def _silu_nodes(name: str, x: str) -> Iterator[Any]:
    yield _node("Sigmoid", [x], f"{name}.sigmoid")
    yield _node("Mul", [x, f"{name}.sigmoid"], name)


def _gelu_nodes(name: str, x: str, element: int) -> Iterator[Any]:
    """``x / 2 (1 + erf(x / sqrt 2))``, for opsets that have no Gelu."""
    from onnx import helper

    numbers = {"root": 2**0.5, "one": 1.0, "half": 0.5}
    for called, number in numbers.items():
        value = helper.make_tensor(f"{name}.{called}", element, [], [number])
        yield _node("Constant", [], f"{name}.{called}", value=value)
    yield _node("Div", [x, f"{name}.root"], f"{name}.scaled")
    yield _node("Erf", [f"{name}.scaled"], f"{name}.erf")
    yield _node("Add", [f"{name}.erf", f"{name}.one"], f"{name}.shifted")
    yield _node("Mul", [x, f"{name}.shifted"], f"{name}.twice")
    yield _node("Mul", [f"{name}.twice", f"{name}.half"], name)


def _se_nodes(
    se: str, y: str, x: str, names: Mapping[str, str], *, silu: bool = False
) -> Iterator[Any]:
    """``y = x * sigmoid(up(relu(down(mean of x over height and width))))``, or with SiLU."""
    point = {
        "kernel_shape": [1, 1],
        "strides": [1, 1],
        "pads": [0, 0, 0, 0],
        "dilations": [1, 1],
        "group": 1,
    }
    down, up = (
        [names[f"{se}.{layer}.{p}"] for p in ("weight", "bias")] for layer in ("down", "up")
    )
    yield _node("GlobalAveragePool", [x], f"{se}.pool")
    yield _node("Conv", [f"{se}.pool", *down], f"{se}.down", **point)
    active = f"{se}.silu" if silu else f"{se}.relu"
    if silu:
        yield from _silu_nodes(active, f"{se}.down")
    else:
        yield _node("Relu", [f"{se}.down"], active)
    yield _node("Conv", [active, *up], f"{se}.up", **point)
    yield _node("Sigmoid", [f"{se}.up"], f"{se}.gate")
    yield _node("Mul", [x, f"{se}.gate"], y)


def _node(operator: str, inputs: list[str], output: str, **attributes: Any) -> Any:
    """A node named after its only output."""
    from onnx import helper

    return helper.make_node(operator, inputs, [output], output, **attributes)


def _model(arch: Network, graph: Any, metadata: Mapping[str, str], opset: int) -> Any:
    from onnx import helper

    operators = [helper.make_opsetid("", opset)]
    model = helper.make_model(
        graph,
        opset_imports=operators,
        ir_version=helper.find_min_ir_version_for(operators),
        producer_name="repvgg-ref",
        producer_version=__version__,
        doc_string=f"{arch.name} in deploy form (RepVGG, arXiv 2101.03697): every block is one "
        "convolution, fused exactly from its training-time branches.",
    )
    helper.set_model_props(model, dict(metadata))
    return model
