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
    if len(text) > _LONGEST:
        text = text[: _LONGEST - 3] + "..."
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )
