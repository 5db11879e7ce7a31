"""A benchmark as one JSON document: what was found, on what, and how busy that was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import weights_io
from repvgg_ref.bench.machine import is_busy, load, machine

FORMAT = 1


class Found(Protocol):
    """A `Race`, a `Conversion` or a `Table4`."""

    def as_json(self) -> dict[str, Any]:
        """Plain values, all rounds included."""


def document(found: Found, load_before: list[float] | None) -> dict[str, Any]:
    """Everything that a reader of the figures needs to know."""
    return {
        "format": FORMAT,
        "machine": machine(),
        "load_before": load_before,
        "load_after": load(),
        "busy": is_busy(load_before),
        **found.as_json(),
    }


def write_document(path: str | Path, made: Mapping[str, Any]) -> None:
    """Write JSON, whole or not at all."""
    write_text(path, json.dumps(made, indent=1, allow_nan=False) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with weights_io.atomic_path(path) as temporary:
        Path(temporary).write_text(text, encoding="utf-8")
