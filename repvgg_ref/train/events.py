"""What a training tells while it runs; `run.train` yields these, whoever drives it shows them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from repvgg_ref.train.evaluate import Evaluation


@dataclass(frozen=True)
class Plan:
    """What will be done, known before anything is written.

    Attributes
    ----------
    steps, steps_per_epoch : int
        Optimiser steps, in all and in one pass over the data.
    parameters : int
        Trainable numbers.
    memory : int
        Bytes a rank is estimated to need at most.
    lrs : tuple of (int, float)
        The learning rate at a few steps.
    """

    model: str
    recipe: str
    images: int
    test_images: int
    classes: int
    steps: int
    steps_per_epoch: int
    ranks: int
    parameters: int
    memory: int
    lrs: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Noted:
    """Something that people should know."""

    message: str


@dataclass(frozen=True)
class StepDone:
    """One optimiser step; `seconds` says where its time went, `loss` is before the step.

    `skipped`: float16's scaled gradient overflowed, so the weights stayed and the scale halved.
    """

    step: int
    epoch: int
    loss: float
    top1: float
    lr: float
    images: int
    seconds: dict[str, float]
    skipped: bool = False


@dataclass(frozen=True)
class EpochDone:
    """The evaluation after an epoch, counted from 1."""

    step: int
    epoch: int
    evaluation: Evaluation


@dataclass(frozen=True)
class Saved:
    """A state that `resume` continues from."""

    step: int
    path: Path


@dataclass(frozen=True)
class Stopped:
    """The training was asked to stop and has saved its state; it can be resumed."""

    step: int


@dataclass(frozen=True)
class Finished:
    """The last step is done and the results are written; `data` says on what it was evaluated."""

    step: int
    evaluation: Evaluation
    files: tuple[Path, ...]
    seconds: dict[str, float]
    data: dict[str, Any] = field(default_factory=dict)


Event = Plan | Noted | StepDone | EpochDone | Saved | Stopped | Finished


def as_record(event: Event) -> dict[str, Any] | None:
    """The line of ``log.jsonl`` for `event`; None for what is not logged."""
    if isinstance(event, StepDone):
        record = {"event": "step"} | vars(event)
        record["seconds"] = {name: round(value, 6) for name, value in event.seconds.items()}
        if not event.skipped:
            del record["skipped"]
        return record
    if isinstance(event, EpochDone):
        closest = event.evaluation.comparison.closest
        return {
            "event": "evaluation",
            "step": event.step,
            "epoch": event.epoch,
            **event.evaluation.to_json(),
            "closest_block": {
                "layer": closest.layer,
                "error": closest.max_error,
                "bound": closest.bound,
            },
        }
    if isinstance(event, Saved):
        return {"event": "saved", "step": event.step}
    if isinstance(event, Noted):
        return {"event": "note", "message": event.message}
    if isinstance(event, Stopped):
        return {"event": "stopped", "step": event.step}
    if isinstance(event, Finished):
        return {"event": "finished", "step": event.step, "seconds": event.seconds}
    return None
