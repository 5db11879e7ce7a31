"""A network so small that its training steps take milliseconds, and dumps of ports of it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.models.architectures import plain_architecture
from repvgg_ref.models.network import Model
from repvgg_ref.oracle.programs.distinguishing import TRAINING, distinguishing_model
from repvgg_ref.oracle.programs.inputs import distinguishing_inputs, distinguishing_labels
from repvgg_ref.oracle.report import Report
from repvgg_ref.oracle.training.judge import judge_training
from repvgg_ref.oracle.training.run import Setup, right_setup, run
from repvgg_ref.oracle.training.steps import TrainingSteps, training_steps

TINY = plain_architecture(depths=[1, 2], channels=[4, 4, 5], num_classes=4, in_channels=2)


@cache
def case() -> tuple[Model, TrainingSteps]:
    """The model and its right steps."""
    x = distinguishing_inputs(TINY, batch=2, height=22, width=18)
    model = distinguishing_model(TINY, x=x, statistics=TRAINING)
    return model, training_steps(model, x, distinguishing_labels(TINY, len(x)))


def setup_of() -> Setup:
    """Its right training."""
    model, steps = case()
    return right_setup(model, steps.x, steps.labels, steps.recipe)


def dump_of(setup: Setup) -> dict[str, Array]:
    """What a port dumps that trains so in float32."""
    single = {
        n: a.astype(np.float32) if a.dtype.kind == "f" else a for n, a in setup.params.items()
    }
    with np.errstate(all="ignore"):
        found = run(replace(setup, params=single, x=setup.x.astype(np.float32)))
    return {n: a.astype(np.float32) if a.dtype.kind == "f" else a for n, a in found.items()}


def judged(dump: Any, *, explained: bool = True) -> Report:
    """The oracle's verdict on a dump."""
    model, steps = case()
    return judge_training(steps, dump, model=model if explained else None)
