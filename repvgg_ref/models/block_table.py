"""Every kind of block in one network: what it costs, whether it fuses, what the paper reports."""

from __future__ import annotations

from typing import NamedTuple

from repvgg_ref.blocks.catalogue import KINDS, RESIDUAL_REORG, block_names
from repvgg_ref.errors import NotFusibleError
from repvgg_ref.models.cost import parameters
from repvgg_ref.models.registry import network
from repvgg_ref.models.residual_reorg import TOP1


class BlockRow(NamedTuple):
    """One kind: parameters of RepVGG-B0 in both forms; `reason` where it cannot be fused.

    `params_deploy` of what cannot be fused counts what is left when its batch norms are folded, and
    is None if they cannot be. `top1` is the paper's (Tables 6 and 7), percent; not `certain` if it
    is not checked there.
    """

    name: str
    params_train: int
    params_deploy: int | None
    fusible: bool
    reason: str | None
    top1: float | None
    certain: bool


def block_rows() -> list[BlockRow]:
    """A row for everything that a RepVGG may be built of."""
    return [_row(name) for name in block_names()]


def _row(name: str) -> BlockRow:
    built = network("RepVGG-B0", block=name)
    reason: str | None = None
    deploy: int | None = None
    try:
        deploy = parameters(built, "deploy")
        built.require_fusible()
    except NotFusibleError as error:
        reason = error.what.partition(": ")[2]
    top1, certain = (
        (TOP1, True) if name == RESIDUAL_REORG else (KINDS[name].top1, KINDS[name].certain)
    )
    return BlockRow(name, parameters(built, "train"), deploy, reason is None, reason, top1, certain)
