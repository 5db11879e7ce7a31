"""Logits of networks whose blocks are wrong: dilated but not padded, kernels of two exchanged.

For ports of which the logits alone are known: what a block itself gives is judged elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.models.graph import INPUT, Node
from repvgg_ref.models.layers import Block
from repvgg_ref.ops import REFERENCE
from repvgg_ref.oracle.dense.port import DensePort
from repvgg_ref.oracle.report import Finding

_PADDING = "padding equals the dilation: so the stages keep their size"
_PLACES = "each floor of the pyramid has a convolution of its own"


def wrong_blocks(port: DensePort) -> Iterator[tuple[Finding, Array]]:
    """What is wrong, and the logits that it gives."""
    dilated = [block.name for block in port.model.arch.blocks if block.dilation > 1]
    for way, y in _unpadded(port).items() if dilated else ():
        says = f"dilated convolutions are padded by 1 alone, as if they were not ({way})"
        yield Finding("padding-of-dilation", dilated[0], None, 1.0, 1.0, says, _PADDING), y
    floors = [n.name for n in port.model.arch.evaluated if _is_floor(n)]
    for one, two in combinations(floors, 2):
        says = f"{one} and {two} have each other's arrays"
        found = Finding("layers-swapped", one, None, 1.0, 1.0, says, _PLACES)
        yield found, _run(port, lambda node, y: y, {one: two, two: one})


def _is_floor(node: Node) -> bool:
    return isinstance(node.op, Block) and node.inputs[0].endswith(".pool")


def _unpadded(port: DensePort) -> dict[str, Array]:
    """By the way in which the smaller logits are resized; none where no pixel is left."""

    def cut(node: Node, y: Array) -> Array:
        # The right output, less what only more padding shows: d (k - 1) / 2 - (k - 1) / 2 a side.
        spec = node.op.spec if isinstance(node.op, Block) else None
        edge = 0 if spec is None else (spec.dilation - 1) * (spec.kernel // 2)
        return y[:, :, edge : y.shape[2] - edge, edge : y.shape[3] - edge] if edge else y

    before = port.model.arch.head.inputs[0]
    known: dict[str, Array] = {}
    try:
        own = _run(port, cut, {}, known)
    except ValueError:
        return {}
    size = port.x.shape[2:]
    whole = REFERENCE.bilinear_resize_forward(known[before], size=(size[0], size[1]))[0]
    return {"8 times its size": own, "resized to the image": np.asarray(whole)}


def _run(
    port: DensePort,
    change: Callable[[Node, Array], Array],
    instead: dict[str, str],
    known: dict[str, Array] | None = None,
) -> Array:
    """The logits if `change` is made of each output and nodes have the arrays of others.

    Raises
    ------
    ValueError
        If an output has no pixel left.
    """
    params = dict(port.run.params)
    for taker, source in instead.items():
        for name, array in port.run.params.items():
            if name.startswith(f"{source}."):
                params[f"{taker}.{name.removeprefix(source + '.')}"] = array
    run = replace(port.run, params=params)
    found = {} if known is None else known
    found[INPUT] = np.asarray(port.x, np.float64)
    for node in port.model.arch.evaluated:
        y = node.op.forward(node.name, [found[name] for name in node.inputs], run)[0]
        found[node.name] = change(node, np.asarray(y))
        if not found[node.name].size:
            raise ValueError(f"{node.name} has no pixel")
    return found[port.model.arch.head.name]
