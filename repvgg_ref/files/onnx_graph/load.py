"""Reading an ONNX file without trust: sizes first, and data files only beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

from repvgg_ref.errors import CheckpointError
from repvgg_ref.files.onnx_graph.functions import Size, nodes_in, require_moderate, subgraphs
from repvgg_ref.files.onnx_graph.packages import first_line, require
from weights_io import IrregularFileError, open_regular, sanitize

PROTOBUF_BYTES = 2**31 - 1
_MOST = Size(nodes=100_000, bytes=PROTOBUF_BYTES)
_MOST_BESIDE = 4 << 30  # bytes of data files


def read_onnx(path: Path) -> Any:
    """The `onnx.ModelProto` in `path`, its external data loaded.

    Raises
    ------
    CheckpointError
        If it is no ONNX model, too large, or wants data from outside its folder.
    MissingExtraError
        If the onnx package is not installed.
    """
    onnx, external = require("onnx"), require("onnx.external_data_helper")
    name = sanitize(path.name)
    data = _bytes(path)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception as error:  # protobuf's DecodeError has no stable home
        raise CheckpointError(f"{name}: is no ONNX model", got=first_line(error)) from None
    if not model.HasField("graph") or not model.graph.node:
        raise CheckpointError(f"{name}: is no ONNX model", got="no graph")
    require_moderate(model, name, _MOST)
    _require_data_beside(model, path, onnx)
    try:
        external.load_external_data_for_model(model, str(path.parent))
    except Exception as error:
        raise CheckpointError(f"{name}: cannot be loaded", got=first_line(error)) from None
    return model


def _bytes(path: Path) -> bytes:
    """A file of at most `PROTOBUF_BYTES`."""
    with _opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(PROTOBUF_BYTES + 1) if size <= PROTOBUF_BYTES else b""
    if max(size, len(data)) > PROTOBUF_BYTES:
        raise CheckpointError(
            f"{sanitize(path.name)}: is too large",
            got=f"{max(size, len(data))} bytes",
            wanted=f"at most {PROTOBUF_BYTES} bytes",
        )
    return data


def _opened(path: Path) -> BufferedReader:
    name = sanitize(path.name)
    try:
        return BufferedReader(open_regular(path))
    except IrregularFileError as error:
        raise CheckpointError(f"{name}: is no regular file", got=error.strerror) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no such name"
        raise CheckpointError(f"{name}: cannot be opened", got=reason) from None


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
            raise CheckpointError(
                f"{sanitize(path.name)}: wants data from outside its folder",
                got=sanitize(location),
                wanted="a file beside the model",
            )
        _opened(place).close()
        size = place.stat().st_size
        total += length or size - start
        if start + length > size or total > _MOST_BESIDE:
            raise CheckpointError(
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
