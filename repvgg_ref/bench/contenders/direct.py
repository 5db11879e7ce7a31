"""Ours without Winograd: the tightest error bound, and little more memory than the weights."""

from __future__ import annotations

from dataclasses import replace

from repvgg_ref.bench.contenders import fused
from repvgg_ref.bench.contenders.base import Contender
from repvgg_ref.bench.task import Task


def variants(task: Task) -> tuple[str, ...]:
    """One."""
    return ("direct",)


def prepare(task: Task, variant: str) -> Contender:
    """The fused chain, every convolution in direct form."""
    return fused.prepare(replace(task, algorithm="direct"), variant)
