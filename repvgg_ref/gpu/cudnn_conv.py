"""Convolutions by cuDNN's graphs, through the `nvidia-cudnn-frontend` package; NHWC.

CuPy 14 has no cuDNN of its own. A graph is built once for each (kind, sizes, dtype, arithmetic) and
kept; running it passes pointers only, on the current stream, so it can be captured in a CUDA graph.

cuDNN names images (N, C, H, W) and kernels (O, C/G, Kh, Kw) whatever their order in memory, which
the strides tell: here the channels are innermost in both.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import cudnn
import cupy

from repvgg_ref.arrays import Array
from repvgg_ref.gpu.geometry import Geometry
from repvgg_ref.gpu.math_mode import Math
from repvgg_ref.gpu.memory import Workspace

Kind = Literal["forward", "forward_bias", "forward_bias_relu", "grad_x", "grad_weight"]


_DATA_TYPES = {
    "float32": cudnn.data_type.FLOAT,
    "float16": cudnn.data_type.HALF,
    "bfloat16": cudnn.data_type.BFLOAT16,
}
HEURISTICS = [cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK]


class GraphKey(NamedTuple):
    """What a graph is built for."""

    kind: Kind
    geometry: Geometry
    dtype: str


class Plan(NamedTuple):
    """A built graph, its operands in the order in which `run` takes arrays, bytes of workspace."""

    graph: Any
    operands: tuple[Any, ...]
    workspace: int


class CudnnConvolutions:
    """`gpu.conv2d.Convolution` by the graphs built so far, for one arithmetic.

    Parameters
    ----------
    math : "fp32" refuses plans that use matrix units, Winograd or FFT, so that the error of a
        direct convolution holds; "tf32" leaves the choice to cuDNN.
    deterministic : bool
        Refuse plans whose sums depend on the order in which blocks finish.
    """

    def __init__(self, math: Math, *, deterministic: bool) -> None:
        self._math, self._deterministic = math, deterministic
        self._plans: dict[GraphKey, Plan | None] = {}
        self._handle = cudnn.create_handle()
        self.workspace = Workspace()

    def plan(self, kind: Kind, geometry: Geometry, dtype: Any) -> Plan | None:
        """The plan for this case, or None where cuDNN has none that the arithmetic allows."""
        key = GraphKey(kind, geometry, str(dtype))
        if key.dtype not in _DATA_TYPES:  # float64 is for tests
            return None
        if key not in self._plans:
            try:
                self._plans[key] = self._build(key)
            except cudnn.cudnnGraphNotSupportedError:
                self._plans[key] = None
        return self._plans[key]

    def run(self, plan: Plan, *arrays: Array) -> None:
        """Enqueue `plan` on the current stream: its inputs and, last, its output; contiguous."""
        stream = cupy.cuda.get_current_stream()
        cudnn.set_stream(self._handle, stream.ptr)
        operands = zip(plan.operands, arrays, strict=True)
        plan.graph.execute(
            {tensor: _pointer(array) for tensor, array in operands},
            self.workspace.pointer(plan.workspace, stream.ptr),
            handle=self._handle,
        )

    def forward(
        self, x: Array, kernels: Array, bias: Array | None, sizes: Geometry, y: Array, *, relu: bool
    ) -> bool:
        """Fill y (N, Ho, Wo, O) with ``[relu](conv2d(x) + bias)``; False without a plan."""
        kind: Kind = "forward" if bias is None else "forward_bias"
        if relu:
            kind = "forward_bias_relu"
            bias = cupy.zeros(sizes.outputs, x.dtype) if bias is None else bias
        inputs = (x, kernels) if bias is None else (x, kernels, bias)
        return self._do(kind, sizes, *inputs, y)

    def grad_x(self, grad_y: Array, kernels: Array, sizes: Geometry, grad_x: Array) -> bool:
        """Fill grad_x (N, H, W, C)."""
        return self._do("grad_x", sizes, grad_y, kernels, grad_x)

    def grad_weight(self, x: Array, grad_y: Array, sizes: Geometry, grad: Array) -> bool:
        """Fill grad (O, Kh, Kw, C/G)."""
        return self._do("grad_weight", sizes, x, grad_y, grad)

    def _do(self, kind: Kind, sizes: Geometry, *arrays: Array) -> bool:
        plan = self.plan(kind, sizes, arrays[0].dtype)
        if plan is not None:
            self.run(plan, *arrays)
        return plan is not None

    def unsupported(self) -> list[GraphKey]:
        """The cases that cuDNN had no plan for; they run as matrix products."""
        return [key for key, plan in self._plans.items() if plan is None]

    def _build(self, key: GraphKey) -> Plan:
        graph, operands = make_graph(
            key, self._math, deterministic=self._deterministic, handle=self._handle
        )
        graph.build(HEURISTICS)
        return Plan(graph, operands, int(graph.get_workspace_size()))


def make_graph(
    key: GraphKey, math: Math, *, deterministic: bool, **where: Any
) -> tuple[Any, tuple[Any, ...]]:
    """The graph of `key`, not built yet, and its operands.

    `where` is the ``handle``, or a ``device_property`` that stands for a device that is not here.
    """
    graph = cudnn.pygraph(
        name=key.kind,
        io_data_type=_DATA_TYPES[key.dtype],
        intermediate_data_type=cudnn.data_type.FLOAT,
        compute_data_type=cudnn.data_type.FLOAT,
        **where,
    )
    operands = describe(graph, key.kind, key.geometry)
    graph.deselect_numeric_notes(refused_notes(math, deterministic=deterministic))
    return graph, operands


def describe(graph: Any, kind: Kind, geometry: Geometry) -> tuple[Any, ...]:
    """Put the operation into `graph`; return its tensors, inputs first and the output last.

    ``forward*``: x, weight[, bias], y. ``grad_x``: grad_y, weight, grad_x.
    ``grad_weight``: x, grad_y, grad_weight.
    """
    settings = {
        name: list(value)
        for name, value in (
            ("padding", geometry.padding),
            ("stride", geometry.stride),
            ("dilation", geometry.dilation),
        )
    }
    if kind == "grad_x":
        grad_y = _images(graph, "grad_y", geometry.y_shape)
        weight = _kernels(graph, geometry)
        grad_x = graph.conv_dgrad(loss=grad_y, filter=weight, **settings)
        return grad_y, weight, _output(grad_x, *_nchw(geometry.x_shape))
    x = _images(graph, "x", geometry.x_shape)
    if kind == "grad_weight":
        grad_y = _images(graph, "grad_y", geometry.y_shape)
        grad_weight = graph.conv_wgrad(image=x, loss=grad_y, **settings)
        return x, grad_y, _output(grad_weight, *_channels_last(geometry.weight_shape))
    weight = _kernels(graph, geometry)
    y = graph.conv_fprop(image=x, weight=weight, **settings)
    if kind == "forward":
        return x, weight, _output(y, *_nchw(geometry.y_shape))
    outputs = geometry.outputs
    bias = graph.tensor(name="bias", dim=[1, outputs, 1, 1], stride=[outputs, 1, outputs, outputs])
    y = graph.bias(input=y, bias=bias)
    y = graph.relu(input=y) if kind == "forward_bias_relu" else y
    return x, weight, bias, _output(y, *_nchw(geometry.y_shape))


def refused_notes(math: Math, *, deterministic: bool) -> list[Any]:
    """What a plan must not do."""
    notes = cudnn.numerical_note
    refused = [notes.NONDETERMINISTIC] if deterministic else []
    if math == "fp32":
        refused += [notes.TENSOR_CORE, notes.DOWN_CONVERT_INPUTS, notes.FFT, notes.WINOGRAD]
    return [*refused, notes.REDUCED_PRECISION_REDUCTION]


def _pointer(array: Any) -> int:
    return int(array.data.ptr)


def _images(graph: Any, name: str, shape: tuple[int, int, int, int]) -> Any:
    dim, stride = _nchw(shape)
    return graph.tensor(name=name, dim=dim, stride=stride)


def _kernels(graph: Any, geometry: Geometry) -> Any:
    dim, stride = _channels_last(geometry.weight_shape)
    return graph.tensor(name="weight", dim=dim, stride=stride)


def _output(tensor: Any, dim: list[int], stride: list[int]) -> Any:
    tensor.set_output(True).set_dim(dim).set_stride(stride)
    return tensor


def _nchw(shape: tuple[int, int, int, int]) -> tuple[list[int], list[int]]:
    """Sizes and strides, in elements, of an array (N, H, W, C) as cuDNN names them."""
    images, height, width, channels = shape
    return _channels_last((images, channels, height, width))


def _channels_last(dim: tuple[int, int, int, int]) -> tuple[list[int], list[int]]:
    _, channels, height, width = dim
    return list(dim), [height * width * channels, 1, width * channels, channels]
