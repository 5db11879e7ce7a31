"""What the rooms of public reports share: a trained network's ONNX file, and files beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import repvgg_ref as rr
from repvgg_ref.arrays import Array
from repvgg_ref.models.network import Model
from repvgg_ref.oracle import Report, verify
from repvgg_ref.oracle.programs.inputs import distinguishing_inputs
from tests.museum.exhibit import PLAIN, trained
from tests.peers.graphs import onnx_graph

EXTENT = (64, 48)


def model() -> Model:
    """The network of these rooms."""
    return trained(PLAIN)


def images() -> Array:
    """A batch for it."""
    return distinguishing_inputs(PLAIN, height=EXTENT[0], width=EXTENT[1])


def port() -> Any:
    """The right port as a `ModelProto` with one output, ``logits``."""
    graph = onnx_graph(model(), fused=True)
    del graph.graph.output[:-1]
    rename(graph, "linear", "logits")
    graph.graph.output[0].name = "logits"
    return graph


def rename(proto: Any, old: str, new: str) -> None:
    """Call one tensor of the graph by another name."""
    for node in proto.graph.node:
        for names in (node.input, node.output):
            for at, name in enumerate(names):
                if name == old:
                    names[at] = new


def follow(proto: Any, operator: str, *more: Array, **attributes: Any) -> Any:
    """The graph with one operator more behind its logits."""
    from onnx import helper, numpy_helper

    rename(proto, "logits", "before")
    constants = [f"constant{i}" for i in range(len(more))]
    for name, array in zip(constants, more, strict=True):
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    last = helper.make_node(operator, ["before", *constants], ["logits"], "last", **attributes)
    proto.graph.node.append(last)
    return proto


def judged(proto: Any, folder: Path, name: str = "port.onnx") -> Report:
    """What the oracle says of such a file."""
    import onnx

    onnx.save(proto, folder / name)
    return verify(model(), folder / name)


def layers() -> dict[str, Array]:
    """Every layer's output, as a right port dumps them."""
    return rr.fuse(model()).forward(images(), layers=True)
