"""What this terminal can show: escapes or none, letters or ASCII, tables or lists of cells."""

from __future__ import annotations

import codecs
import itertools
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Column, Table
    from rich.text import Text

# A sign's usual spelling in ASCII.
_ASCII = {
    "\N{PLUS-MINUS SIGN}": "+/-",
    "\N{MULTIPLICATION SIGN}": "x",
    "\N{EN DASH}": "-",
    "\N{EM DASH}": "-",
    "\N{HORIZONTAL ELLIPSIS}": "...",
    "\N{LESS-THAN OR EQUAL TO}": "<=",
    "\N{GREATER-THAN OR EQUAL TO}": ">=",
    # heights of a line of bars, from the lowest
    **dict(zip("\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588", "_.:-=+*#", strict=True)),
}
_ERRORS = "repvgg-ref-ascii"
_STDOUT = "standard output"  # as errors call it


def is_plain() -> bool:
    """Whether escape sequences are unwelcome: NO_COLOR, TERM=dumb, or the C locale."""
    return bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb" or _is_c_locale()


def prepare_streams() -> None:
    """Let stdout and stderr show what they can: a file name may hold what a terminal cannot.

    Python writes UTF-8 in the C locale; a terminal that was told so shows ASCII.
    """
    codecs.register_error(_ERRORS, _in_ascii)
    told = {"PYTHONIOENCODING", "PYTHONUTF8"} & os.environ.keys()
    encoding: dict[str, Any] = {"encoding": "ascii"} if _is_c_locale() and not told else {}
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started us
            nowhere = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - until the end
            setattr(sys, name, nowhere)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_ERRORS, **encoding)


def is_nowhere(stream: IO[str]) -> bool:
    """Whether `prepare_streams` found it closed."""
    return getattr(stream, "name", None) == os.devnull


@contextmanager
def naming_stdout() -> Iterator[None]:
    """Say of errors meanwhile that it was stdout: the system tells no name of an open file."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or _STDOUT
        raise


def name_of(error: OSError) -> str | None:
    """The file or stream that an error is about; click and rich write to streams alone."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    by_them = frame.f_globals.get("__name__", "").partition(".")[0] in ("click", "rich")
    return _STDOUT if error.filename is None and by_them else error.filename


def console(*, stderr: bool = False) -> Console:
    """Rich's console on stdout or stderr, without highlighting, and without escapes if plain.

    Where the reader has gone it raises `BrokenPipeError`, as other writers do: rich itself would
    end the program with exit code 1, which here means "disagrees".
    """
    from rich.console import Console

    class Pipe(Console):
        def on_broken_pipe(self) -> None:
            raise

    if is_plain():
        return Pipe(stderr=stderr, highlight=False, color_system=None, no_color=True)
    return Pipe(stderr=stderr, highlight=False)


def can_draw(stream: IO[str] | None) -> bool:
    """Whether a progress bar may move the cursor there."""
    return stream is not None and stream.isatty() and not is_plain()


class Fitting:
    """A table where it fits; else every row as its name and a list of what its cells say.

    Parameters
    ----------
    drop : sequence of int
        Columns that say nothing outside of a table.
    """

    def __init__(self, table: Table, drop: Sequence[int] = ()) -> None:
        self._table, self._drop = table, drop

    def __rich_console__(self, console: Console, options: Any) -> Any:
        """The table or the list."""
        if self._narrowest() <= options.max_width:
            yield self._table
        else:
            yield from self._rows()

    def _narrowest(self) -> int:
        """The least width in which nothing is cut: rich's own counts what must not be broken."""
        table = self._table
        frame = len(table.columns) + 1 if table.box else 0
        _, right, _, left = table.padding
        padded = len(table.columns) if table.pad_edge else len(table.columns) - 1
        return frame + padded * (left + right) + sum(map(_narrowest, table.columns))

    def _rows(self) -> Any:
        from rich.padding import Padding
        from rich.text import Text

        name, *others = [
            column for i, column in enumerate(self._table.columns) if i not in self._drop
        ]
        for first, *cells in zip(name.cells, *(column.cells for column in others), strict=True):
            yield _text(first)
            said = [
                Text(" ").join(part for part in (_text(column.header), _text(cell)) if part.plain)
                for column, cell in zip(others, cells, strict=True)
                if _text(cell).plain
            ]
            yield Padding(Text(", ").join(said), (0, 0, 0, 2))
        if self._table.caption:
            yield _text(self._table.caption)


def _narrowest(column: Column) -> int:
    from rich.cells import cell_len

    texts = [_text(cell).plain for cell in (column.header, *column.cells)]
    parts = [text.splitlines() if column.no_wrap else text.split() for text in texts]
    return max((cell_len(part) for part in itertools.chain(*parts)), default=0)


def _text(cell: RenderableType) -> Text:
    from rich.text import Text

    return cell if isinstance(cell, Text) else Text(str(cell))


def _is_c_locale() -> bool:
    """Whether the locale is C by the user's word; where nothing is said, Python decides."""
    said = [os.environ[name] for name in ("LC_ALL", "LC_CTYPE", "LANG") if os.environ.get(name)]
    return bool(said) and said[0] in ("C", "POSIX")


def _in_ascii(error: UnicodeError) -> tuple[str | bytes, int]:
    """An encoder's error handler: a sign's usual spelling, else its escape."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    escaped, end = codecs.backslashreplace_errors(error)
    letter = error.object[error.start]
    return (_ASCII[letter], error.start + 1) if letter in _ASCII else (escaped, end)
