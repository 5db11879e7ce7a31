"""Options that several subcommands share, and how each prints its JSON."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from repvgg_ref_cli import completion
from repvgg_ref_cli.failures import printable
from repvgg_ref_cli.piped import File, InputFile, is_dash

if TYPE_CHECKING:
    from repvgg_ref.models.about import Assumed

_F = TypeVar("_F", bound=Callable[..., Any])

# As in `backends` and `files.convert` of repvgg_ref, which are too heavy to import for --help.
BACKENDS = ("reference", "numpy", "cupy", "auto")
FORMATS = ("npz", "safetensors", "pth", "onnx")
# "auto", "measure" and those of `repvgg_ref.cpu.convolution.algorithms`.
ALGORITHMS = ("auto", "measure", "direct", *(f"winograd{m}" for m in (2, 4, 5, 6, 7)))

FILE = File()
INPUT = InputFile()


class Output(File):
    """Where something is written; a name that promises another format is refused; ``-`` is stdout.

    `written` is a format as `repvgg_ref.files.suffixes` calls it.
    """

    def __init__(self, written: str) -> None:
        super().__init__()
        self.written = written

    def convert(self, value: Any, param: Any, ctx: click.Context | None) -> Any:
        """The path, if its name fits and no other option has it."""
        from repvgg_ref.files.suffixes import SuffixError, require_suffix

        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if is_dash(path):
            return path
        try:
            require_suffix(path, self.written)
        except SuffixError as error:
            self.fail(str(error), param, ctx)
        outputs = ctx.meta.setdefault("outputs", {}) if ctx is not None else {}
        if outputs.setdefault(path.absolute(), param) is not param:
            self.fail(f"{path.name!r} is the output of another option, too", param, ctx)
        return path


FOLDER = Output("a folder")


@dataclass
class Settings:
    """What the whole run shares."""

    debug: bool = False
    as_json: bool = False
    answered: bool = False  # stdout has its JSON object


def _remember_debug(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    settings = ctx.find_object(Settings)
    if wanted and settings is not None:
        settings.debug = True


def _finite_eps(ctx: click.Context, param: click.Parameter, eps: float | None) -> float | None:
    if eps is not None and not (math.isfinite(eps) and eps >= 0):
        raise click.BadParameter("eps is a finite number of at least 0")
    return eps


def checkpoint_option(
    name: str, *aliases: str, help: str, required: bool = True, **settings: Any
) -> Callable[[_F], _F]:
    """``--checkpoint``, what every command calls the file it starts from, and its older names."""
    chosen: dict[str, Any] = {"type": INPUT, "metavar": "FILE"} | settings
    return click.option("--checkpoint", *aliases, name, required=required, help=help, **chosen)


def one_checkpoint(argument: Path | None, option: Path | None) -> Path:
    """The file named with or without ``--checkpoint``, which must be one."""
    if argument is not None and option is not None:
        raise click.UsageError(f"two checkpoints, {argument} and {option}; name one")
    if (chosen := option or argument) is None:
        raise click.UsageError("name a checkpoint, FILE or --checkpoint FILE")
    return chosen


def _steps(
    ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]
) -> dict[str, int] | None:
    """``stage4.0=1,stage0=1`` as a table; None if nothing is said."""
    steps: dict[str, int] = {}
    for entry in ",".join(texts).split(",") if texts else ():
        block, _, step = (part.strip() for part in entry.partition("="))
        if not block or not (step.isascii() and step.isdigit()):
            raise click.BadParameter(f"{entry!r} is no BLOCK=N, such as stage4.0=1")
        if steps.setdefault(block, int(step)) != int(step):
            raise click.BadParameter(f"{block} is given two numbers")
    return steps or None


def geometry_options(command: _F) -> _F:
    """``--strides`` and ``--dilations``, for every command that reads a network from a file."""
    for what, example in (("dilations", "stage4.0=2"), ("strides", "stage4.0=1,stage0=1")):
        command = click.option(
            f"--{what}",
            multiple=True,
            callback=_steps,
            metavar="BLOCK=N,...",
            help=f"Of blocks that are not as in the official network ({example}).",
        )(command)
    return command


debug_option = click.option(
    "--debug",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_remember_debug,
    help="Show the traceback of an error.",
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout, and nothing else."
)
eps_option = click.option(
    "--eps",
    type=float,
    show_default="1e-05, or what the file says",
    callback=_finite_eps,
    help="Batch norm's eps, which is in no torch checkpoint. Keras ports, YOLOv6: 1e-3.",
)
model_option = click.option(
    "--model",
    default="auto",
    show_default=True,
    metavar="auto|custom|NAME",
    shell_complete=completion.models,
    help="What the shapes must be; auto tells it from them.",
)
block_option = click.option(
    "--block",
    default="auto",
    show_default=True,
    metavar="auto|NAME",
    shell_complete=completion.blocks,
    help="The kind of block; auto tells it from what the file says, else from its keys.",
)
ema_option = click.option("--ema", is_flag=True, help="Take a training checkpoint's EMA weights.")
weights_set_option = click.option(
    "--weights",
    "weights_set",
    default="model",
    show_default=True,
    metavar="model|ema|NAME",
    help="Which of a training checkpoint's sets to take; NAME is an entry, or a prefix of names.",
)
backend_option = click.option(
    "--backend",
    type=click.Choice(BACKENDS),
    envvar="REPVGG_BACKEND",
    default="numpy",
    show_default=True,
    show_envvar=True,
    help="Where arrays are computed.",
)

algorithm_option = click.option(
    "--algorithm",
    type=click.Choice(ALGORITHMS),
    default="auto",
    show_default=True,
    metavar="auto|measure|direct|winograd4|...",
    help="How the numpy backend convolves the fused form. auto errs by at most 2e-5 of the largest "
    "output, direct by 1e-6; measure times them once and remembers.",
)


def print_json(value: Mapping[str, Any]) -> None:
    """Print exactly one JSON object, on one line; NaN is never written."""
    click.echo(json.dumps(value, allow_nan=False))
    settings = click.get_current_context().find_object(Settings)
    if settings is not None:
        settings.answered = True


def note(message: str) -> None:
    """Tell people something beside the result: one line on stderr."""
    say(f"note: {message}", err=True)


def say(line: str, *, err: bool = False) -> None:
    """Print one line for people, whatever characters the names in it are made of."""
    click.echo(printable(line), err=err)


def assumed_line(assumed: Assumed) -> list[str]:
    """What to tell people of an assumption: one line, or none."""
    if not assumed:
        return []
    others = [] if assumed.eps is None or assumed.is_fused else ["--eps"]
    others += [f"--{what}" for what, steps in assumed.steps.items() if steps]
    advice = [f"{', '.join(others)} say otherwise"] if others else []
    if assumed.is_fused:
        advice.append("of another eps, fuse the trained file again")
    # Of blocks that somebody did say, "else" in `assumed` tells nothing.
    return [f"assumed, where nobody has said otherwise, {assumed}; {'; '.join(advice)}"]


def refuse_options(ctx: click.Context, names: Iterable[str], why: str) -> None:
    """Refuse options that were given and would say nothing: unheard, they would mislead."""
    given = [
        param.opts[-1]
        for param in ctx.command.params
        if param.name in set(names)
        and ctx.get_parameter_source(param.name) is ParameterSource.COMMANDLINE
    ]
    if given:
        raise click.UsageError(f"{', '.join(given)} cannot be given here: {why}")
