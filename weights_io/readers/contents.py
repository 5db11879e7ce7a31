"""What a reader returns."""

from __future__ import annotations

from typing import NamedTuple


class Contents(NamedTuple):
    """The container's name, its tree and its text metadata."""

    container: str
    root: object
    metadata: dict[str, str]
