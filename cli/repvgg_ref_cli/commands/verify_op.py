"""`repvgg-ref verify-op`: is this kernel right, which output is wrong, which bug is it."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any

import click

from repvgg_ref_cli import completion
from repvgg_ref_cli.console import console
from repvgg_ref_cli.failures import DISAGREES
from repvgg_ref_cli.options import debug_option, json_option, print_json

if TYPE_CHECKING:
    from repvgg_ref.oracle.report import Report

# As in `operators.catalogue` and `bounds.precision` of the oracle, too heavy to import for --help.
OPERATORS = tuple(
    name + way
    for name in ("conv2d", "conv_bias_relu", "linear", "batch_norm", "repvgg_block")
    for way in ("", "-backward")
)
_PRECISIONS = ("auto", "fp32", "tf32", "bf16", "fp16", "fp16-acc16")


def _shapes(
    ctx: click.Context, param: click.Parameter, given: tuple[str, ...]
) -> dict[str, tuple[int, ...]]:
    """``x=2x8x9x7`` -> ``{"x": (2, 8, 9, 7)}``."""
    found = {}
    for text in given:
        name, equals, extents = text.partition("=")
        try:
            shape = tuple(int(extent) for extent in extents.split("x"))
        except ValueError:
            shape = ()
        if not equals or not shape or min(shape) < 1:
            raise click.BadParameter(f"{text!r} is not like x=2x8x9x7")
        found[name] = shape
    return found


def _settings(ctx: click.Context, param: click.Parameter, given: tuple[str, ...]) -> dict[str, Any]:
    """``stride=2``, ``padding=(1, 0)``, ``training=true``."""
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        try:
            read = ast.literal_eval(value.title() if value in ("true", "false") else value)
        except (ValueError, SyntaxError):
            read = None
        if not equals or not isinstance(read, int | float | tuple):
            raise click.BadParameter(f"{text!r} is not like stride=2 or training=true")
        found[name] = read
    return found


@click.command(name="verify-op", short_help="Say whether one operator's kernel is right.")
@click.argument("operator", type=click.Choice(OPERATORS), metavar="OP")
@click.option(
    "--candidate",
    required=True,
    metavar="CAND",
    shell_complete=completion.files,
    help="module:callable, file.py:callable, or an .npz dump of arrays and outputs.",
)
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    callback=_shapes,
    metavar="ARRAY=AxBxC",
    help="Shape of a made input, x=2x64x56x56. Several. [odd ones, so that bugs show]",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    callback=_settings,
    metavar="NAME=VALUE",
    help="A setting that the kernel is made for, stride=1. Several. [all are varied]",
)
@click.option(
    "--output",
    "outputs",
    multiple=True,
    metavar="NAME",
    help="An output to be judged, where not all are returned. Several. [all]",
)
@click.option(
    "--precision",
    type=click.Choice(_PRECISIONS),
    default="auto",
    show_default=True,
    help="What the kernel is held to.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=300.0,
    show_default=True,
    help="Seconds that it may take, each time it is started.",
)
@json_option
@debug_option
@click.pass_context
def command(
    ctx: click.Context,
    operator: str,
    candidate: str,
    shapes: dict[str, tuple[int, ...]],
    settings: dict[str, Any],
    outputs: tuple[str, ...],
    precision: str,
    timeout: float,
    as_json: bool,
) -> None:
    """Judge a kernel that computes the operator OP; no network is needed.

    \b
    OP is one of                   and is called as
      conv2d, conv_bias_relu         f(x, weight, bias, stride=, padding=, dilation=, groups=)
      linear                         f(x, weight, bias)
      batch_norm                     f(x, gamma, beta, running_mean, running_var,
                                       training=, momentum=, eps=)
      repvgg_block                   f(x, params, stride=, groups=, eps=)
    or one of them with -backward, which gets the gradient of the output first and returns
    gradients. What each takes and returns: `repvgg-ref docs kernels`.

    Inputs are made so that bugs show. Every output is held against a bound that correct arithmetic
    cannot exceed. Exit codes: 0 agrees, 1 disagrees, 2 cannot be judged.
    """  # noqa: D301 - \b is click's
    from repvgg_ref.oracle.operators.verification import verify_op

    report = verify_op(
        operator,
        candidate,
        precision=precision,
        shapes=shapes,
        outputs=outputs or None,
        timeout=timeout,
        **settings,
    )
    if as_json:
        print_json(report.to_json())
    elif report.layers:
        _show(report)
    if report.verdict == "disagree":
        ctx.exit(DISAGREES)
    if report.verdict == "cannot-judge":
        _refuse(report)


def _show(report: Report) -> None:
    from repvgg_ref_cli.terminal import render_terminal

    console().print(render_terminal(report))


def _refuse(report: Report) -> None:
    """Exit code 2, by the one line that goes with it."""
    from repvgg_ref.errors import ReportedError

    whose = "" if report.reason.startswith(report.candidate) else f"{report.candidate}: "
    raise ReportedError(f"cannot judge: {whose}{report.reason}")
