"""What `convert` and `inspect` say of an ONNX graph, to people and as JSON."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repvgg_ref_cli.options import say

if TYPE_CHECKING:
    from repvgg_ref.files.convert_graph import GraphConversion

_SHOWN = 12
# Options that say nothing of a graph.
OF_A_CHECKPOINT = (
    *("model", "block", "eps", "strides", "dilations", "weights_set", "family"),
    *("batch", "size", "dtype", "opset"),
)
WHY_NOT = "an ONNX graph says all of this itself, and keeps it"


def graph_json(done: GraphConversion) -> dict[str, Any]:
    """The object that ``repvgg-ref convert --json`` prints."""
    return {
        "model": None,
        "dialect": None,
        "container": "onnx",
        "form": "graph",
        "tensors": done.tensors,
        "out": None if done.out is None else str(done.out),
        "format": "onnx",
        "self_check": done.self_check and done.self_check.to_json(),
        "runtime_check": done.runtime_check and done.runtime_check.to_json(),
        "opset": done.opset,
        **places_json(done),
    }


def places_json(done: GraphConversion) -> dict[str, Any]:
    """What both commands say of a graph's places."""
    return {
        "nodes_before": done.nodes_before,
        "nodes_after": done.nodes_after,
        "convs_before": done.convs_before,
        "convs_after": done.convs_after,
        "merged": [
            {
                "output": each.output,
                "source": each.source,
                "nodes": list(each.nodes),
                "macs_before": each.macs_before,
                "macs_after": each.macs_after,
            }
            for each in done.merged
        ],
        "left": [{"node": each.node, "reason": each.reason} for each in done.left],
    }


def inspected_json(found: GraphConversion) -> dict[str, Any]:
    """The object that ``repvgg-ref inspect --json`` prints."""
    return {
        "container": "onnx",
        "dialect": None,
        "form": "graph",
        "model": None,
        "tensors": found.tensors,
        "unexpected": [],
        "missing": [],
        "findings": [
            {"level": "info", "layer": each.node, "message": f"left as it is: {each.reason}"}
            for each in found.left
        ],
        "opset": found.opset,
        **places_json(found),
    }


def show_graph(source: Path, done: GraphConversion, *, to_stdout: bool) -> None:
    """Tell people; on stderr if stdout gets the file itself."""
    from weights_io import sanitize

    tell = partial(say, err=to_stdout)
    tell(
        f"read   {sanitize(source.name)}: a graph of {done.nodes_before} nodes, "
        f"{done.convs_before} convolutions, opset {done.opset}"
    )
    for line in _lines(done):
        tell(f"       {line}")
    for message in done.notes:
        tell(f"       {message}")
    where = "stdout" if to_stdout else sanitize(str(done.out))
    tell(f"wrote  {where}: {done.nodes_after} nodes, {done.convs_after} convolutions")
    for what, check in (
        ("fused = parts, kernel by kernel", done.self_check),
        ("the same from ONNX Runtime at every pixel", done.runtime_check),
    ):
        if check is not None:
            tell(
                f"check  {what}; closest to its bound: {sanitize(check.layer)}, "
                f"error {check.max_error:.2g}, bound {check.bound:.2g}"
            )
    if not done.merged:
        tell("       no linear part of it becomes one convolution: the graph is as it was")


def show_inspected(path: Path, found: GraphConversion) -> None:
    """Tell people what a graph holds, and what would become of it."""
    from repvgg_ref_cli.piped import without_copy
    from weights_io import sanitize

    say(without_copy(sanitize(str(path))))
    for label, value in (
        ("container", "onnx"),
        ("form", f"graph, opset {found.opset}"),
        ("tensors", str(found.tensors)),
        ("nodes", f"{found.nodes_before}, {found.nodes_after} when fused"),
        ("convs", f"{found.convs_before}, {found.convs_after} when fused"),
    ):
        say(f"  {label:<11}{value}")
    for line in _lines(found):
        say(f"  {line}")


def _lines(done: GraphConversion) -> list[str]:
    """What becomes one convolution, and what is left, the same reason once."""
    from repvgg_ref.errors import by_kind
    from weights_io import sanitize

    merged = [
        f"{sanitize(each.output)}: {len(each.nodes)} nodes become one convolution, "
        f"{each.macs_before:.6g} multiply-accumulates a pixel become {each.macs_after:.6g}"
        for each in done.merged
    ]
    kinds = by_kind((each.node, each.reason) for each in done.left)
    left = [
        f"left   {sanitize(places[0])}: {sanitize(reason)}"
        + (f" (and {len(places) - 1} more like it)" if len(places) > 1 else "")
        for reason, places in kinds
    ]
    return [*_some(merged), *_some(left)]


def _some(lines: list[str]) -> list[str]:
    more = len(lines) - _SHOWN
    return [*lines[:_SHOWN], *([f"... {more} more: --json lists them"] if more > 0 else [])]
