"""From an exception to one line on stderr and an exit code."""

from __future__ import annotations

import json
import os
import re
import sys
import traceback
from dataclasses import asdict, dataclass

import click

from repvgg_ref_cli.console import name_of
from repvgg_ref_cli.piped import without_copy
from repvgg_ref_cli.suggestions import suggestion

_LONGEST = 5000  # characters of a line: four long parts and what stands between them
DISAGREES, IMPOSSIBLE, INTERRUPTED, BROKEN_PIPE = 1, 2, 130, 141


@dataclass(frozen=True)
class Failure:
    """What went wrong, as JSON has it; `message` is the line on stderr.

    `kind` is one of usage, input, check-failed, system, memory, interrupted and bug; `got`,
    `wanted` and `advice` are parts of `message`, None where there is none.
    """

    kind: str
    message: str
    exit_code: int = IMPOSSIBLE
    got: str | None = None
    wanted: str | None = None
    advice: str | None = None

    def to_json(self) -> str:
        """The one object that stands for a result which could not be had."""
        said = {
            name: printable(value) if isinstance(value, str) else value
            for name, value in asdict(self).items()
        }
        return json.dumps({"error": said})


def report(error: BaseException, *, debug: bool, as_json: bool = False) -> int:
    """Print ``error: ...`` on stderr and return the exit code that `error` stands for.

    With `as_json` the same goes to stdout as an object.
    """
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else IMPOSSIBLE
    failure = _explain(error)
    if debug:
        traceback.print_exception(error)
    try:
        click.echo(f"error: {printable(failure.message)}", err=True)
        if as_json:
            click.echo(failure.to_json())
            sys.stdout.flush()
    except OSError:
        leave_quietly()  # nobody listens, or the disk is full: the exit code says it
    return failure.exit_code


def printable(text: str) -> str:
    """`text` on one line, without control characters, which a file's names may carry, and cut."""
    from weights_io.text import shortened

    joined = " ".join(without_copy(text[:_LONGEST]).splitlines())
    cut = f"... ({len(text)} characters)" if len(text) > _LONGEST else ""
    return shortened(joined, _LONGEST) + cut


def leave_quietly() -> int:
    """The reader of our output has gone (``| head``): stop without a word, as programs do."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())  # so that the interpreter's own last flush succeeds
    except (OSError, ValueError):
        pass
    return BROKEN_PIPE


def _explain(error: BaseException) -> Failure:
    if isinstance(error, click.ClickException):
        return _usage(error)
    if isinstance(error, KeyboardInterrupt | click.Abort):
        message = "interrupted; nothing half-written is left"
        return Failure("interrupted", message, INTERRUPTED)
    if isinstance(error, OSError):
        where = name_of(error)
        name = "" if where is None else f"{where}: "
        if isinstance(error, IsADirectoryError):
            return Failure("system", f"{name}is a folder (wanted a file)", wanted="a file")
        return Failure("system", f"{name}{error.strerror or error}")
    if isinstance(error, MemoryError):
        return Failure("memory", "not enough memory")
    return _of_the_package(error)


def _usage(error: click.ClickException) -> Failure:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "repvgg-ref"
    advice = f"see `{command} --help`"
    if meant := suggestion(error):
        advice = f"{meant} ; {advice}"
    # Its own suggestions, which depend on click's version, are left out.
    said = error.message if isinstance(error, click.NoSuchOption) else error.format_message()
    param, is_missing = getattr(error, "param", None), isinstance(error, click.MissingParameter)
    if (
        isinstance(param, click.Argument)
        and isinstance(param.type, click.Choice)
        and not is_missing
    ):
        # click calls such an argument by its choices, which the message lists anyway
        said = f"Invalid value for {(param.name or '').upper()}: {error.message}"
    said = re.sub(r"\s*\n\s*", " ", said).rstrip(".")  # click lists choices one a line
    return Failure("usage", f"{said} ({advice})", advice=advice)


def _of_the_package(error: BaseException) -> Failure:
    from repvgg_ref.blocks.selfcheck import SelfCheckError
    from repvgg_ref.errors import ReportedError

    if isinstance(error, ReportedError):
        failed = isinstance(error, SelfCheckError)
        return Failure(
            "check-failed" if failed else "input",
            str(error),
            DISAGREES if failed else IMPOSSIBLE,
            None if error.got is None else str(error.got),
            None if error.wanted is None else str(error.wanted),
            error.advice,
        )
    advice = "this is a bug in repvgg-ref ; --debug shows where"
    said = f"unexpected {type(error).__name__}: {error}"
    return Failure("bug", f"{said} ({advice})", advice=advice)
