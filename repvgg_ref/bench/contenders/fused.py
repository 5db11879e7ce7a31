"""Ours: the fused network, and a training step."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

from repvgg_ref.arrays import Array, to_numpy
from repvgg_ref.bench.contenders.base import COMPARED_GRADIENTS, Contender
from repvgg_ref.bench.layers import time_layers
from repvgg_ref.bench.memory import fused_count
from repvgg_ref.bench.task import Task
from repvgg_ref.cpu.engine import Engine
from repvgg_ref.cpu.planar import is_planar
from repvgg_ref.models.names import official_names
from repvgg_ref.models.network import Model, fuse


def variants(task: Task) -> tuple[str, ...]:
    """One: `Task.algorithm` says the rest."""
    return (task.algorithm,)


def prepare(task: Task, variant: str) -> Contender:
    """Ready to run, through the same functions that users call."""
    return _training(task) if task.kind == "training" else _inference(task)


def on_device(x: Array, backend: str) -> Array:
    """`x` where the backend computes, so that no turn pays for the transfer."""
    if backend != "cupy":
        return x
    moved: Array = importlib.import_module("cupy").asarray(x)
    return moved


def waiting_for(backend: str) -> Callable[[], None]:
    """What waits until the backend's device is done."""
    if backend != "cupy":
        return lambda: None
    cupy: Any = importlib.import_module("cupy")
    return lambda: cupy.cuda.Device().synchronize()


def _inference(task: Task) -> Contender:
    deploy, x = fuse(task.model()), on_device(task.images(), task.backend)
    how: Any = {"algorithm": task.algorithm, "threads": task.threads, "memory": task.memory}

    def run() -> Array:
        logits: Array = deploy.forward(x, backend=task.backend, **how)
        return logits

    @cache
    def engine() -> Engine:
        return Engine(
            deploy.arch.blocks,
            deploy.params,
            dtype=x.dtype,
            **how,
        )

    if task.backend != "numpy" or not deploy.arch.is_chain or is_planar(deploy.arch):
        return Contender(run, _logits, waiting_for(task.backend))
    return Contender(
        run,
        _logits,
        count=lambda: fused_count(deploy, engine(), x),
        layers=lambda rounds: time_layers(engine(), x, rounds=rounds, threads=task.threads),
    )


def _training(task: Task) -> Contender:
    model, labels = task.model(), on_device(task.labels(), task.backend)
    x = on_device(task.images(), task.backend)
    compared = COMPARED_GRADIENTS if model.arch.is_chain else _ends(model)

    def run() -> Any:
        return model.loss_and_grads(x, labels, backend=task.backend)

    def outputs(step: Any) -> dict[str, Array]:
        found = {name: to_numpy(step.grads[name]) for name in compared}
        return {"loss": to_numpy(step.loss), "logits": to_numpy(step.logits), **found}

    return Contender(run, outputs, waiting_for(task.backend))


def _ends(model: Model) -> list[str]:
    """The first kernel and the last linear layer, under their official names."""
    names = official_names(model.arch, "train")
    kernels = [name for ours, name in names.items() if ours.endswith("weight")]
    return [kernels[0], names[f"{model.arch.head.name}.weight"]]


def _logits(y: Array) -> dict[str, Array]:
    return {"logits": to_numpy(y)}
