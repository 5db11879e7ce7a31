"""Strict JSON for headers and metadata."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from weights_io.budget import Budget
from weights_io.errors import WeightsFileError
from weights_io.text import sanitize

_MOST_DIGITS = 20  # enough for 64 bits


def parse_json(text: bytes, what: str, budget: Budget) -> dict[str, Any]:
    """Return a JSON object without repeated keys; numbers are integers only."""
    charge_json(text, what, budget)
    try:
        value = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=_integer,
            parse_float=_refuse_number,
            parse_constant=_refuse_number,
        )
    except (ValueError, RecursionError) as error:
        raise WeightsFileError(f"{what} is no JSON", got=sanitize(error)) from None
    if not isinstance(value, dict):
        raise WeightsFileError(f"{what} is no JSON object", got=type(value).__name__)
    return value


def charge_json(text: bytes, what: str, budget: Budget) -> None:
    """Charge a JSON text before it is parsed: as many values as can stand between its marks."""
    marks = sum(text.count(mark) for mark in (b",", b"[", b"{"))
    budget.charge("nodes", marks, f"{what} holds too many values")


def as_text_metadata(value: dict[str, Any]) -> dict[str, str]:
    """Return `value` with JSON's text for what is no text in it (an npz's may be nested)."""
    return {
        name: item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)
        for name, item in value.items()
    }


def parse_text_metadata(value: object) -> dict[str, str]:
    """Return `value` if it is a dict of strings."""
    if isinstance(value, dict) and all(type(item) is str for item in value.values()):
        return value
    raise WeightsFileError("the file's __metadata__ is no table of strings")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise ValueError(f"the key {sanitize(key)} comes twice")
        table[key] = value
    return table


def _integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def _refuse_number(text: str) -> NoReturn:
    raise ValueError(f"{sanitize(text)} is no integer")
