"""Names from a file made safe to print."""

from __future__ import annotations

_LONGEST = 120


def sanitize(name: object) -> str:
    """Return `name` as printable text: no terminal escapes, no line breaks, not too long.

    Parameters
    ----------
    name : object
        Usually a string read from a file; anything else is shown by its `str`.

    Returns
    -------
    str
        Every character that does not print is written as a backslash escape, also the
        invisible ones that reorder text; at most 120 characters.
    """
    text = str(name)
    return printable(text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "...")


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
