"""A trained network as an integer network: post-training quantisation.

Weights are symmetric in [-127, 127], one scale for each output channel; activations have one scale
and one zero point a tensor (Jacob et al., arXiv 1712.05877; Krishnamoorthi, arXiv 1806.08342).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.catalogue import fused_conv
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.errors import ReportedError
from repvgg_ref.integer.layers import INT32, IntegerLayer, Quantization
from repvgg_ref.integer.network import IntegerNetwork
from repvgg_ref.integer.observers import LEVELS, Range, observe, require_method
from repvgg_ref.models.architectures import Architecture
from repvgg_ref.models.network import Model, fuse

WEIGHT_LIMIT = 127  # symmetric: -128 stays unused, as TensorFlow Lite wants it
INPUT, POOL, LINEAR = "input", "pool", "linear"
_BATCH = 32  # images that are computed at a time
_SMALLEST = float(np.finfo(np.float32).tiny)


def quantize(
    model: Model,
    images: Array,
    *,
    rounding: str = "float-even",
    per_tensor: bool = False,
    method: str = "min-max",
    dtype: Any = np.int8,
) -> IntegerNetwork:
    """Quantise a RepVGG by what its layers give on `images`.

    Parameters
    ----------
    model : Model
        In either form; a chain of blocks without squeeze-and-excitation.
    images : (N, C, H, W) floating array
        Prepared as for training.
    rounding : str
        A key of `schemes.SCHEMES`, or "any".
    per_tensor : bool
        One scale for all of a layer's channels.
    method : {"min-max", "percentile", "least-squares"}
        How ranges of activations are chosen.
    dtype : {int8, uint8}
        Of activations.

    Raises
    ------
    ReportedError
        If the network is no plain chain, or calibration meets a number that is none.
    """
    deploy = as_chain(model)
    ranges = calibrate(deploy, images, method=method)
    return from_ranges(
        deploy, ranges, rounding=rounding, per_tensor=per_tensor, method=method, dtype=dtype
    )


def as_chain(model: Model) -> Model:
    """`model` in deploy form, if it is a chain that integers can compute.

    Raises
    ------
    ReportedError
        If it has squeeze-and-excitation, another wiring, or no linear layer.
    """
    arch = model.arch
    if not isinstance(arch, Architecture) or not arch.num_classes:
        raise ReportedError(
            f"{model.name} cannot be quantised",
            got="a network of another wiring",
            wanted="a chain of blocks, pooling and one linear layer",
        )
    for spec in arch.blocks:
        if spec.se != "none":
            raise ReportedError(
                f"{model.name} cannot be quantised",
                got=f"squeeze-and-excitation in {spec.name}, a product of two activations",
                wanted="convolutions and ReLU alone",
            )
    return model if model.form == "deploy" else fuse(model)


def calibrate(deploy: Model, images: Array, *, method: str) -> dict[str, Range]:
    """The range of the input and of every layer's output on `images`."""
    require_method(method)
    if not len(images):
        raise ReportedError("calibration needs images", got="none", wanted="at least 1")
    ranges = observe(_outputs(deploy, images), method)
    if method != "min-max":
        observe(_outputs(deploy, images), method, ranges=ranges)
    return ranges


def from_ranges(
    deploy: Model,
    ranges: dict[str, Range],
    *,
    rounding: str,
    per_tensor: bool,
    method: str = "min-max",
    dtype: Any = np.int8,
) -> IntegerNetwork:
    """The integer network of a fused chain whose activations have these ranges."""
    sides = {name: activation(*found.ends(method), dtype) for name, found in ranges.items()}
    arch = deploy.arch
    layers: list[IntegerLayer] = []
    before = INPUT
    for spec in arch.blocks:
        weight = deploy.params[f"{spec.name}.fused.weight"]
        bias = deploy.params[f"{spec.name}.fused.bias"]
        arrays = weights(weight, bias, sides[before].scale, per_tensor=per_tensor)
        layers.append(_conv(spec, sides[before], sides[spec.name], arrays))
        before = spec.name
    # The mean lies in the range of what it is the mean of: the same numbers serve.
    layers.append(IntegerLayer(POOL, "pool", sides[before], sides[before]))
    arrays = weights(
        deploy.params[f"{LINEAR}.weight"],
        deploy.params[f"{LINEAR}.bias"],
        sides[before].scale,
        per_tensor=per_tensor,
    )
    layers.append(IntegerLayer(LINEAR, "linear", sides[before], sides[LINEAR], *arrays))
    return IntegerNetwork(tuple(layers), rounding)


def activation(low: float, high: float, dtype: Any) -> Quantization:
    """Scale and zero point for numbers from `low` to `high`, 0 being one of them.

    The scale is a float32; the zero point the integer nearest to where 0 lies.
    """
    limits = np.iinfo(dtype)
    scale = np.asarray((high - low) / (LEVELS - 1) or 1.0, np.float32)
    zero_point = np.clip(np.rint(limits.min - low / float(scale)), limits.min, limits.max)
    return Quantization(scale, np.asarray(zero_point, dtype))


def weights(
    weight: Array, bias: Array, input_scale: Array, *, per_tensor: bool
) -> tuple[Array, Array, Array]:
    """Integers for a layer: int8 weight, int32 bias, float32 scales.

    A channel whose bias would not fit into 32 bits at the weights' own scale gets a larger one.
    """
    flat = np.abs(weight.reshape(len(weight), -1).astype(np.float64))
    largest = flat.max(axis=1) if not per_tensor else flat.max(keepdims=True).reshape(1)
    room = np.abs(bias.astype(np.float64)) / (float(input_scale) * (INT32.max // 2))
    room = room if not per_tensor else room.max(keepdims=True)
    scale = np.maximum(np.maximum(largest / WEIGHT_LIMIT, room), _SMALLEST).astype(np.float32)
    across = scale.reshape((-1,) + (1,) * (weight.ndim - 1)).astype(np.float64)
    numbers = np.clip(np.rint(weight / across), -WEIGHT_LIMIT, WEIGHT_LIMIT).astype(np.int8)
    unit = float(input_scale) * scale.astype(np.float64)
    whole = np.rint(bias.astype(np.float64) / unit).astype(np.int32)
    return numbers, whole, scale.reshape(()) if per_tensor else scale


def _conv(
    spec: BlockSpec,
    before: Quantization,
    after: Quantization,
    arrays: tuple[Array, Array, Array],
) -> IntegerLayer:
    settings = fused_conv(spec)
    return IntegerLayer(
        spec.name,
        "conv",
        before,
        after,
        *arrays,
        stride=_one(spec, "stride", settings.stride),
        padding=_one(spec, "padding", settings.padding),
        dilation=_one(spec, "dilation", settings.dilation),
        groups=settings.groups,
        relu=spec.activation == "relu",
    )


def _one(spec: BlockSpec, what: str, pair: tuple[int, int]) -> int:
    if pair[0] != pair[1]:
        raise ReportedError(
            f"{spec.name} cannot be quantised", got=f"{what} {pair}", wanted="the same both ways"
        )
    return pair[0]


def _outputs(deploy: Model, images: Array) -> Iterator[dict[str, Array]]:
    for start in range(0, len(images), _BATCH):
        x = images[start : start + _BATCH]
        yield {INPUT: x} | deploy.forward(x, layers=True)
