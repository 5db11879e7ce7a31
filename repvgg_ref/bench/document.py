"""A benchmark as one JSON document: what was found, on what, and how busy that was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol

from repvgg_ref.bench.machine import Watch, is_busy, load, machine

FORMAT = 1


class Found(Protocol):
    """A `Race`, a `Conversion` or a `Table4`."""

    def as_json(self) -> dict[str, Any]:
        """Plain values, all rounds included."""


def document(found: Found, watch: Watch) -> dict[str, Any]:
    """Everything that a reader of the figures needs to know; `watch` began before the first run."""
    others = watch.others()
    return {
        "format": FORMAT,
        "machine": machine(),
        "load_before": watch.load_before,
        "load_after": load(),
        "others": others,
        "busy": is_busy(others),
        **found.as_json(),
    }


def as_text(made: Mapping[str, Any]) -> str:
    """The document as a JSON file; NaN is never written."""
    return json.dumps(made, indent=1, allow_nan=False) + "\n"
