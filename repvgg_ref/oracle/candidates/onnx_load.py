"""An ONNX candidate's model: read without trust, its functions put in their callers' place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from repvgg_ref.errors import CheckpointError
from repvgg_ref.files.onnx_graph.load import read_onnx
from repvgg_ref.files.onnx_graph.packages import first_line, require
from repvgg_ref.oracle.candidates.base import CandidateFailure
from weights_io import sanitize


def load_onnx(path: Path) -> Any:
    """The `onnx.ModelProto` in `path`, its external data loaded and its functions inlined.

    Raises
    ------
    CandidateFailure
        If it is no ONNX model, too large, or wants data from outside its folder.
    MissingExtraError
        If the onnx package is not installed.
    """
    try:
        model = read_onnx(path)
    except CheckpointError as error:
        raise CandidateFailure(
            error.what, got=error.got, wanted=error.wanted, advice=error.advice
        ) from None
    try:
        if model.functions:
            model = require("onnx.inliner").inline_local_functions(model)
    except Exception as error:
        raise CandidateFailure(
            f"{sanitize(path.name)}: cannot be loaded", got=first_line(error)
        ) from None
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
