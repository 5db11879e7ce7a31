"""Ours in the form it is trained in, batch norm by running statistics: what fusion saves."""

from __future__ import annotations

from repvgg_ref.arrays import to_numpy
from repvgg_ref.bench.contenders.base import Contender
from repvgg_ref.bench.contenders.fused import on_device, waiting_for
from repvgg_ref.bench.memory import branches_count
from repvgg_ref.bench.task import Task


def variants(task: Task) -> tuple[str, ...]:
    """One: every convolution chooses its algorithm by the cost model."""
    return ("auto",)


def prepare(task: Task, variant: str) -> Contender:
    """The train form, ready to run."""
    model, x = task.model(), on_device(task.images(), task.backend)
    return Contender(
        run=lambda: model.forward(x, backend=task.backend, threads=task.threads),
        outputs=lambda y: {"logits": to_numpy(y)},
        sync=waiting_for(task.backend),
        count=lambda: branches_count(model, x.shape) if model.arch.is_chain else {},
    )
