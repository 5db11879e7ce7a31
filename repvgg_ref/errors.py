"""The package's errors; all derive from `ReportedError` and carry what, got and wanted."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import islice, takewhile

from weights_io.errors import ReportedError, WeightsFileError
from weights_io.text import shortened

__all__ = [
    "BackendError",
    "CheckpointError",
    "InexactError",
    "MissingExtraError",
    "NotFusibleError",
    "ReportedError",
    "ShapeError",
    "WeightsFileError",
    "by_kind",
    "did_you_mean",
    "require_equal",
    "shortened",
]

_LONGEST_NAME, _MOST_NAMES = 100, 2000  # that are compared: the comparison is dear


class ShapeError(ReportedError):
    """Arrays whose shapes do not fit together."""


class InexactError(ReportedError):
    """A rational computation that has no rational result (an irrational square root)."""


class CheckpointError(ReportedError):
    """Named arrays that are not the network they are said to be."""


class NotFusibleError(ReportedError):
    """A training-time structure that no single convolution equals."""


class BackendError(ReportedError):
    """A backend that cannot be used here."""


class MissingExtraError(ReportedError):
    """An optional dependency that is not installed."""


def require_equal(operator: str, left: str, got: object, right: str, wanted: object) -> None:
    """Raise `ShapeError` unless ``got == wanted``, naming both sides of the broken equation."""
    if got != wanted:
        raise ShapeError(
            f"{operator}: {left} (={got}) must equal {right} (={wanted})", got=got, wanted=wanted
        )


_EQUALS = 8  # names that may resemble one alike: a family's


def did_you_mean(name: object, known: Iterable[str]) -> str | None:
    """Advice for a name that is not one of `known`: the one it resembles most, None if none does.

    Case, hyphens and underscores do not count; a part that stands in one name only is enough. Names
    may come from a file: long ones resemble nothing, and of very many the first are looked at.
    """
    from difflib import get_close_matches

    if len(str(name)) > _LONGEST_NAME:
        return None
    few = islice((each for each in known if len(each) <= _LONGEST_NAME), _MOST_NAMES)
    names = {_bare(each): each for each in few}
    asked = _bare(str(name))
    close = get_close_matches(asked, names, n=_EQUALS, cutoff=0.6)
    # Of names that resemble it equally, one that begins as it does, then the first of ours.
    places = {each: place for place, each in enumerate(names)}
    close.sort(key=lambda each: (*_unlikeness(asked, each), places[each]))
    if not close and len(asked) > 2:
        holding = [each for each in names if asked in each]
        close = holding if len(holding) == 1 else []
    return f"did you mean {names[close[0]]}?" if close else None


def _unlikeness(asked: str, name: str) -> tuple[float, int]:
    from difflib import SequenceMatcher

    alike = takewhile(lambda pair: pair[0] == pair[1], zip(asked, name, strict=False))
    return -SequenceMatcher(None, name, asked).ratio(), -sum(1 for _ in alike)


def _bare(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def by_kind(messages: Iterable[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    """Pairs (place, message) put together where they say the same of many places.

    Messages are of one kind if they differ in the place, in names before a colon and in numbers
    only. Returned are the first message of every kind and all its places, in order.
    """
    found: dict[str, tuple[str, list[str]]] = {}
    for place, message in messages:
        bare = re.sub(r"^(\S*: )+", "", message.removeprefix(place))
        kind = re.sub(r"\S+", lambda word: "#" if re.search(r"\d", word[0]) else word[0], bare)
        found.setdefault(kind, (message, []))[1].append(place)
    return list(found.values())
