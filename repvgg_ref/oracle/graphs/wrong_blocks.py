"""Logits of networks whose blocks are wrong: dilations mixed up, no padding, kernels exchanged.

For ports of which the logits alone are known: what a block itself gives is judged elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.models.geometry import with_geometry
from repvgg_ref.models.graph import Node
from repvgg_ref.models.layers import Block
from repvgg_ref.ops import REFERENCE
from repvgg_ref.oracle.bugs.dilations import mixed_up
from repvgg_ref.oracle.graphs.port import GraphPort
from repvgg_ref.oracle.report import Finding

_STEPS = "stages 3 and 4 are dilated, in the fast form their last 5 layers"
_PADDING = "padding equals the dilation: so the stages keep their size"
_PLACES = "each floor of the pyramid has a convolution of its own"


def wrong_blocks(port: GraphPort) -> Iterator[tuple[Finding, Array]]:
    """What is wrong, and the logits that it gives."""
    arch, head = port.model.arch, port.model.arch.head.name
    for bug, says, steps in mixed_up(arch):
        first = next(iter(steps.dilations))
        found = Finding(bug, first, None, 1.0, 1.0, says, _STEPS)
        yield found, _run(port, nodes=with_geometry(arch, steps).evaluated)[head]
    dilated = [block.name for block in arch.blocks if block.dilation > 1]
    for way, y in _unpadded(port).items() if dilated else ():
        says = f"dilated convolutions are padded by 1 alone, as if they were not ({way})"
        yield Finding("padding-of-dilation", dilated[0], None, 1.0, 1.0, says, _PADDING), y
    floors = [node.name for node in arch.evaluated if _is_floor(node)]
    for one, two in combinations(floors, 2):
        says = f"{one} and {two} have each other's arrays"
        found = Finding("layers-swapped", one, None, 1.0, 1.0, says, _PLACES)
        yield found, _run(port, instead={one: two, two: one})[head]


def _is_floor(node: Node) -> bool:
    return isinstance(node.op, Block) and node.inputs[0].endswith(".pool")


def _unpadded(port: GraphPort) -> dict[str, Array]:
    """By the way in which the smaller logits are resized; none where no pixel is left."""
    head = port.model.arch.head
    try:
        found = _run(port, cut=_unseen)
    except ValueError:
        return {}
    size = port.x.shape[2:]
    whole = REFERENCE.bilinear_resize_forward(found[head.inputs[0]], size=(size[0], size[1]))[0]
    return {"8 times its size": found[head.name], "resized to the image": np.asarray(whole)}


def _unseen(node: Node) -> int:
    """Pixels a side that a block gives only by more padding than 1: (d - 1) (k - 1) / 2."""
    spec = node.op.spec if isinstance(node.op, Block) else None
    return 0 if spec is None else (spec.dilation - 1) * (spec.kernel // 2)


def _run(
    port: GraphPort,
    *,
    nodes: Sequence[Node] | None = None,
    cut: Callable[[Node], int] = lambda node: 0,
    instead: Mapping[str, str] | None = None,
) -> dict[str, Array]:
    """What other nodes give, outputs cut by so many pixels a side, with arrays of others instead.

    What comes before the first change is known.

    Raises
    ------
    ValueError
        If an output has no pixel left.
    """
    params, others = dict(port.run.params), dict(instead or {})
    for taker, source in others.items():
        for name, array in port.run.params.items():
            if name.startswith(f"{source}."):
                params[f"{taker}.{name.removeprefix(source + '.')}"] = array
    run, right = replace(port.run, params=params), {n.name: n for n in port.model.arch.evaluated}
    changed: dict[str, Array] = {}
    for node in nodes or tuple(right.values()):
        edge = cut(node)
        same = node.op == right[node.name].op and not edge and node.name not in others
        if same and not changed.keys() & set(node.inputs):
            continue
        xs = [changed[n] if n in changed else port.known[n].y for n in node.inputs]
        y = np.asarray(node.op.forward(node.name, xs, run)[0])
        y = y[:, :, edge : y.shape[2] - edge, edge : y.shape[3] - edge] if edge else y
        if not y.size:
            raise ValueError(f"{node.name} has no pixel")
        changed[node.name] = y
    return changed
