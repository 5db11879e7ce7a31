"""The onnx and onnxruntime packages, needed by ONNX candidates only, and how they fail."""

from __future__ import annotations

import importlib
from typing import Any

from repvgg_ref.errors import MissingExtraError
from weights_io import sanitize


def require(package: str) -> Any:
    """Import `package`; `MissingExtraError` with the line that installs it."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise MissingExtraError(
            f"an ONNX candidate needs the package {package}",
            got="it is not installed",
            wanted="the extra 'onnx'",
            advice='pip install "repvgg-ref[onnx]"',
        ) from None


def first_line(error: BaseException) -> str:
    """The first line of a library's message, safe to print."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return sanitize(lines[0] if lines else type(error).__name__)
