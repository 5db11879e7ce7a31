"""What a training tells while it runs; `run.train` yields these, whoever drives it shows them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repvgg_ref.train.evaluate import Evaluation

_SHOWN = 5  # of a list of names


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
class Initialised:
    """What a training starts from, where that is a file.

    Attributes
    ----------
    arrays_taken : int
        Taken as they are.
    head_arrays : tuple of str
        With a row for every class: made of the file's rows and new ones.
    arrays_left : tuple of str
        Of the file, that the network has not.
    classes_taken, classes_new : tuple of str
        Whose rows are the file's, and whose are drawn from the seed.
    classes_left : int
        Rows of the file that no class of the data has.
    matched : str
        How the classes found their rows.
    notes : tuple of str
        What was decided while reading the file.
    """

    file: str
    model: str
    arrays_taken: int
    head_arrays: tuple[str, ...]
    arrays_left: tuple[str, ...]
    classes_taken: tuple[str, ...]
    classes_new: tuple[str, ...]
    classes_left: int
    matched: str
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """For people: what is taken, what is new, what is left."""
        named = {"taken": self.classes_taken, "new": self.classes_new}
        rows = [f"{len(n)} {what} ({_listed(n)})" for what, n in named.items() if n]
        if self.classes_left:
            rows.append(f"{self.classes_left} left")
        found = [
            f"{self.file}: {self.arrays_taken} arrays of {self.model} taken",
            *self.notes,
            f"head's classes: {', '.join(rows)}; {self.matched}",
        ]
        if self.arrays_left:
            found.append(f"left: {_listed(self.arrays_left)}")
        return found


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
    """The last step is done and the results are written; `result` is ``result.json``."""

    step: int
    evaluation: Evaluation
    files: tuple[Path, ...]
    seconds: dict[str, float]
    result: dict[str, Any]


Event = Plan | Initialised | Noted | StepDone | EpochDone | Saved | Stopped | Finished


def as_record(event: Event) -> dict[str, Any] | None:
    """The line of ``log.jsonl`` for `event`; None for what is not logged."""
    if isinstance(event, StepDone):
        record = {"event": "step"} | vars(event)
        record["seconds"] = {name: round(value, 6) for name, value in event.seconds.items()}
        if not event.skipped:
            del record["skipped"]
        return record
    if isinstance(event, Initialised):
        return {"event": "init"} | vars(event)
    if isinstance(event, EpochDone):
        found = {"event": "evaluation", "step": event.step, "epoch": event.epoch}
        found |= event.evaluation.to_json()
        if event.evaluation.comparison is not None:
            closest = event.evaluation.comparison.closest
            found["closest_block"] = {
                "layer": closest.layer,
                "error": closest.max_error,
                "bound": closest.bound,
            }
        return found
    if isinstance(event, Saved):
        return {"event": "saved", "step": event.step}
    if isinstance(event, Noted):
        return {"event": "note", "message": event.message}
    if isinstance(event, Stopped):
        return {"event": "stopped", "step": event.step}
    if isinstance(event, Finished):
        return {"event": "finished", "step": event.step, "seconds": event.seconds}
    return None


def _listed(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
