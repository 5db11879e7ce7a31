"""Names and other values from a file made safe to print."""

from __future__ import annotations

from dataclasses import is_dataclass

_LONGEST = 120
_LONGEST_SAID = 1000  # of a part of a message: an encyclopaedia in a file stays there
_SLACK = 50  # more than what is said of the length, so that nothing is cut twice
_DEEPEST, _WIDEST = 3, 8  # of containers, of which the rest is dots
_MOST_BITS = 400  # of an integer that is shown in digits


def sanitize(name: object) -> str:
    """Return `name` as printable text: no terminal escapes, no line breaks, not too long.

    Parameters
    ----------
    name : object
        Usually a string read from a file. Of containers the first few items are shown, to a
        depth of three, however large they are; anything else is shown by its `str`.

    Returns
    -------
    str
        Every character that does not print is written as a backslash escape, also the
        invisible ones that reorder text; at most 120 characters.
    """
    text = name if type(name) is str else _shown(name)
    return printable(text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "...")


def shortened(text: str, most: int = _LONGEST_SAID) -> str:
    """`text` as `printable` has it; of a long one its beginning, an ellipsis, and its length."""
    shown = printable(text[: most + _SLACK])
    if len(text) <= most + _SLACK and len(shown) <= most + _SLACK:
        return shown
    return f"{shown[:most]}... ({len(text)} characters)"


def printable(text: str, *, lines: bool = False) -> str:
    """`text`, every character that does not print as a backslash escape; `lines` are kept apart."""
    if text.isprintable():
        return text
    if lines:
        return "\n".join(map(printable, text.split("\n")))
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )


def _shown(value: object) -> str:
    """The `str` of a value of a file, at a cost that does not depend on the value."""
    if is_dataclass(value) or isinstance(
        value, tuple | list | dict | set | frozenset | bytes | int
    ):
        return bounded_repr(value)
    return str(value)


def bounded_repr(value: object, depth: int = 0) -> str:
    """The beginning of a value's `repr`: `repr` itself visits a shared part each time it appears.

    What is neither a plain value nor a container of them is shown by its type alone.
    """
    if isinstance(value, str | bytes):
        return repr(value[:_LONGEST])
    if type(value) is int and value.bit_length() > _MOST_BITS:
        return f"an integer of {value.bit_length()} bits"
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    if isinstance(value, tuple | list | set | frozenset | dict):
        return _bounded_container(value, depth)
    return f"<{type(value).__name__}>"


def _bounded_container(
    value: tuple[object, ...]
    | list[object]
    | set[object]
    | frozenset[object]
    | dict[object, object],
    depth: int,
) -> str:
    opening, closing = "()" if isinstance(value, tuple) else "[]"
    if isinstance(value, dict | set | frozenset):
        opening, closing = "{}"
    if depth == _DEEPEST:
        return f"{opening}...{closing}"
    shown = [
        bounded_repr(item, depth + 1)
        + (f": {bounded_repr(value[item], depth + 1)}" if isinstance(value, dict) else "")
        for item, _ in zip(value, range(_WIDEST), strict=False)
    ]
    if len(value) > _WIDEST:
        shown.append("...")
    comma = "," if isinstance(value, tuple) and len(value) == 1 else ""
    return f"{opening}{', '.join(shown)}{comma}{closing}"
