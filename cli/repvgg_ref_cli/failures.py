"""From an exception to one line on stderr and an exit code."""

from __future__ import annotations

import os
import sys
import traceback

import click

DISAGREES, IMPOSSIBLE, INTERRUPTED, BROKEN_PIPE = 1, 2, 130, 141


def report(error: BaseException, *, debug: bool) -> int:
    """Print ``error: ...`` on stderr and return the exit code that `error` stands for."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else IMPOSSIBLE
    line, code = _explain(error)
    if debug:
        traceback.print_exception(error)
    click.echo(f"error: {printable(line)}", err=True)
    return code


def printable(text: str) -> str:
    """`text` on one line and without control characters, which a file's names may carry."""
    joined = " ".join(text.splitlines())
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
        for letter in joined
    )


def leave_quietly() -> int:
    """The reader of our output has gone (``| head``): stop without a word, as programs do."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())  # so that the interpreter's own last flush succeeds
    except (OSError, ValueError):
        pass
    return BROKEN_PIPE


def _explain(error: BaseException) -> tuple[str, int]:
    if isinstance(error, click.ClickException):
        return _usage(error), IMPOSSIBLE
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return "interrupted; nothing half-written is left", INTERRUPTED
    if isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename is not None else ""
        return f"{name}{error.strerror or error}", IMPOSSIBLE
    if isinstance(error, MemoryError):
        return "not enough memory", IMPOSSIBLE
    return _of_the_package(error)


def _usage(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "repvgg-ref"
    return f"{error.format_message().rstrip('.')} (see `{command} --help`)"


def _of_the_package(error: BaseException) -> tuple[str, int]:
    from repvgg_ref.blocks.selfcheck import SelfCheckError
    from repvgg_ref.errors import ReportedError

    if isinstance(error, SelfCheckError):
        return str(error), DISAGREES
    if isinstance(error, ReportedError):
        return str(error), IMPOSSIBLE
    kind = type(error).__name__
    return (
        f"unexpected {kind}: {error} (this is a bug in repvgg-ref ; --debug shows where)",
        IMPOSSIBLE,
    )
