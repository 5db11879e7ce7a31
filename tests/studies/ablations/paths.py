"""How many ways lead through a network: the paper's "ensemble of many shallow models".

Sections 3.2 and 4.2 of the paper, after Veit et al. (NIPS 2016): n blocks of two branches make 2^n
paths, of three 3^n. Counted here on the networks themselves, branch by branch and shortcut by
shortcut, as they are trained; fused there is one.
"""

from __future__ import annotations

from math import prod
from typing import Any

from repvgg_ref.blocks.catalogue import expression
from repvgg_ref.blocks.constructors import FormulaConv
from repvgg_ref.blocks.formulas import Dirac
from repvgg_ref.blocks.linear import Chain, Sum
from repvgg_ref.models.graph import INPUT, Network
from repvgg_ref.models.layers import Block


def ways(part: Any) -> int:
    """Through an expression: those of a sum's parts add up, of a chain's multiply.

    Dirac's kernel is a sum, too, of a learned one and the identity's.
    """
    if isinstance(part, FormulaConv) and isinstance(part.formula, Dirac):
        return 2 if part.in_channels == part.out_channels and part.stride == (1, 1) else 1
    if isinstance(part, Sum):
        return sum(map(ways, part.parts))
    return prod(map(ways, part.parts)) if isinstance(part, Chain) else 1


def paths(arch: Network, stage: str = "") -> int:
    """Through the network, or through the nodes whose names begin with `stage` and a dot."""
    found, last = {INPUT: 1}, INPUT
    for node in arch.evaluated:
        found[node.name] = 1
        if not stage or node.name.startswith(f"{stage}."):
            through = ways(expression(node.op.spec)) if isinstance(node.op, Block) else 1
            found[node.name] = through * sum(found[name] for name in node.inputs)
            last = node.name
    return found[last]
