"""Every kind of block in one network: what it costs, whether it fuses, what the paper reports."""

from __future__ import annotations

from typing import NamedTuple

from repvgg_ref.blocks.catalogue import KINDS
from repvgg_ref.errors import NotFusibleError
from repvgg_ref.models.architectures import architecture
from repvgg_ref.models.cost import parameters


class BlockRow(NamedTuple):
    """One kind: parameters of RepVGG-B0 in both forms; `reason` where there is no fused one.

    `top1` is the paper's (Tables 6 and 7), percent; not `certain` if it is not checked there.
    """

    name: str
    params_train: int
    params_deploy: int | None
    fusible: bool
    reason: str | None
    top1: float | None
    certain: bool


def block_rows() -> list[BlockRow]:
    """A row for every kind of block that a RepVGG may have."""
    return [_row(name) for name, kind in KINDS.items() if kind.keys]


def _row(name: str) -> BlockRow:
    kind, network = KINDS[name], architecture("RepVGG-B0", block=name)
    deploy: int | None = None
    reason: str | None = None
    try:
        deploy = parameters(network, "deploy")
    except NotFusibleError as error:
        reason = error.what.partition(": ")[2]
    train = parameters(network, "train")
    return BlockRow(name, train, deploy, reason is None, reason, kind.top1, kind.certain)
