"""What the page `formats` says of the JSON of each command, and whether an object is so."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from repvgg_ref_cli.pages import read_page

NAMES = {bool: "bool", int: "int", float: "number", str: "string", dict: "object", list: "list"}


def require_documented(command: str, found: Iterable[Any]) -> set[str]:
    """Fail unless the command's tables hold every field; returns the rows that were seen."""
    known, seen = documented(command), set()
    for path, value in (field for each in found for field in fields(each)):
        row = name_of(path, known)
        if row is None:
            assert path.startswith("diagnosis[].taps."), f"{command}: {path} is in no table"
            continue
        assert fits(value, known[row]), f"{command}: {path} = {value!r} is no {known[row]}"
        seen.add(row)
    return seen


@cache
def documented(command: str) -> dict[str, str]:
    """Path -> type, of one command's tables."""
    sections = read_page("formats").text.split("## JSON of every command")[1].split("\n### ")[1:]
    section = next(text for text in sections if text.partition("\n")[0] == command)
    found = dict(re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", section, re.MULTILINE))
    return documented("verify") | found if command == "verify-op" else found


def fields(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every field of a JSON value with its path."""
    if path and not path.endswith("]"):
        yield path, value
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, each in inner:
        here = f"{path}[]" if isinstance(value, list) else f"{path}.{key}".lstrip(".")
        if isinstance(each, dict | list):
            yield from fields(each, here)
        elif not here.endswith("]"):
            yield here, each


def name_of(path: str, known: dict[str, str]) -> str | None:
    """The row that `path` stands in, keys of open objects being ``*``."""
    if path in known:
        return path
    for star in sorted((name for name in known if "*" in name), key=len, reverse=True):
        pattern = re.escape(star).replace(r"\*", r"(?:[^\[\]]+?)")
        if re.fullmatch(pattern, path):
            return star
    return None


def fits(value: Any, kind: str) -> bool:
    kinds = {word.split(" of ")[0] for word in re.split(r", | or ", kind.strip())}
    if value is None:
        return "null" in kinds
    name = NAMES[type(value)]
    return name in kinds or (name == "int" and "number" in kinds)
