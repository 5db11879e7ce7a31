"""A RepVGG whose layers are in residual blocks, told from the names and shapes of its arrays."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from repvgg_ref.blocks.catalogue import RESIDUAL_REORG
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.errors import CheckpointError
from repvgg_ref.files.found import Found
from repvgg_ref.files.identify import UNSAID, Shape, require_few_blocks, required_shape
from repvgg_ref.models.architectures import Architecture
from repvgg_ref.models.geometry import Geometry, with_geometry
from repvgg_ref.models.graph import Graph
from repvgg_ref.models.layers import Form
from repvgg_ref.models.names import CANONICAL, published_names
from repvgg_ref.models.registry import find_name
from repvgg_ref.models.residual_reorg import reorganised, residual_reorg

_NUMBER = "(0|[1-9][0-9]{0,3})"
_PAIR = re.compile(rf"stage{_NUMBER}\.{_NUMBER}\.conv[12]\.weight")
_PLAIN = re.compile(rf"stage{_NUMBER}(?:\.{_NUMBER})?\.(?:rbr_dense\.conv|rbr_reparam)\.weight")
_OFFICIAL = replace(CANONICAL, name="official")


def is_reorganised(names: Iterable[str]) -> bool:
    """Whether some stage has blocks of two convolutions."""
    return any(map(_PAIR.fullmatch, names))


def identify_reorganised(
    shapes: Mapping[str, Shape], model: str = "auto", said: Geometry = UNSAID
) -> Found:
    """The network that has arrays of these names and shapes, or the closest one.

    Its canonical names are those of the arrays that it has; others are left out.

    Raises
    ------
    CheckpointError
        If a kernel is missing that says what the network is, or it is not the `model` asked for.
    """
    form: Form = "train" if any(".bn" in name for name in shapes) else "deploy"
    graph = _named(residual_reorg(_layers(shapes)))
    if model not in ("auto", "custom") and find_name(model) != graph.name:
        raise CheckpointError(
            f"the shapes are not those of a {find_name(model) or model} of {RESIDUAL_REORG} blocks",
            got=f"{graph.name}, channels " + ",".join(str(b.out_channels) for b in graph.blocks),
            advice="leave --model auto to see what the file holds",
        )
    network = with_geometry(graph, said)
    theirs = {name: ours for ours, name in published_names(network, form).items()}
    return Found(network, form, {n: theirs[n] for n in shapes if n in theirs}, _OFFICIAL)


def _layers(shapes: Mapping[str, Shape]) -> Architecture:
    """The chain of layers whose pairs are in blocks."""
    blocks: list[BlockSpec] = []
    for (stage, index, part), key in _kernels(shapes):
        outputs, inner, *kernel = required_shape(shapes, key, 4)
        entry = blocks[-1].out_channels if blocks else inner
        if kernel != [3, 3] or not inner or entry % inner or not outputs:
            raise CheckpointError(
                f"{key} does not follow the layer before it",
                got=f"shape {shapes[key]}",
                wanted=f"(O, C/G, 3, 3), C/G a divisor of {entry}",
                advice="the file is incomplete, or holds another network",
            )
        layer = 2 * index + part - 1 if part else index  # a plain layer is the only one of its name
        name = f"stage{stage}.{layer}" if stage else "stage0"
        stride = 1 if layer else 2
        blocks.append(BlockSpec(name, entry, outputs, stride, entry // inner, kind="plain"))
    classes = required_shape(shapes, "linear.weight", 2)[0]
    return Architecture("custom", tuple(blocks), classes)


def _kernels(shapes: Mapping[str, Shape]) -> list[tuple[tuple[int, int, int], str]]:
    """Stage, index and number in its block (0 for a plain layer) of every kernel, and its key.

    A kernel that is missing between others is listed too.
    """
    found: dict[tuple[int, int, int], str] = {}
    for key in shapes:
        if pair := _PAIR.fullmatch(key):
            stage, index = int(pair[1]), int(pair[2])
            found |= {
                (stage, n, part): f"stage{stage}.{n}.conv{part}.weight"
                for n in range(index + 1)
                for part in (1, 2)
                if (stage, n, part) not in found
            }
        elif plain := _PLAIN.fullmatch(key):
            found[int(plain[1]), int(plain[2] or 0), 0] = key
        require_few_blocks(len(found))
    return sorted(found.items())


def _named(graph: Graph) -> Graph:
    """`graph` under its official name, if it is one."""
    same = (each.name for each in reorganised() if each.nodes == graph.nodes)
    return replace(graph, name=next(same, graph.name))
