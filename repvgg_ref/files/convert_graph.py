"""An ONNX graph of any network in, the same with its linear parts fused out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import weights_io
from repvgg_ref.blocks.selfcheck import BlockCheck, worst
from repvgg_ref.errors import CheckpointError, by_kind
from repvgg_ref.files.convert import Format, target_of
from repvgg_ref.files.onnx_graph import runtime
from repvgg_ref.files.onnx_graph.load import read_onnx
from repvgg_ref.files.onnx_graph.packages import first_line, require
from repvgg_ref.files.onnx_graph.part import Part
from repvgg_ref.files.onnx_graph.plan import Left, Plan
from repvgg_ref.files.onnx_graph.reader import LinearReader
from repvgg_ref.files.onnx_graph.reorder import read_graph
from repvgg_ref.files.onnx_graph.rewrite import (
    Made,
    Progress,
    fused_parts,
    nodes_after,
    rewritten,
)
from repvgg_ref.files.onnx_graph.rules import RULES
from repvgg_ref.files.onnx_graph.view import View, label, opset_of
from repvgg_ref.files.suffixes import formats_of
from weights_io import open_regular, sanitize

OLDEST_OPSET = 7  # before it sums and products had rules of their own for shapes
_MOST_BYTES = 2**31 - 2**20  # protobuf's limit on one message, less the graph itself


# Field 1 is ir_version; then come producer, domain, model's version, graph or opsets.
_FIRST_BYTES, _VERSION, _NEWEST_VERSION = 9, 0x08, 64
_NEXT_FIELDS = frozenset({0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42})


class Merged(NamedTuple):
    """A part that is one convolution: its output, its nodes, multiply-accumulates a pixel."""

    output: str
    source: str
    nodes: tuple[str, ...]
    macs_before: float
    macs_after: float


@dataclass(frozen=True)
class GraphConversion:
    """What was done to a graph; `out` is None where nothing was written.

    `self_check` compares kernels in float64, `runtime_check` outputs in ONNX Runtime: at the part,
    and there at the output, that used most of its bound.
    """

    opset: int
    nodes_before: int
    nodes_after: int
    convs_before: int
    convs_after: int
    merged: tuple[Merged, ...]
    left: tuple[Left, ...]
    tensors: int
    out: Path | None
    self_check: BlockCheck | None
    runtime_check: BlockCheck | None
    notes: tuple[str, ...]


class _Read(NamedTuple):
    model: Any
    view: View
    reader: LinearReader
    plan: Plan


def is_graph(path: Path) -> bool:
    """Whether a file is an ONNX graph: by its name, or by its first bytes if that says nothing.

    A message of ONNX begins with its version, a small number, and goes on with another field.
    """
    if formats_of(path):
        return formats_of(path) == ("onnx",)
    try:
        with open_regular(path) as file:
            start = file.read(_FIRST_BYTES)
    except (OSError, ValueError):
        return False
    if len(start) < _FIRST_BYTES or start[0] != _VERSION or start[1] >= _NEWEST_VERSION:
        return False
    return start[2] in _NEXT_FIELDS and start[8:] != b"{"  # a header of safetensors


def inspect_graph(path: str | Path) -> GraphConversion:
    """What `convert_graph` would do; nothing is fused or written."""
    read = _read(Path(path))
    gone = read.plan.gone
    convs = _convs(read.view.nodes)
    lost = _convs([read.view.nodes[i] for i in gone])
    return GraphConversion(
        opset=read.view.opset,
        nodes_before=len(read.model.graph.node),
        nodes_after=nodes_after(read.view, read.plan.parts),
        convs_before=convs,
        convs_after=convs - lost + len(read.plan.parts),
        merged=_merged(read.model, read.view, read.plan.parts),
        left=read.plan.left,
        tensors=len(read.view.initializers),
        out=None,
        self_check=None,
        runtime_check=None,
        notes=(),
    )


def convert_graph(
    path: str | Path,
    out: str | Path | None = None,
    *,
    to: Format | None = None,
    progress: Progress | None = None,
) -> GraphConversion:
    """Make one convolution of every linear part of the graph at `path` that is one; write `out`.

    A part is fused where the algebra says that this is exact everywhere, borders included, and
    where it computes no more. All else is written as it was read.

    Parameters
    ----------
    path : str or Path
    out : str or Path, optional
        Default ``<path>-deploy.onnx`` beside it.
    to : str, optional
        "onnx", where the suffix of `out` does not say it.
    progress : callable, optional
        ``progress(tensor, done, total)`` after every part.

    Raises
    ------
    CheckpointError
        If the file is no valid ONNX model, or would exceed 2 GiB, or `out` is to be no ONNX file.
    MissingExtraError
        If the onnx package is not installed.
    SelfCheckError
        If a convolution differs from its part by more than rounding. Nothing is written.
    """
    path = Path(path)
    target, kind = target_of(path, out, to or (None if out else "onnx"))
    if kind != "onnx":
        raise CheckpointError(
            "a graph can be written as a graph only",
            got=f"format {kind}",
            wanted="format onnx, a name ending in .onnx",
        )
    model, view, reader, plan = _read(path)
    made, refused = fused_parts(plan, view, reader.arrays, progress)
    notes: list[str] = []
    seen = _seen_running(made, view, reader, model, notes)
    result = rewritten(model, view, made)
    _write(path, target, model, result)
    return GraphConversion(
        opset=view.opset,
        nodes_before=len(model.graph.node),
        nodes_after=len(result.graph.node),
        convs_before=_convs(view.nodes),
        convs_after=_convs(result.graph.node),
        merged=_merged(model, view, [each.part for each in made]),
        left=(*plan.left, *refused),
        tensors=len(result.graph.initializer),
        out=target,
        self_check=worst([each.check for each in made]) if made else None,
        runtime_check=worst(seen) if seen else None,
        notes=tuple(notes),
    )


def _read(path: Path) -> _Read:
    onnx = require("onnx")
    require("onnx.checker")
    model = read_onnx(path)
    name = sanitize(path.name)
    try:
        onnx.checker.check_model(model)
    except Exception as error:
        raise CheckpointError(
            f"{name}: is no valid ONNX model, says onnx.checker", got=first_line(error)
        ) from None
    opset = opset_of(model)
    if opset < OLDEST_OPSET:
        raise CheckpointError(
            f"{name}: its opset is too old to be fused",
            got=opset or "none of ONNX's own",
            wanted=f"at least {OLDEST_OPSET}",
            advice="onnx.version_converter.convert_version(model, 13) brings it up to date",
        )
    return _Read(model, *read_graph(model, RULES))


def _seen_running(
    made: list[Made], view: View, reader: LinearReader, model: Any, notes: list[str]
) -> list[BlockCheck]:
    """Every part in ONNX Runtime, as far as that is installed and has the operators."""
    if not runtime.is_installed():
        if made:
            notes.append('not run: pip install "repvgg-ref[onnx]" lets ONNX Runtime check it, too')
        return []
    seen, failed = [], []
    for each in made:
        try:
            seen.append(runtime.check_part(each, view, reader.arrays, model))
        except runtime.RuntimeLacks as why:
            failed.append((each.part.output, str(why)))
            continue
        seen[-1].raise_if_bad()
    for reason, places in by_kind(failed):
        more = f" (and {len(places) - 1} more)" if len(places) > 1 else ""
        notes.append(f"{sanitize(places[0])}{more}: not run: {reason}")
    return seen


def _write(path: Path, out: Path, model: Any, result: Any) -> None:
    onnx = require("onnx")
    size = result.ByteSize()
    if size > _MOST_BYTES:
        raise CheckpointError(
            f"{sanitize(path.name)}: is too large for an ONNX file",
            got=f"{size} bytes",
            wanted=f"at most {_MOST_BYTES}",
        )
    fully = _passes_fully(onnx, model)
    with weights_io.atomic_path(out) as temporary:
        onnx.save_model(result, str(temporary))
        onnx.checker.check_model(str(temporary), full_check=fully)


def _passes_fully(onnx: Any, model: Any) -> bool:
    """Whether the original's types and shapes are such that the checker can be as strict."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception:  # the plain check has passed
        return False
    return True


def _convs(nodes: Any) -> int:
    return sum(node.op_type == "Conv" for node in nodes)


def _merged(model: Any, view: View, parts: Iterable[Part]) -> tuple[Merged, ...]:
    """By the names that the file has; a sum may have been put in another order."""
    there = set(map(label, model.graph.node))
    return tuple(
        Merged(
            part.output,
            part.reading.source,
            tuple(name for name in map(view.label, part.nodes) if name in there),
            float(part.macs_before),
            float(part.macs_after),
        )
        for part in parts
    )
