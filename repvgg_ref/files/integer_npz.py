"""The file of an integer network: an npz of plain arrays and a JSON text (format version 1).

``__metadata__`` holds ``{"format": "repvgg-ref integer network", "version": 1, "rounding": NAME,
"layers": [{"name", "kind", "stride", "padding", "dilation", "groups", "relu"}]}``; of a layer only
the name is needed. Arrays are ``NAME.weight`` and so on, as `IntegerLayer` has them, with
``NAME.input_scale``, ``NAME.input_zero_point``, ``NAME.output_scale``, ``NAME.output_zero_point``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.errors import CheckpointError, ReportedError, did_you_mean
from repvgg_ref.integer.layers import IntegerLayer, Quantization
from repvgg_ref.integer.network import IntegerNetwork
from weights_io import LazyArray, open_weights, sanitize, save_weights

FORMAT, VERSION = "repvgg-ref integer network", 1
_KINDS = ("conv", "linear", "pool")
_NUMBERS: Mapping[str, tuple[int, int]] = {  # setting -> (default, least)
    "stride": (1, 1),
    "padding": (0, 0),
    "dilation": (1, 1),
    "groups": (1, 1),
}
_SETTINGS = ("name", "kind", *_NUMBERS, "relu")
_BARE = ("name", "kind", "relu")  # what layers but convolutions have of them
_MOST = 1 << 16  # of a stride, a padding, a dilation, a number of groups
_SHAPES: Mapping[str, tuple[int, ...]] = {  # array -> possible numbers of axes
    "weight": (2, 4),
    "bias": (1,),
    "weight_scale": (0, 1),
    "input_scale": (0,),
    "output_scale": (0,),
    "input_zero_point": (0,),
    "output_zero_point": (0,),
    "multiplier": (0, 1),
    "shift": (0, 1),
}
_TYPES: Mapping[str, tuple[str, ...]] = {
    "weight": ("int8",),
    "bias": ("int32",),
    "weight_scale": ("float32",),
    "input_scale": ("float32",),
    "output_scale": ("float32",),
    "input_zero_point": ("int8", "uint8"),
    "output_zero_point": ("int8", "uint8"),
    "multiplier": ("int32",),
    "shift": ("int8",),
}
_OF_POOLING = tuple(name for name in _SHAPES if name.split("_")[0] in ("input", "output"))


def is_integer_network(metadata: Mapping[str, str]) -> bool:
    """Whether an npz with this metadata holds an integer network."""
    return metadata.get("format") == FORMAT


def write_network(path: str | os.PathLike[str], network: IntegerNetwork) -> None:
    """Write `network` to `path`, whole or not at all.

    Raises
    ------
    ReportedError
        If weights less their zero point leave int8, which the format has no place for.
    """
    arrays: dict[str, Array] = {}
    for layer in network.layers:
        if layer.weight is not None and layer.weight.dtype != np.int8:
            raise ReportedError(
                f"{layer.name} has asymmetric weights, which the npz has no place for",
                got=f"{layer.weight.min()} to {layer.weight.max()}",
                wanted="int8 around zero",
            )
        arrays |= {f"{layer.name}.{part}": array for part, array in _arrays_of(layer)}
    settings = [
        {name: getattr(layer, name) for name in _SETTINGS if layer.kind == "conv" or name in _BARE}
        for layer in network.layers
    ]
    metadata = {"format": FORMAT, "version": VERSION, "rounding": network.rounding}
    save_weights(path, arrays, container="npz", metadata=metadata | {"layers": settings})


def read_network(path: str | os.PathLike[str]) -> IntegerNetwork:
    """Read the network in `path`.

    Raises
    ------
    CheckpointError
        If the file is no integer network, of another version, or its arrays do not fit.
    WeightsFileError
        If it cannot be read.
    """
    with open_weights(path) as archive:
        metadata = archive.metadata
        if not is_integer_network(metadata):
            raise CheckpointError(
                f"{sanitize(str(path))}: no integer network",
                got=f"format {sanitize(metadata.get('format'))}",
                wanted=f"an npz whose __metadata__ says format {FORMAT!r}",
            )
        if metadata.get("version") != str(VERSION):
            raise CheckpointError(
                "an integer network of another version",
                got=sanitize(metadata.get("version")),
                wanted=str(VERSION),
                advice="a newer repvgg-ref reads it, if it is from one",
            )
        assert isinstance(archive.root, dict)
        arrays = {
            name: array for name, array in archive.root.items() if isinstance(array, LazyArray)
        }
        layers = [_layer(settings, arrays) for settings in _settings(metadata)]
        _require_used(arrays, layers)
    return IntegerNetwork(tuple(layers), metadata.get("rounding", "any"))


def _arrays_of(layer: IntegerLayer) -> Iterator[tuple[str, Array]]:
    for name in ("weight", "bias", "weight_scale", "multiplier", "shift"):
        if (array := getattr(layer, name)) is not None:
            yield name, array
    for side in ("input", "output"):
        quantization = getattr(layer, side)
        yield f"{side}_scale", quantization.scale
        yield f"{side}_zero_point", quantization.zero_point


def _settings(metadata: Mapping[str, str]) -> list[dict[str, Any]]:
    """The layers' settings as the file has them, checked."""
    try:
        layers = json.loads(metadata.get("layers", "null"))
    except (ValueError, RecursionError):
        layers = None
    if not isinstance(layers, list) or not all(isinstance(each, dict) for each in layers):
        raise CheckpointError(
            "the network's layers are no list of settings", got=type(layers).__name__
        )
    names = [each.get("name") for each in layers]
    if not all(isinstance(name, str) and name for name in names) or len({*names}) < len(names):
        raise CheckpointError(
            "the network's layers need names of their own", got=sanitize(names), wanted="each once"
        )
    return [_checked(each) for each in layers]


def _checked(settings: dict[str, Any]) -> dict[str, Any]:
    name = settings["name"]
    for key in settings.keys() - set(_SETTINGS):
        raise _bad(name, key, "there", "not known", did_you_mean(key, _SETTINGS))
    found = {"name": name, "kind": settings.get("kind", "conv")}
    if found["kind"] not in _KINDS:
        raise _bad(name, "kind", settings["kind"], " or ".join(_KINDS))
    for key, (default, least) in _NUMBERS.items():
        value = settings.get(key, default)
        if type(value) is not int or not least <= value <= _MOST:
            raise _bad(name, key, value, f"a whole number from {least} to {_MOST}")
        found[key] = value
    found["relu"] = settings.get("relu", False)
    if type(found["relu"]) is not bool:
        raise _bad(name, "relu", found["relu"], "true or false")
    return found


def _layer(settings: dict[str, Any], arrays: Mapping[str, LazyArray]) -> IntegerLayer:
    name = settings["name"]
    wanted = _OF_POOLING if settings["kind"] == "pool" else tuple(_SHAPES)
    found: dict[str, Any] = {part: _read(name, part, arrays) for part in wanted}
    if settings["kind"] != "pool":
        _require_channels(settings, found)
    sides: dict[str, Any] = {
        side: Quantization(found.pop(f"{side}_scale"), found.pop(f"{side}_zero_point"))
        for side in ("input", "output")
    }
    return IntegerLayer(**settings, **sides, **found)


def _read(layer: str, part: str, arrays: Mapping[str, LazyArray]) -> Array | None:
    array = arrays.get(f"{layer}.{part}")
    if array is None:
        if part in ("multiplier", "shift"):
            return None
        raise CheckpointError(f"{sanitize(layer)}.{part} is missing", wanted=_TYPES[part][0])
    if array.dtype not in _TYPES[part]:
        raise _bad(layer, part, array.dtype, " or ".join(_TYPES[part]))
    if len(array.shape) not in _SHAPES[part]:
        wanted = " or ".join(str(axes) for axes in _SHAPES[part])
        raise _bad(layer, part, f"shape {array.shape}", f"{wanted} axes")
    return np.asarray(array.read())


def _require_channels(settings: Mapping[str, Any], found: Mapping[str, Array | None]) -> None:
    """The layer's arrays agree about its kind, its outputs and its groups."""
    name, weight = settings["name"], found["weight"]
    assert weight is not None
    linear, square = settings["kind"] == "linear", len(set(weight.shape[2:])) == 1
    if (linear and weight.ndim != 2) or not (linear or square) or 0 in weight.shape:
        raise _bad(
            name, "weight", f"shape {weight.shape}", "(O, C/G, K, K), of a linear layer (O, C)"
        )
    outputs = len(weight)
    if outputs % settings["groups"]:
        raise _bad(name, "groups", settings["groups"], f"a divisor of {outputs} outputs")
    for part in ("bias", "weight_scale", "multiplier", "shift"):
        array = found[part]
        if array is not None and array.ndim and len(array) != outputs:
            raise _bad(name, part, f"{len(array)} numbers", f"{outputs}, one for each output")


def _require_used(arrays: Mapping[str, LazyArray], layers: list[IntegerLayer]) -> None:
    used = {f"{layer.name}.{part}" for layer in layers for part, _ in _arrays_of(layer)}
    for name in sorted(arrays.keys() - used):
        raise CheckpointError(
            "an array that belongs to no layer", got=sanitize(name), advice=did_you_mean(name, used)
        )


def _bad(
    layer: str, what: str, got: object, wanted: str, advice: str | None = None
) -> CheckpointError:
    return CheckpointError(
        f"{sanitize(layer)}: bad {sanitize(what)}", got=sanitize(got), wanted=wanted, advice=advice
    )
