"""The fused network on the device: a plain chain of convolutions with bias and ReLU.

Packed kernels are kept, activations alternate between two buffers (the paper's section 3.1), and
small batches, where launching costs more than computing, run as one CUDA graph. A graph needs
cuDNN for every layer: CuPy's calls of cuBLAS cannot be captured, so the linear layer stays outside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import cupy

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.block import SE_FIELDS
from repvgg_ref.gpu import kernels
from repvgg_ref.gpu.conv2d import Convolutions
from repvgg_ref.gpu.geometry import Geometry, geometry
from repvgg_ref.gpu.kernels.launch import real_dtype
from repvgg_ref.gpu.layers import Head
from repvgg_ref.gpu.memory import advises_on_memory

KEPT_PLANS = 4
GRAPH_BATCH = 32  # images; above it computing hides the launches

Keep = Callable[[str, Array], None]


class Layer(NamedTuple):
    """One block: its kernels (O, Kh, Kw, C/G), bias (O,), sizes, and the weights of SE, if any."""

    name: str
    kernels: Array
    bias: Array
    sizes: Geometry
    se: str
    se_weights: tuple[Array, ...]
    y: Array  # the buffer that it writes to


class Chain:
    """Evaluates the fused chain of `blocks` for any batch; keeps the last few plans.

    Parameters
    ----------
    blocks : sequence of BlockSpec
    params : mapping
        The deploy form's arrays on the device, under their canonical names.
    """

    def __init__(
        self,
        blocks: Sequence[Any],
        params: Mapping[str, Array],
        *,
        convolutions: Convolutions,
        head: Head,
        graphs: bool = True,
    ) -> None:
        self._blocks, self._params = blocks, params
        self._convolutions, self._head, self._graphs = convolutions, head, graphs
        self._packed: dict[tuple[str, str], tuple[Array, Array]] = {}
        self._plans: dict[tuple[Any, ...], Plan] = {}

    @advises_on_memory
    def forward(self, x: Array) -> Array:
        """Logits (N, classes) in float32 of x (N, C, H, W), both on the device."""
        return self._logits(self._plan(x).run(x))

    @advises_on_memory
    def layers(self, x: Array) -> dict[str, Array]:
        """Every layer's output, NCHW, and the logits as "linear"."""
        found: dict[str, Array] = {}

        def keep(name: str, y: Array) -> None:
            found[name] = cupy.ascontiguousarray(y.transpose(0, 3, 1, 2))

        pooled = self._plan(x).run(x, keep)
        return {**found, "linear": self._logits(pooled)}

    def _logits(self, pooled: Array) -> Array:
        weight, bias = self._params["linear.weight"], self._params["linear.bias"]
        return self._head.linear_forward(pooled, weight, bias)[0]

    def _plan(self, x: Array) -> Plan:
        dtype = self._convolutions.dtype_of(x)
        key = (x.shape, dtype)
        if key not in self._plans:
            while len(self._plans) >= KEPT_PLANS:
                del self._plans[next(iter(self._plans))]
            self._plans[key] = self._make_plan(x.shape, dtype)
        return self._plans[key]

    def _make_plan(self, shape: tuple[int, ...], dtype: Any) -> Plan:
        images, channels, height, width = shape
        x = cupy.empty((images, height, width, channels), dtype)
        sizes = self._sizes(x.shape)
        longest = max(math.prod(each.y_shape) for each in sizes)
        buffers = [cupy.empty(longest, dtype) for _ in range(2)]
        layers = []
        for number, (spec, each) in enumerate(zip(self._blocks, sizes, strict=True)):
            y = buffers[number % 2][: math.prod(each.y_shape)].reshape(each.y_shape)
            weight, bias = self._pack(spec.name, dtype)
            fields = SE_FIELDS if spec.se != "none" else ()
            se = [self._params[f"{spec.name}.se.{field}"] for field in fields]
            layers.append(Layer(spec.name, weight, bias, each, spec.se, tuple(se), y))
        cudnn = self._convolutions.cudnn
        capture = (
            self._graphs
            and cudnn is not None
            and images <= GRAPH_BATCH
            and all(layer.se == "none" for layer in layers)
            and all(cudnn.plan("forward_bias_relu", each, dtype) is not None for each in sizes)
        )
        return Plan(x, layers, self._convolutions, self._head, capture=capture)

    def _sizes(self, shape: tuple[int, ...]) -> list[Geometry]:
        """Of every block's convolution, from images of `shape` on."""
        found = []
        for spec in self._blocks:
            weight = self._params[f"{spec.name}.fused.weight"]
            settings = {"stride": spec.stride, "padding": spec.dilation, "dilation": spec.dilation}
            found.append(geometry(shape, weight.shape, groups=spec.groups, **settings))
            shape = found[-1].y_shape
        return found

    def _pack(self, name: str, dtype: Any) -> tuple[Array, Array]:
        key = name, str(dtype)
        if key not in self._packed:
            weight = self._convolutions.pack(self._params[f"{name}.fused.weight"], dtype)
            bias = cupy.ascontiguousarray(self._params[f"{name}.fused.bias"], dtype=dtype)
            self._packed[key] = weight, bias
        return self._packed[key]


class Plan:
    """The chain for one batch shape: its buffers, and its CUDA graph once it has one."""

    def __init__(
        self,
        x: Array,
        layers: Sequence[Layer],
        convolutions: Convolutions,
        head: Head,
        *,
        capture: bool,
    ) -> None:
        self._x, self._layers = x, layers
        self._convolutions, self._head = convolutions, head
        self._pooled: Array = cupy.empty((len(x), layers[-1].sizes.outputs), real_dtype(x.dtype))
        self._capture = capture
        self._graph: Any = None
        self._held: list[Any] = []

    @property
    def is_graph(self) -> bool:
        """Whether batches run as one CUDA graph."""
        return self._graph is not None

    def run(self, x: Array, keep: Keep | None = None) -> Array:
        """Pooled features (N, O) of x (N, C, H, W); valid until the next run."""
        self._x[...] = x.transpose(0, 2, 3, 1)
        if keep is not None or not self._capture:
            self._enqueue(keep)
            return self._pooled
        if self._graph is None:
            self._record()
        self._graph.launch(cupy.cuda.get_current_stream())
        return self._pooled

    def _record(self) -> None:
        """Capture the chain on a stream of its own, after a run that builds what it needs."""
        stream = cupy.cuda.Stream(non_blocking=True)
        ready = cupy.cuda.get_current_stream().record()
        stream.wait_event(ready)
        with stream:
            self._enqueue(None)
            stream.begin_capture()
            try:
                self._enqueue(None)
            finally:
                self._graph = stream.end_capture()
        self._held = self._convolutions.cudnn.workspace.held()
        cupy.cuda.get_current_stream().wait_event(stream.record())

    def _enqueue(self, keep: Keep | None) -> None:
        y = self._x
        for layer in self._layers:
            y = self._convolutions.convolve(
                y, layer.kernels, layer.bias, layer.sizes, relu=layer.se == "none", out=layer.y
            )
            if layer.se != "none":
                y = self._activate(y, layer)
            if keep is not None:
                keep(layer.name, y)
        kernels.spatial_sums(y, mean=True, out=self._pooled)

    def _activate(self, y: Array, layer: Layer) -> Array:
        """SE and ReLU in the model's order, in place where that is possible."""
        if layer.se == "after_relu":
            y = kernels.bias_relu(y, None)
        y, _ = self._head.squeeze_excitation_forward(y, *layer.se_weights)
        return kernels.bias_relu(y, None) if layer.se == "before_relu" else y
