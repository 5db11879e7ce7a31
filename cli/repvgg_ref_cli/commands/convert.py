"""`repvgg-ref convert`: a training-time checkpoint in, the exactly fused model out."""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repvgg_ref_cli import completion
from repvgg_ref_cli.graph_report import OF_A_CHECKPOINT, WHY_NOT, graph_json, show_graph
from repvgg_ref_cli.modules_report import modules_json, show_modules
from repvgg_ref_cli.options import (
    FILE,
    FORMATS,
    INPUT,
    assumed_line,
    block_option,
    checkpoint_option,
    debug_option,
    eps_option,
    geometry_options,
    json_option,
    model_option,
    note,
    one_checkpoint,
    print_json,
    refuse_options,
    say,
    weights_set_option,
)
from repvgg_ref_cli.piped import destination, is_dash, reads_stdin, refuse_two_on_stdout

if TYPE_CHECKING:
    from repvgg_ref.files.convert import Conversion
    from repvgg_ref.files.convert_modules import ModulesConversion
    from weights_io import Archive

_DTYPES = {"fp16": "float16", "fp32": "float32", "fp64": "float64"}
# Options that say nothing of a file of blocks.
_OF_A_NETWORK = ("model", "block", "strides", "dilations", "batch", "size", "dtype", "opset")
_NEXT = {
    "npz": "python: repvgg_ref.load({out}).forward(x), or numpy.load({out})",
    "safetensors": "python: repvgg_ref.load({out}).forward(x)",
    "pth": "official code: {create}model.load_state_dict(torch.load({out}, weights_only=True))",
    "onnx": "python: onnxruntime.InferenceSession({out}).run(None, {{'input': x}})",
}


def _extents(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> tuple[int, int] | None:
    """``224`` or ``224x320`` (height first) as a pair."""
    if value is None:
        return None
    height, _, width = value.partition("x")
    if not re.fullmatch(r"[1-9]\d{0,4}(x[1-9]\d{0,4})?", value):
        raise click.BadParameter("a size is N or HxW, in pixels")
    return int(height), int(width or height)


@click.command(short_help="Fuse a training checkpoint and write its deploy form.")
@click.argument("file", type=INPUT, required=False)
@checkpoint_option("source", "--in", required=False, help="The same as FILE; - is stdin.")
@click.option(
    "--out",
    type=FILE,
    help="Where to write; the suffix says the format; - is stdout. [FILE-deploy.npz]",
)
@click.option("--to", type=click.Choice(FORMATS), help="The format, if the suffix does not say it.")
@model_option
@block_option
@eps_option
@geometry_options
@weights_set_option
@click.option(
    "--family",
    default="auto",
    show_default=True,
    metavar="auto|KIND",
    shell_complete=completion.family,
    help="Of a file that is no RepVGG: which kind of block to fuse, as `docs family` lists them.",
)
@click.option(
    "--batch", type=click.IntRange(min=1), help="Fixed batch of an ONNX file; default dynamic."
)
@click.option(
    "--size",
    callback=_extents,
    metavar="N|HxW",
    help="Fixed height and width of an ONNX file; default dynamic.",
)
@click.option(
    "--dtype",
    type=click.Choice(list(_DTYPES)),
    help="What numbers are rounded to, once; default as stored, at least fp32. Not for a file of "
    "blocks of other networks: there every fused array has its own kernels' type, fp16 included.",
)
@click.option("--opset", type=int, metavar="N", help="Operators of an ONNX file. [17]")
@json_option
@debug_option
@click.pass_context
def command(
    ctx: click.Context,
    file: Path | None,
    source: Path | None,
    out: Path | None,
    to: Any,
    model: str,
    eps: float | None,
    strides: Any,
    dilations: Any,
    weights_set: Any,
    family: str,
    block: str,
    batch: int | None,
    size: tuple[int, int] | None,
    dtype: str | None,
    opset: int | None,
    as_json: bool,
) -> None:
    """Fuse the training checkpoint FILE in float64, round once, check, and write the deploy form.

    What comes on stdin (FILE -) goes to stdout, unless --out says otherwise.

    A file that is no RepVGG but holds blocks of its family (YOLO, RT-DETR, PP-OCR, MobileOne)
    is fused block by block; everything else in it stays as it is.

    An ONNX graph of any network is written as ONNX again: its linear parts become one convolution
    each where that is exact everywhere, borders included, and costs no more; the rest stays.

    Reads torch files (zip and legacy), pickled arrays, npz and safetensors, with the names of the
    official code, timm, mmpretrain or MegEngine. Nothing in a file is ever run. The result is
    checked against its branches, block by block, before it appears under its name.
    """
    from repvgg_ref.files.convert import convert
    from repvgg_ref_cli.progress import ProgressBar
    from weights_io import open_weights

    source = one_checkpoint(file, source)
    if out is None and reads_stdin(ctx):
        out = Path("-")
    refuse_two_on_stdout(out, as_json=as_json)
    if _is_graph(source):
        refuse_options(ctx, OF_A_CHECKPOINT, WHY_NOT)
        _graph(source, out, to, as_json=as_json)
        return
    with (
        destination(out, f"stdout.{to or 'npz'}") as path,
        ProgressBar("fusing") as progress,
        open_weights(source) as archive,
    ):
        if family != "auto" or _holds_modules(source, weights_set, archive):
            refuse_options(ctx, _OF_A_NETWORK, "a file of blocks keeps its types, and has no graph")
            fused = _modules(source, path, to, family, eps, weights_set, progress, archive)
            if not as_json:
                show_modules(source, fused, to_stdout=is_dash(out))
                return
            for message in fused.notes:
                note(message)
            print_json(modules_json(fused))
            return
        done = convert(
            source,
            path,
            model=model,
            eps=eps,
            to=to,
            weights=weights_set,
            block=block,
            strides=strides,
            dilations=dilations,
            batch=batch,
            size=size,
            dtype=None if dtype is None else _DTYPES[dtype],
            opset=opset,
            progress=progress,
            archive=archive,
        )
        if not as_json:
            _show(source, done, to_stdout=is_dash(out))
    if as_json:
        for message in (*done.notes, *assumed_line(done.assumed)):
            note(message)
        print_json(_as_json(done))


def _is_graph(source: Path) -> bool:
    from repvgg_ref.files.convert_graph import is_graph

    return is_graph(source)


def _graph(source: Path, out: Path | None, to: Any, *, as_json: bool) -> None:
    """Fuse the linear parts of an ONNX graph, and say what became of it."""
    from repvgg_ref.files.convert_graph import convert_graph
    from repvgg_ref_cli.progress import ProgressBar

    with destination(out, "stdout.onnx") as path, ProgressBar("fusing") as progress:
        done = convert_graph(source, path, to=to, progress=progress)
        if not as_json:
            show_graph(source, done, to_stdout=is_dash(out))
    if as_json:
        for message in done.notes:
            note(message)
        print_json(graph_json(done))


def _holds_modules(source: Path, weights: Any, archive: Archive) -> bool:
    """Asked first where that costs little: a file of arrays is looked into by its names alone."""
    from repvgg_ref.files.convert_modules import holds_modules

    return holds_modules(source, weights, archive)


def _modules(
    source: Path,
    out: Path | None,
    to: Any,
    family: str,
    eps: float | None,
    weights: Any,
    progress: Any,
    archive: Archive,
) -> ModulesConversion:
    from repvgg_ref.files.convert import target_of
    from repvgg_ref.files.convert_modules import convert_modules

    target, kind = target_of(source, out, to)
    how: Any = {"family": family, "eps": eps, "weights": weights, "progress": progress}
    return convert_modules(source, target, kind, **how, archive=archive)


def _as_json(done: Conversion) -> dict[str, Any]:
    check = done.self_check
    return {
        "model": done.model,
        "dialect": done.dialect,
        "container": done.container,
        "form": done.form,
        "tensors": done.tensors,
        "out": str(done.out),
        "format": done.format,
        "self_check": check and check.to_json(),
        "assumed": done.assumed.to_json(),
        "dtype": done.dtype,
        "opset": done.opset,
    }


def _show(source: Path, done: Conversion, *, to_stdout: bool) -> None:
    """Tell people; on stderr if stdout gets the file itself."""
    from weights_io import sanitize

    tell = partial(say, err=to_stdout)
    tell(
        f"read   {sanitize(source.name)}: {done.model}, {done.form} form, "
        f"{done.dialect} names, {done.container}"
    )
    for message in done.notes:
        tell(f"       {message}")
    size, where = done.out.stat().st_size / 1e6, "stdout" if to_stdout else sanitize(done.out)
    kind = done.format if done.dtype == "float32" else f"{done.format}, {done.dtype}"
    tell(f"wrote  {where}: {done.tensors} arrays, {size:.2f} MB, {kind}")
    check = done.self_check
    if check is None:
        tell("       it was fused already: rewritten as it is, no branches to check")
    else:
        tell(
            f"check  fused = branches in every block; closest to its bound: {check.layer}, "
            f"error {check.max_error:.2g}, bound {check.bound:.2g}"
        )
    for message in assumed_line(done.assumed):
        tell(f"       {message}")
    if to_stdout:
        return
    if done.format == "onnx" and done.dtype == "float64":
        tell("next   another runtime than ONNX Runtime, whose CPU convolves no float64")
        return
    tell(f"next   {_NEXT[done.format].format(out=_expression(done.out), create=_create(done))}")


def _expression(path: Path) -> str:
    """What Python reads as this path: a literal, or its bytes if they are no UTF-8."""
    name = str(path)
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return f"os.fsdecode({os.fsencode(name)!r})"
    return repr(name)


def _create(done: Conversion) -> str:
    """How the official code builds the model, if it has a function for it."""
    from repvgg_ref.models.architectures import NAMES, architecture
    from repvgg_ref.models.geometry import geometry_of

    family, _, size = done.model.partition("-")
    if family.startswith("PSPNet"):
        if done.form == "train":
            return "with the PSPNet built, and its backbone's blocks switched to deploy: "
        return "with a model in this form, in its heads no batch norms either: "
    if done.model not in NAMES or family != "RepVGG":
        return "with the model built with deploy=True: "
    if done.geometry != geometry_of(architecture(done.model)):
        return "with the model built with deploy=True and these strides and dilations: "
    return f"model = create_RepVGG_{size}(deploy=True); "
