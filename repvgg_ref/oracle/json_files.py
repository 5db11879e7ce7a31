"""JSON in files, read without trust: regular files of a moderate size, numbers that are numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from weights_io import read_regular

_MOST_BYTES = 64 << 20


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; `ValueError` if it is none, `OSError` if it cannot be read."""
    try:
        found = json.loads(read_regular(path, most=_MOST_BYTES), parse_constant=_no_number)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("no JSON object")
    return found


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON's")
