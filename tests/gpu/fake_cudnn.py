"""A cuDNN frontend that checks every call and computes with the reference's convolution.

It follows the pointers that it is given, by the sizes and strides that the graph was told, so a
wrong stride reads wrong numbers here as it would on a device. `tests/gpu/test_fake_cudnn.py` holds
its names and its calls against the installed frontend.
"""

from __future__ import annotations

import ctypes
import enum
import math
from types import ModuleType
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.gpu.math_mode import bfloat16
from repvgg_ref.ops import REFERENCE
from tests.gpu.fake_cupy.ledger import LEDGER

WORKSPACE = 4096


class cudnnGraphNotSupportedError(RuntimeError):  # noqa: N801 - cuDNN's own name
    """No plan for this graph."""


class data_type(enum.Enum):  # noqa: N801 - cuDNN's own name
    """The types used here."""

    FLOAT = "float32"
    HALF = "float16"
    BFLOAT16 = "bfloat16"


class numerical_note(enum.Enum):  # noqa: N801 - cuDNN's own name
    """What a plan may be refused for."""

    TENSOR_CORE = 1
    DOWN_CONVERT_INPUTS = 2
    REDUCED_PRECISION_REDUCTION = 3
    FFT = 4
    NONDETERMINISTIC = 5
    WINOGRAD = 6


class heur_mode(enum.Enum):  # noqa: N801 - cuDNN's own name
    """Where plans come from."""

    A = 0
    FALLBACK = 2


class Handle:
    """A handle, and the stream it was told."""

    stream: int | None = None


class Tensor:
    """Sizes and strides of one operand."""

    def __init__(self, name: str, dim: list[int] | None, stride: list[int] | None) -> None:
        self.name, self.dim, self.stride, self.is_output = name, dim, stride, False

    def set_output(self, value: bool) -> Tensor:
        self.is_output = value
        return self

    def set_dim(self, dim: list[int]) -> Tensor:
        if self.dim is not None and self.dim != list(dim):
            raise AssertionError(f"{self.name}: the graph infers {self.dim}, told {dim}")
        self.dim = list(dim)
        return self

    def set_stride(self, stride: list[int]) -> Tensor:
        self.stride = list(stride)
        return self


class pygraph:  # noqa: N801 - cuDNN's own name
    """One operation, with bias and ReLU behind a forward one."""

    def __init__(
        self,
        *,
        name: str,
        io_data_type: data_type,
        intermediate_data_type: data_type,
        compute_data_type: data_type,
        handle: Handle,
    ) -> None:
        assert isinstance(handle, Handle)
        assert intermediate_data_type is compute_data_type is data_type.FLOAT
        self._dtype, self._handle = io_data_type, handle
        self._operation: tuple[str, Tensor, Tensor, dict[str, Any]] | None = None
        self._bias: Tensor | None = None
        self._relu = self._built = False
        self.refused: list[numerical_note] = []
        self._last: Tensor | None = None

    def tensor(self, *, name: str, dim: list[int], stride: list[int]) -> Tensor:
        assert len(dim) == len(stride) == 4
        return Tensor(name, dim, stride)

    def conv_fprop(self, *, image: Tensor, weight: Tensor, **settings: list[int]) -> Tensor:
        assert image.dim is not None
        assert weight.dim is not None
        size = [
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, p, s, d in zip(
                image.dim[2:],
                weight.dim[2:],
                settings["padding"],
                settings["stride"],
                settings["dilation"],
                strict=True,
            )
        ]
        y = Tensor("y", [image.dim[0], weight.dim[0], *size], None)
        return self._add("forward", image, weight, settings, y)

    def conv_dgrad(self, *, loss: Tensor, filter: Tensor, **settings: list[int]) -> Tensor:
        return self._add("grad_x", loss, filter, settings, Tensor("grad_x", None, None))

    def conv_wgrad(self, *, image: Tensor, loss: Tensor, **settings: list[int]) -> Tensor:
        return self._add("grad_weight", image, loss, settings, Tensor("grad_weight", None, None))

    def bias(self, *, input: Tensor, bias: Tensor) -> Tensor:
        assert input is self._last
        assert input.dim is not None
        assert bias.dim is not None
        assert bias.dim == [1, input.dim[1], 1, 1]
        self._bias = bias
        return self._pointwise(input)

    def relu(self, *, input: Tensor) -> Tensor:
        assert input is self._last
        self._relu = True
        return self._pointwise(input)

    def deselect_numeric_notes(self, notes: list[numerical_note]) -> pygraph:
        assert not self._built, "a plan was chosen already"
        self.refused += notes
        return self

    def build(self, heuristics: list[heur_mode]) -> None:
        assert heuristics == [heur_mode.A, heur_mode.FALLBACK]
        assert self._operation is not None
        assert self._last is not None
        assert self._last.is_output, "the output is not named"
        for tensor in (*self._operation[1:3], self._last):
            assert tensor.dim is not None
            assert tensor.stride is not None
            if tensor.stride[1] != 1:
                raise cudnnGraphNotSupportedError(f"{tensor.name}: channels are not innermost")
        self._built = True

    def get_workspace_size(self) -> int:
        assert self._built
        return WORKSPACE

    def execute(self, tensors: dict[Tensor, int], workspace: int, *, handle: Handle) -> None:
        from tests.gpu.fake_cupy.module import Stream

        assert self._built
        assert self._operation is not None
        assert self._last is not None
        assert handle is self._handle
        assert workspace
        assert handle.stream == Stream.null.ptr
        kind, first, second, settings = self._operation
        given = {first, second, self._last} | ({self._bias} if self._bias else set())
        assert set(tensors) == given, "operands are missing, or too many"
        assert all(type(pointer) is int and pointer for pointer in tensors.values())

        def compute() -> None:
            a, b = (self._read(tensors[t], t) for t in (first, second))
            assert self._last is not None
            assert self._last.dim is not None
            y = _convolution(kind, a, b, settings, self._last.dim)
            if self._bias is not None:
                y = y + self._read(tensors[self._bias], self._bias)
            y = np.maximum(y, 0) if self._relu else y
            with np.errstate(over="ignore"):
                self._view(tensors[self._last], self._last)[...] = y

        LEDGER.launch(f"cudnn {kind}", compute)

    def _add(
        self, kind: str, a: Tensor, b: Tensor, settings: dict[str, list[int]], y: Tensor
    ) -> Tensor:
        assert set(settings) == {"padding", "stride", "dilation"}
        assert all(type(n) is int for pair in settings.values() for n in pair)
        self._operation, self._last = (kind, a, b, settings), y
        return y

    def _pointwise(self, tensor: Tensor) -> Tensor:
        self._last = Tensor("y", tensor.dim, None)
        return self._last

    def _view(self, pointer: int, tensor: Tensor) -> Array:
        """The array at `pointer`, as NCHW in its own strides."""
        assert tensor.dim is not None
        assert tensor.stride is not None
        dtype = _numpy_dtype(self._dtype)
        last = sum((n - 1) * step for n, step in zip(tensor.dim, tensor.stride, strict=True))
        assert last + 1 == math.prod(tensor.dim), "the strides leave gaps or overlap"
        memory: Any = (ctypes.c_uint8 * ((last + 1) * dtype.itemsize)).from_address(pointer)
        return np.lib.stride_tricks.as_strided(
            np.frombuffer(memory, dtype),
            tensor.dim,
            [step * dtype.itemsize for step in tensor.stride],
        )

    def _read(self, pointer: int, tensor: Tensor) -> Array:
        wide: Array = self._view(pointer, tensor).astype(np.float64)
        return wide


def _convolution(kind: str, a: Array, b: Array, settings: dict[str, Any], dim: list[int]) -> Array:
    """In float64 with the reference; gradients from the adjoint of a forward pass."""
    pairs: dict[str, Any] = {name: tuple(pair) for name, pair in settings.items()}
    if kind == "forward":
        groups = a.shape[1] // b.shape[1]
        return REFERENCE.conv2d_forward(a, b, None, groups=groups, **pairs)[0]
    x = np.zeros(dim) if kind == "grad_x" else a
    weight = b if kind == "grad_x" else np.zeros(dim)
    grad_y = a if kind == "grad_x" else b
    _, cache = REFERENCE.conv2d_forward(
        x, weight, None, groups=x.shape[1] // weight.shape[1], **pairs
    )
    grads = REFERENCE.conv2d_backward(grad_y, cache)
    return grads.grad_x if kind == "grad_x" else grads.grad_weight


def _numpy_dtype(kind: data_type) -> np.dtype[Any]:
    if kind is data_type.BFLOAT16:
        return bfloat16()
    return np.dtype(str(kind.value))


def _set_stream(handle: Handle, stream: int) -> None:
    handle.stream = stream


def make_cudnn() -> ModuleType:
    """A new module `cudnn` of the fake."""
    module: Any = ModuleType("cudnn")
    module.__spec__ = __spec__
    module.backend_version = lambda: 91002
    module.create_handle = Handle
    module.set_stream = _set_stream
    for each in (cudnnGraphNotSupportedError, data_type, numerical_note, heur_mode, pygraph):
        setattr(module, each.__name__, each)
    made: ModuleType = module
    return made
