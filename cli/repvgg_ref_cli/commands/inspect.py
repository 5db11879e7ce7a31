"""`repvgg-ref inspect`: what a weights file holds, without trusting it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repvgg_ref_cli.graph_report import WHY_NOT, inspected_json, show_inspected
from repvgg_ref_cli.modules_report import blocks_json, blocks_line
from repvgg_ref_cli.options import (
    INPUT,
    assumed_line,
    block_option,
    checkpoint_option,
    debug_option,
    eps_option,
    geometry_options,
    json_option,
    one_checkpoint,
    print_json,
    refuse_options,
    say,
    weights_set_option,
)
from repvgg_ref_cli.piped import without_copy

if TYPE_CHECKING:
    from repvgg_ref.files.inspect import Inspection

_COLOURS = {"error": "red", "warning": "yellow", "info": "cyan"}
_SHOWN, _EXAMPLES = 10, 4
_NARROWEST = 36  # columns; narrower terminals break the lines themselves


@click.command(short_help="Say what a weights file holds, without trusting it.")
@click.argument("file", type=INPUT, required=False)
@checkpoint_option("source", "--in", required=False, help="The same as FILE; - is stdin.")
@eps_option
@geometry_options
@weights_set_option
@block_option
@json_option
@debug_option
@click.pass_context
def command(
    ctx: click.Context,
    file: Path | None,
    source: Path | None,
    eps: float | None,
    strides: Any,
    dilations: Any,
    weights_set: Any,
    block: str,
    as_json: bool,
) -> None:
    """Say what FILE holds: container, names, form, model, what is missing, what looks wrong.

    Works on incomplete files too. Findings: NaN and infinity, negative variances, dead channels,
    float16 overflow, default statistics, a name that contradicts the content. The exit code is 0
    whatever is found, and 2 for a file that cannot be read. Of an ONNX graph: which linear parts
    `convert` makes one convolution of, and why the others stay.
    """
    from repvgg_ref.files.convert_graph import inspect_graph, is_graph
    from repvgg_ref.files.inspect import inspect_file

    source = one_checkpoint(file, source)
    if is_graph(source):
        refuse_options(ctx, ("eps", "strides", "dilations", "weights_set", "block"), WHY_NOT)
        graph = inspect_graph(source)
        if as_json:
            print_json(inspected_json(graph))
        else:
            show_inspected(source, graph)
        return
    found = inspect_file(
        source,
        eps=eps,
        weights=weights_set,
        block=block,
        strides=strides,
        dilations=dilations,
    )
    if as_json:
        print_json(_as_json(found))
    else:
        _show(found)


def _as_json(found: Inspection) -> dict[str, Any]:
    return {
        "container": found.container,
        "dialect": found.dialect,
        "form": found.form,
        "model": found.model,
        "block": found.block,
        "tensors": found.tensors,
        "unexpected": list(found.unexpected),
        "missing": list(found.missing),
        "findings": [
            {"level": f.level, "layer": f.layer, "message": f.message} for f in found.findings
        ],
        "assumed": found.assumed.to_json(),
        "metadata": dict(found.metadata),
        **({} if not found.blocks else blocks_json(found.blocks, found.tensors)),
    }


def _show(found: Inspection) -> None:
    from repvgg_ref.errors import by_kind
    from weights_io import sanitize

    click.echo(without_copy(sanitize(found.path)))
    for label, value in (
        ("container", found.container),
        ("names", found.dialect or "of no known dialect"),
        ("form", found.form),
        ("model", found.model or "none that is known"),
        *([("block", found.block)] if found.block else []),
        ("tensors", str(found.tensors)),
        *([("blocks", blocks_line(found.blocks))] if found.blocks else []),
    ):
        say(f"  {label:<11}{value}")
    _show_names("missing", found.missing)
    _show_names("unexpected", found.unexpected)
    for level in _COLOURS:
        alike = [(f.layer or "", f.message) for f in found.findings if f.level == level]
        for message, layers in by_kind(alike):
            _show_finding(level, message, layers)
    for message in assumed_line(found.assumed):
        _show_finding("info", message, [""])


def _show_names(label: str, names: tuple[str, ...]) -> None:
    from weights_io import sanitize

    if not names:
        return
    click.echo(f"  {label:<11}{len(names)}")
    for name in names[:_SHOWN]:
        click.echo(f"             {sanitize(name)}")
    if len(names) > _SHOWN:
        click.echo(f"             ... {len(names) - _SHOWN} more; --json lists them all")


def _show_finding(level: str, message: str, layers: list[str]) -> None:
    """What is said of the first of `layers`, and where else the same could be said."""
    import shutil
    import textwrap

    from repvgg_ref_cli.failures import printable
    from weights_io import shortened

    first, *others = layers
    said = shortened(f"{first}: {message}" if first else message)
    width = max(_NARROWEST, shutil.get_terminal_size().columns)
    lines = textwrap.wrap(printable(said), width - 13)
    if others:
        places = list(dict.fromkeys(layer for layer in others if layer))
        where = ", ".join(places[:_EXAMPLES]) + (", ..." if len(places) > _EXAMPLES else "")
        where = shortened(where)
        more = f"and {len(others)} more like it" + (f": {where}" if where else "")
        lines += textwrap.wrap(printable(f"{more} (--json lists all)"), width - 13)
    styled = click.style(f"{level:<11}", fg=_COLOURS[level])
    click.echo(f"  {styled}{lines[0]}")
    for line in lines[1:]:
        click.echo(" " * 13 + line)
