"""Reading an ONNX file without trust: sizes first, data files only beside it, functions inlined."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from repvgg_ref.oracle.candidates.base import CandidateFailure
from repvgg_ref.oracle.candidates.npy_files import MOST_BYTES, read_bytes, require_regular
from repvgg_ref.oracle.candidates.onnx_functions import (
    Size,
    nodes_in,
    require_moderate,
    subgraphs,
)
from repvgg_ref.oracle.candidates.onnx_import import first_line, require
from weights_io import sanitize

_PROTOBUF_BYTES = 2**31 - 1
_MOST = Size(nodes=100_000, bytes=_PROTOBUF_BYTES)


def load_onnx(path: Path) -> Any:
    """The `onnx.ModelProto` in `path`, its external data loaded.

    Raises
    ------
    CandidateFailure
        If it is no ONNX model, too large, or wants data from outside its folder.
    MissingExtraError
        If the onnx package is not installed.
    """
    onnx, external = require("onnx"), require("onnx.external_data_helper")
    name = sanitize(path.name)
    data = read_bytes(path, _PROTOBUF_BYTES)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception as error:  # protobuf's DecodeError has no stable home
        raise CandidateFailure(f"{name}: is no ONNX model", got=first_line(error)) from None
    if not model.HasField("graph") or not model.graph.node:
        raise CandidateFailure(f"{name}: is no ONNX model", got="no graph")
    require_moderate(model, name, _MOST)
    _require_data_beside(model, path, onnx)
    try:
        external.load_external_data_for_model(model, str(path.parent))
        if model.functions:
            model = require("onnx.inliner").inline_local_functions(model)
    except Exception as error:
        raise CandidateFailure(f"{name}: cannot be loaded", got=first_line(error)) from None
    return model


def serialized(model: Any, name: str) -> bytes:
    """The model as bytes for a runtime."""
    try:
        data: bytes = model.SerializeToString()
    except Exception as error:
        raise CandidateFailure(
            f"{name}: is too large to be run with all outputs", got=first_line(error)
        ) from None
    return data


def _require_data_beside(model: Any, path: Path, onnx: Any) -> None:
    """Refuse external data that is absolute, above the folder, a link out of it, or not there."""
    folder = path.parent.resolve()
    total = 0
    for tensor in _tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        said = {entry.key: entry.value for entry in tensor.external_data}
        location = said.get("location", "")
        try:
            place = (folder / location).resolve()
            inside = not Path(location).is_absolute() and place.is_relative_to(folder)
            start, length = int(said.get("offset", "0")), int(said.get("length", "0"))
        except (OSError, ValueError, RuntimeError):
            inside, start, length = False, 0, 0
        if not location or not inside or start < 0 or length < 0:
            raise CandidateFailure(
                f"{sanitize(path.name)}: wants data from outside its folder",
                got=sanitize(location),
                wanted="a file beside the model",
            )
        require_regular(place)
        size = place.stat().st_size
        total += length or size - start
        if start + length > size or total > MOST_BYTES:
            raise CandidateFailure(
                f"{sanitize(path.name)}: its data file does not hold what it says",
                got=f"{sanitize(place.name)} of {size} bytes",
                wanted=f"{length} bytes at {start} for {sanitize(tensor.name)}",
            )


def _tensors(model: Any) -> Iterator[Any]:
    """All tensors of a model, those in branches, loop bodies and functions too."""
    bodies = [model.graph.node, *(function.node for function in model.functions)]
    yield from model.graph.initializer
    for node in (node for body in bodies for node in nodes_in(body)):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
        for inner in subgraphs(node):
            yield from inner.initializer
