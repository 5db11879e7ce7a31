"""``-`` as a file name: bytes from stdin, bytes to stdout."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from repvgg_ref_cli.console import is_nowhere, naming_stdout

_Out = TypeVar("_Out", bound=Path | None)

_DASH, _TAKEN = "-", "repvgg_ref_cli.stdin"
_PREFIX = "repvgg-ref-stdin-"


class File(click.Path):
    """A path to read or to write."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path; the empty one, which `Path` takes for this folder, is refused."""
        if value == "":
            self.fail("the name is empty (a variable that is not set?)", param, ctx)
        return super().convert(value, param, ctx)


class InputFile(File):
    """A path; ``-`` is what comes on stdin, copied to a file that lives as long as the command.

    Readers go to and fro in a file, and tell what it holds by its content: the copy is called
    ``stdin``, without a suffix.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path, or that of the copy."""
        if str(value) != _DASH or ctx is None or ctx.resilient_parsing:
            return super().convert(value, param, ctx)
        return _copied(ctx, param)


class FileOrName(InputFile):
    """A file, or a name of something else: ``-`` as above, any other text as it stands."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The text, or the path of the copy."""
        return super().convert(value, param, ctx) if str(value) in ("", _DASH) else value


def without_copy(text: object) -> str:
    """`text` with ``stdin`` in the place of the copy's path, which says nothing to anybody."""
    said = str(text)
    return re.sub(rf"\S*{_PREFIX}\w+/stdin", "stdin", said) if _PREFIX in said else said


def is_dash(path: Path | None) -> bool:
    """Whether `path` stands for stdout."""
    return str(path) == _DASH


def refuse_two_on_stdout(out: Path | None, *, as_json: bool, option: str = "--out") -> None:
    """Raise if stdout would get bytes and a JSON object, or is a terminal, or closed."""
    if not is_dash(out):
        return
    if as_json:
        raise click.UsageError(f"{option} - and --json would both write to stdout; drop one")
    if sys.stdout is None or is_nowhere(sys.stdout):
        raise click.UsageError(f"{option} - writes bytes to stdout, which is closed")
    if sys.stdout.isatty():
        raise click.UsageError(f"{option} - writes bytes to stdout; send them to a pipe or a file")


def reads_stdin(ctx: click.Context) -> bool:
    """Whether one of the command's files came on stdin."""
    return _TAKEN in ctx.find_root().meta


@contextmanager
def destination(out: _Out, name: str) -> Iterator[_Out | Path]:
    """The path `out`; for ``-`` one called `name`, whose bytes then go to stdout, all or none."""
    import shutil

    if not is_dash(out):
        yield out
        return
    with tempfile.TemporaryDirectory(prefix="repvgg-ref-") as folder:
        path = Path(folder) / name
        yield path
        with path.open("rb") as file, naming_stdout():
            shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.buffer.flush()


def _copied(ctx: click.Context, param: click.Parameter | None) -> Path:
    import shutil

    root = ctx.find_root()
    if _TAKEN in root.meta:
        raise click.BadParameter("stdin can be read only once: one - a command", ctx, param)
    root.meta[_TAKEN] = True
    if sys.stdin is None or sys.stdin.isatty():
        raise click.BadParameter("- reads stdin, and nothing is piped into it", ctx, param)
    folder = tempfile.TemporaryDirectory(prefix=_PREFIX)
    root.call_on_close(folder.cleanup)
    path = Path(folder.name) / "stdin"
    with path.open("wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    return path
