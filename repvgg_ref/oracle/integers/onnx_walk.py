"""What is known on the way through a quantised graph: numbers, real tensors, layers still open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.integer.layers import IntegerLayer, Kind, Quantization
from repvgg_ref.oracle.integers.onnx_arrays import QuantisedArrays, StatedBias
from repvgg_ref.oracle.integers.onnx_shapes import Shape
from weights_io import sanitize

IGNORED = (
    "its bias has a scale that is not input_scale * weight_scale, which ONNX Runtime heeds only "
    "where it does not fuse the layer"
)
REAL = "it sums real numbers, behind a ReLU of them, and floats may round otherwise near a half"
_SUFFIXES = ("_QuantizeLinear_Output", "_quantized", "_output_0")


@dataclass(frozen=True)
class Numbers:
    """A tensor of 8-bit numbers: what they mean, how many layers made them, how they lie."""

    quantization: Quantization
    layers: int
    shape: Shape


@dataclass(frozen=True)
class Real:
    """A real tensor: numbers taken apart ("": the image), and what was done to them since."""

    numbers: str
    shape: Shape
    relu: bool = False
    added: StatedBias | None = None
    odd: str = ""  # the operator that no rule understands


@dataclass(frozen=True)
class Open:
    """A layer whose output has no scale yet."""

    kind: Kind
    layers: int  # in front of it
    shape: Shape
    input: Quantization
    weight: Array | None = None
    bias: Array | None = None
    weight_scale: Array | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    relu: bool = False
    stated: StatedBias | None = None
    weight_zero_point: Array | None = None

    @property
    def unit(self) -> Array:
        """Of the bias, float64, shape () or (O,)."""
        assert self.weight_scale is not None
        return np.asarray(float(self.input.scale) * self.weight_scale.astype(np.float64))

    @property
    def takes_bias(self) -> bool:
        """Whether what is added behind it can be its bias."""
        return self.kind != "pool" and not self.relu and not np.any(self.bias)

    def biased(self, bias: StatedBias) -> Open:
        """With a bias that is added behind it."""
        return replace(self, bias=bias.in_units(self.unit), stated=bias)


def is_same(a: Quantization, b: Quantization) -> bool:
    """Whether numbers mean the same, their type included."""
    return bool(a.scale == b.scale and a.zero_point == b.zero_point and a.dtype == b.dtype)


class Walk(QuantisedArrays):
    """The state of a reader; `extent` is (H, W) of the images, if the file states it."""

    def __init__(self, model: Any, name: str, image: Any) -> None:
        super().__init__(model, name)
        self.model = model
        self.numbers: dict[str, Numbers] = {}
        self.real: dict[str, Real | Open] = {image.name: Real("", Shape("image", _batch(image)))}
        self.layers: list[IntegerLayer] = []
        self.tensors: dict[str, str] = {}
        self.stated: dict[str, StatedBias] = {}  # layer -> its bias, where it is stored otherwise
        self.doubts: dict[str, str] = {}  # layer -> why its numbers may be others than ours
        self.clipped: set[str] = set()  # layers whose tensor is in front of their ReLU
        self.in_reals = False  # the layer at hand reads no numbers, but what a ReLU made of them
        self.entered = ""
        self.size = stated_size(image)

    def close(self, layer: Open, y: Quantization, tensor: str) -> None:
        """A layer is complete once its output's scale is known."""
        if layer.layers != len(self.layers):
            raise self.failure(
                "the layers are no chain: one reads what is not the last one's output",
                got=sanitize(tensor),
            )
        name = called_after(tensor, self.tensors)
        self.layers.append(
            IntegerLayer(
                name,
                layer.kind,
                layer.input,
                y,
                layer.weight,
                layer.bias,
                layer.weight_scale,
                relu=layer.relu,
                weight_zero_point=layer.weight_zero_point,
                **layer.settings,
            )
        )
        self.tensors[name] = tensor
        self.numbers[tensor] = Numbers(y, len(self.layers), layer.shape)
        if self.in_reals:
            self.doubts[name], self.in_reals = REAL, False
        if layer.stated is not None:
            self.stated[name] = layer.stated
            if layer.kind == "linear" and layer.stated.numbers is not None:
                self.doubts[name] = IGNORED
            elif not layer.stated.is_whole(layer.unit):
                self.doubts[name] = "its bias is no whole number of input_scale * weight_scale"

    def source(self, tensor: str) -> tuple[Numbers, str]:
        """The numbers behind a real tensor, untouched, and their name."""
        behind = self.real.get(tensor)
        if not isinstance(behind, Real) or behind.numbers not in self.numbers:
            raise self.failure(
                "a layer reads real numbers", got=sanitize(tensor), wanted="quantised ones"
            )
        if behind.relu and self.layers and not (behind.odd or behind.added):
            self._take_relu(behind.numbers)
        else:
            self.require_untouched(behind)
        return self.read_by_layer(behind.numbers), behind.numbers

    def _take_relu(self, tensor: str) -> None:
        """A ReLU of real numbers that no quantiser follows: of real ones it is that of integers."""
        self.read_by_layer(tensor)
        last = self.layers[-1]
        if not last.relu:
            self.layers[-1] = replace(last, relu=True)
            self.clipped.add(last.name)
        self.in_reals = True

    def read_by_layer(self, tensor: str) -> Numbers:
        """The numbers that the next layer reads: those of the last one."""
        found = self.numbers.get(tensor)
        if found is None:
            raise self.failure("numbers of unknown origin", got=sanitize(tensor))
        if found.layers != len(self.layers):
            raise self.failure(
                "the layers are no chain: one reads what is not the last one's output",
                got=sanitize(tensor),
            )
        if not self.layers:
            self.entered = tensor
        return found

    def require_untouched(self, real: Real) -> None:
        """Refuse what a layer cannot read: operators between two layers."""
        done = real.odd or ("an Add" if real.added else "Relu of quantised numbers" * real.relu)
        if done:
            raise self.failure(
                "an operator that no chain of quantised layers has",
                got=done,
                wanted="Conv, ReLU, average pooling and a linear layer, each quantised",
            )

    def require_same(self, x: str, said: Quantization) -> Numbers:
        """The numbers `x`, which a node takes for `said`."""
        made = self.read_by_layer(x)
        if not is_same(made.quantization, said):
            raise self.failure(
                f"{sanitize(x)}: an operator takes these numbers for others",
                got=shown(said),
                wanted=shown(made.quantization),
            )
        return made

    def renamed(self, before: str, after: str) -> None:
        """The numbers of a layer go on under another name, which is the one that is run for."""
        if self.entered == before:
            self.entered = after
        for name, tensor in self.tensors.items():
            if tensor == before:
                self.tensors[name] = after
        if self.layers and self.tensors.get(self.layers[-1].name) == after:
            last = self.layers[-1]
            name = called_after(after, {k: v for k, v in self.tensors.items() if k != last.name})
            if name != last.name and last.kind == "pool":
                self.rename_last(name)

    def rename_last(self, name: str) -> None:
        """Call the last layer `name`."""
        last = self.layers[-1]
        self.layers[-1] = replace(last, name=name)
        for known in (self.tensors, self.stated, self.doubts):
            if last.name in known:
                known[name] = known.pop(last.name)  # type: ignore[assignment]
        if last.name in self.clipped:
            self.clipped = (self.clipped - {last.name}) | {name}

    @property
    def channels(self) -> int:
        """Of the last layer's output."""
        return next((n for each in reversed(self.layers) if (n := each.out_channels)), 0)

    @property
    def extent(self) -> tuple[int, int] | None:
        """Of the image behind the last layer, where the file states the size of its input."""
        if self.size is None:
            return None
        height, width = self.size
        for layer in self.layers:
            if layer.kind == "conv" and layer.weight is not None:
                height, width = (
                    (n + 2 * layer.padding - layer.dilation * (k - 1) - 1) // layer.stride + 1
                    for n, k in zip((height, width), layer.weight.shape[2:], strict=True)
                )
        return height, width


def stated_size(image: Any) -> tuple[int, int] | None:
    """(H, W) of a graph's input, if it states both."""
    dims = image.type.tensor_type.shape.dim
    if len(dims) != 4 or not all(d.HasField("dim_value") for d in dims[2:]):
        return None
    return int(dims[2].dim_value), int(dims[3].dim_value)


def _batch(image: Any) -> int | None:
    dims = image.type.tensor_type.shape.dim
    return int(dims[0].dim_value) if len(dims) and dims[0].HasField("dim_value") else None


def shown(quantization: Quantization) -> str:
    """Scale and zero point in words."""
    return (
        f"scale {float(quantization.scale):.9g}, zero point {int(quantization.zero_point)} "
        f"of {quantization.dtype}"
    )


def called_after(tensor: str, taken: Mapping[str, str]) -> str:
    """A layer's name: its tensor's, without what exporters append."""
    name = tensor.strip("/")
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    name = sanitize(name) or "layer"
    return name if name not in taken else f"{name} {len(taken)}"
