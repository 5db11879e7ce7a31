"""Our side of the races: work to enqueue, with everything on the device already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.models.network import Model
from repvgg_ref.models.step import StepResult, training_step
from repvgg_ref.ops import Ops
from repvgg_ref.train.decay import decay_kernels
from tests.gpu.settle.race import Work


def inference(model: Model, x: Array, math: Any) -> Work:
    """The fused network on images in channels-last memory, as torch is given them."""
    from repvgg_ref.gpu import cupy_ops
    from repvgg_ref.gpu.math_mode import activation_dtype

    ops = cupy_ops(math)
    nhwc = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).astype(activation_dtype(math))
    images = ops.from_host(nhwc).transpose(0, 3, 1, 2)
    return lambda: model.forward(images, backend=ops)


@dataclass
class Training:
    """Weights, velocities and statistics on the device, moved in place by `step`."""

    model: Model
    ops: Ops
    params: dict[str, Array]
    velocities: dict[str, Array]
    lr: float

    def step(self, x: Array, labels: Array) -> StepResult:
        """Forward, backward, SGD; nothing waits."""
        from repvgg_ref.gpu import sgd_step

        found = training_step(
            self.model.arch,
            self.params,
            x,
            labels,
            ops=self.ops,
            eps=self.model.eps,
            momentum=self.model.momentum,
            label_smoothing=0.1,
        )
        taken = sgd_step(
            self.params,
            found.grads,
            self.velocities,
            lr=self.lr,
            momentum=0.9,
            nesterov=True,
            weight_decay=1e-4,
            factors=decay_kernels,
        )
        self.params, self.velocities = taken.params | found.stats, taken.velocities
        return found


def start_training(model: Model, math: Any, *, lr: float) -> Training:
    """Copy the weights to the device."""
    from repvgg_ref.gpu import cupy_ops

    ops = cupy_ops(math)
    params = {
        name: array if array.dtype.kind != "f" else ops.from_host(array.astype(np.float32))
        for name, array in model.params.items()
    }
    return Training(model, ops, params, {}, lr)


def training(model: Model, x: Array, labels: Array, math: Any) -> Work:
    """Steps on one batch that stays on the device."""
    started = start_training(model, math, lr=1e-3)
    images, there = started.ops.from_host(x), started.ops.from_host(labels)
    return lambda: started.step(images, there)
