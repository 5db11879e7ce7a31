"""The `repvgg-ref` command: finds the subcommand, runs it, turns what goes wrong into one line.

Nothing heavy is imported here: `repvgg-ref --help` must answer at once, and a subcommand pays for
what it uses only.
"""

from __future__ import annotations

import importlib
import itertools
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from types import FrameType

import click

from repvgg_ref_cli import completion
from repvgg_ref_cli.console import is_plain, naming_stdout, prepare_streams
from repvgg_ref_cli.failures import leave_quietly, printable, report
from repvgg_ref_cli.options import Settings, debug_option, note

COMMANDS = (
    "convert",
    "inspect",
    "verify",
    "verify-op",
    "golden",
    "quantize",
    "advise",
    "table",
    "predict",
    "eval",
    "shards",
    "train",
    "bench",
    "demo",
    "doctor",
    "docs",
    "completion",
)


class _Subcommands(click.Group):
    """Finds a subcommand in the module of its name, imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"repvgg_ref_cli.commands.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command


def _version(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"repvgg-ref {version('repvgg-ref')}")
        ctx.exit()


@click.group(
    cls=_Subcommands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Show the version and leave.",
)
@debug_option
@click.pass_context
def cli(ctx: click.Context) -> None:
    """RepVGG (arXiv 2101.03697): exact fusion of training checkpoints, without PyTorch.

    Start with `repvgg-ref demo`; the main job is `repvgg-ref convert train.pth`.

    Exit codes: 0 done, 1 a check failed, 2 could not do it (one line on stderr says why).
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
    elif os.environ.keys() & {"REPVGG_MEMORY", "REPVGG_NUM_THREADS", "REPVGG_WORKERS"}:
        from repvgg_ref.cpu.budget import required_memory
        from repvgg_ref.cpu.workers.crew import available
        from repvgg_ref.cpu.workers.pool import default_threads

        available(default_threads())  # what they cannot mean is told before any work
        required_memory()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; never raises, never shows a traceback."""
    if arguments is None and (instruction := os.environ.get(completion.VARIABLE)):
        return completion.answer(cli, instruction)
    prepare_streams()
    previous = signal.signal(signal.SIGTERM, _terminate)
    asked = sys.argv[1:] if arguments is None else list(arguments)
    # Told apart here, since what cannot be parsed is to be told as JSON, too.
    settings = Settings(as_json="--json" in itertools.takewhile(lambda word: word != "--", asked))
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warned
            code = _run(asked, settings)
        if sys.stdout is not None:
            with naming_stdout():
                sys.stdout.flush()  # a full disk or a closed pipe shows here, not at exit
    except BrokenPipeError:
        return leave_quietly()
    except BaseException as error:
        as_json = settings.as_json and not settings.answered
        return report(error, debug=settings.debug, as_json=as_json)
    finally:
        signal.signal(signal.SIGTERM, previous)
    return code


def _run(arguments: list[str], settings: Settings) -> int:
    try:
        color = False if is_plain() else None
        with cli.make_context("repvgg-ref", arguments, obj=settings, color=color) as context:
            cli.invoke(context)
    except click.exceptions.Exit as done:
        return done.exit_code
    return 0


def _warned(message: Warning | str, *where: object, **more: object) -> None:
    """A library's warning as a note: people need not know which line of whose code said so."""
    note(printable(str(message)))


def _terminate(number: int, frame: FrameType | None) -> None:
    """Leave through the `finally` blocks, so that no half-written file stays behind."""
    raise SystemExit(128 + number)
