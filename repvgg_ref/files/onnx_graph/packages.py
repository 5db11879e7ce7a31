"""The onnx and onnxruntime packages, needed for ONNX files only, and how they fail."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import Any

from repvgg_ref.errors import MissingExtraError
from weights_io import sanitize


def require(package: str) -> Any:
    """Import `package`; `MissingExtraError` with the line that installs it."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise _missing(package) from None


def require_runtime() -> None:
    """Raise `MissingExtraError` unless ONNX Runtime is installed; only its child loads it."""
    if find_spec("onnxruntime") is None:
        raise _missing("onnxruntime")


def _missing(package: str) -> MissingExtraError:
    return MissingExtraError(
        f"an ONNX file needs the package {package}",
        got="it is not installed",
        wanted="the extra 'onnx'",
        advice='pip install "repvgg-ref[onnx]"',
    )


def first_line(error: BaseException) -> str:
    """The first line of a library's message, safe to print."""
    return first_line_of(str(error)) or type(error).__name__


def first_line_of(message: object) -> str:
    """The first line that says something, safe to print."""
    lines = [line.strip() for line in str(message).splitlines() if line.strip()]
    return sanitize(lines[0]) if lines else ""
