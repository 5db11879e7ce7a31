"""RepVGG's layers as residual blocks of two convolutions: "Residual Reorg" of the paper's Table 7.

Source: arXiv 2101.03697, section 4.2: the layers between the first and the last stage are grouped
as in ResNet-18 and -34, so that RepVGG-B0's stages 2 to 4 have 2, 3 and 8 blocks. The first block
of each has stride 2, and a 1x1 convolution with a batch norm as its shortcut.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from repvgg_ref.blocks.catalogue import RESIDUAL_REORG
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.errors import ShapeError
from repvgg_ref.models.architectures import NAMES, Architecture, architecture
from repvgg_ref.models.baselines import Layer, conv_node, head_nodes, residual_block
from repvgg_ref.models.graph import INPUT, Graph, Node

REASON = (
    "its shortcut spans two convolutions and the ReLU between them, which no single convolution"
    " equals"
)
TOP1 = 74.56  # Table 7


def residual_reorg(chain: Architecture) -> Graph:
    """The network of the layers of `chain`, in pairs but for its first and its last stage.

    An odd number of layers is rounded up. Keys are those of a plain layer in the first and the last
    stage (``stage0.rbr_dense.conv.weight``), else a ResNet's (``stage1.0.conv1.weight``,
    ``stage1.0.bn1.weight``, ``stage1.0.downsample.0.weight``).

    Raises
    ------
    ShapeError
        If `chain` has squeeze-and-excitation or auxiliary heads, or no stage between two others.
    """
    if odd := _odd(chain):
        raise ShapeError(
            f"{chain.name} has no {RESIDUAL_REORG} form, for the paper has none of it",
            got=" and ".join(odd),
            wanted="a network of plain layers in three stages or more",
        )
    stages = _stages(chain)
    _, *middle, _ = stages
    nodes: list[Node] = []
    for stage, specs in stages.items():
        if stage not in middle:
            for spec in specs:
                nodes.append(conv_node(replace(spec, kind="plain"), _end(nodes), spec.name))
            continue
        channels = specs[0].in_channels
        layers = [Layer(3, spec.out_channels, spec.stride, spec.groups) for spec in specs]
        layers += [layers[-1]._replace(stride=1)] * (len(layers) % 2)
        for index in range(len(layers) // 2):
            pair = layers[2 * index : 2 * index + 2]
            nodes += residual_block(f"{stage}.{index}", _end(nodes), channels, pair)
            channels = pair[-1].outputs
    head = head_nodes(_end(nodes), chain.blocks[-1].out_channels, chain.num_classes, "linear")
    refusal = f"{middle[0]}.0: {REASON}"
    return Graph(chain.name, (*nodes, *head), of_kind=RESIDUAL_REORG, refusal=refusal)


@cache
def reorganised() -> tuple[Graph, ...]:
    """The official networks that have this form."""
    chains = (architecture(name, block="plain") for name in NAMES)
    return tuple(residual_reorg(chain) for chain in chains if not _odd(chain))


def _end(nodes: list[Node]) -> str:
    return nodes[-1].name if nodes else INPUT


def _odd(chain: Architecture) -> list[str]:
    """What of `chain` the paper's network has nothing of."""
    there = {
        "squeeze-and-excitation": any(spec.se != "none" for spec in chain.blocks),
        "auxiliary heads": bool(chain.aux_heads),
        "no head": not chain.num_classes,
        "no stage between the first and the last": len(_stages(chain)) < 3,
    }
    return [what for what, is_there in there.items() if is_there]


def _stages(chain: Architecture) -> dict[str, list[BlockSpec]]:
    """The blocks of every stage."""
    stages: dict[str, list[BlockSpec]] = {}
    for spec in chain.blocks:
        stages.setdefault(spec.name.partition(".")[0], []).append(spec)
    return stages
