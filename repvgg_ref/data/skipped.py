"""What is told of pictures that could not be read: a line for every kind of reason."""

from __future__ import annotations

from collections.abc import Iterable

from repvgg_ref.errors import by_kind

_EXAMPLES = 3


def told(skipped: Iterable[tuple[str, str]]) -> list[str]:
    """Pairs (name, reason) as lines: the first of a kind, how many more there are, and examples."""
    return [_line(reason, names) for reason, names in by_kind(skipped)]


def named(name: str, reason: str) -> str:
    """The reason with the picture's name, which many reasons have already."""
    return reason if name in reason else f"{name}: {reason}"


def _line(reason: str, names: list[str]) -> str:
    first, *others = names
    line = f"skipped: {named(first, reason)}"
    if not others:
        return line
    examples = ", ".join(others[:_EXAMPLES])
    more = "" if len(others) <= _EXAMPLES else ", ..."
    return f"{line} ; and {len(others)} more for the same reason: {examples}{more}"
