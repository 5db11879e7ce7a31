"""The GPU backend against the oracle: networks layer by layer, and whole training steps.

Used on the fake device by the tests and on a real one by `tests.studies.gpu.settle`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array, to_numpy
from repvgg_ref.models.names import official_dialect, role_names
from repvgg_ref.models.network import Model, fuse
from repvgg_ref.models.parameters import param_shapes
from repvgg_ref.models.step import training_step
from repvgg_ref.ops import Ops
from repvgg_ref.oracle import Report, verify
from repvgg_ref.oracle.training.judge import judge_training
from repvgg_ref.oracle.training.steps import TrainingSteps, training_steps
from repvgg_ref.train.decay import DECAY_RULES
from repvgg_ref.train.loss_scale import scaled
from repvgg_ref.train.sgd import sgd_step

PRECISIONS = {"fp32": "fp32", "tf32": "tf32", "bf16": "bf16", "fp16": "fp16"}


def inference_report(model: Model, x: Array, math: Any, *, form: str = "deploy") -> Report:
    """The oracle's verdict on `model` (train form) evaluated on the device in `math`."""
    from repvgg_ref.gpu import cupy_ops

    ops = cupy_ops(math)
    evaluated = fuse(model) if form == "deploy" else model

    def port(images: Array) -> dict[str, Array]:
        outputs = evaluated.forward(images.astype(np.float32), backend=ops, layers=True)
        return {name: to_numpy(y).astype(np.float32) for name, y in outputs.items()}

    return verify(model, port, inputs=x, precision=PRECISIONS[math])


def training_report(model: Model, x: Array, labels: Array, *, steps: int) -> Report:
    """The oracle's verdict on training steps and SGD in float32 on the device."""
    from repvgg_ref.gpu import cupy_ops

    right = training_steps(model, x, labels, steps=steps)
    return judge_training(right, train_on_device(model, right, cupy_ops("fp32")), model=model)


def train_on_device(
    model: Model, right: TrainingSteps, ops: Ops, *, loss_scale: float = 1.0
) -> dict[str, Any]:
    """The numbers of the first step, and the weights after the last, under official names."""
    ops = scaled(ops, loss_scale)
    names = official_dialect(model.arch).names(param_shapes(model.arch, "train"))
    official = {
        names[name]: ops.from_host(np.asarray(array, _stored(array)))
        for name, array in model.params.items()
    }
    x = ops.from_host(np.asarray(right.x, np.float32))
    labels = ops.from_host(np.asarray(right.labels))
    velocities: Mapping[str, Array] = {}
    roles = {names[ours]: role for ours, role in role_names(model.arch).items()}
    first: dict[str, Any] = {}
    losses = []
    for lr in right.recipe.lrs:
        step = training_step(
            model.arch,
            {ours: official[name] for ours, name in names.items()},
            x,
            labels,
            ops=ops,
            eps=model.eps,
            momentum=model.momentum,
            label_smoothing=right.recipe.label_smoothing,
        )
        grads = {names[name]: grad / loss_scale for name, grad in step.grads.items()}
        stats = {names[name]: stat for name, stat in step.stats.items()}
        if not first:
            first = {"loss": to_numpy(step.loss), "logits": to_numpy(step.logits)}
            first |= {f"grad/{n}": to_numpy(grad) for n, grad in grads.items()}
            first |= {f"stat/{name}": to_numpy(stat) for name, stat in stats.items()}
        losses.append(step.loss)
        taken = sgd_step(
            official,
            grads,
            velocities,
            lr=lr,
            momentum=right.recipe.momentum,
            nesterov=right.recipe.nesterov,
            weight_decay=right.recipe.weight_decay,
            factors=lambda name: DECAY_RULES[right.recipe.decay](roles[name]),
        )
        official, velocities = taken.params | stats, taken.velocities
    first["losses"] = np.array([to_numpy(loss) for loss in losses])
    return first | {f"after/{name}": to_numpy(array) for name, array in official.items()}


def _stored(array: Array) -> Any:
    """Weights on the device are float32; counters stay integers."""
    return np.float32 if array.dtype.kind == "f" else array.dtype
