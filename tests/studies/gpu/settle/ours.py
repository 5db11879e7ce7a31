"""Our side of the races: work to enqueue, with everything on the device already."""

from __future__ import annotations

from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.models.names import official_dialect
from repvgg_ref.models.network import Model
from repvgg_ref.models.parameters import is_trainable
from repvgg_ref.models.step import StepResult, training_step
from repvgg_ref.train.decay import decay_kernels
from repvgg_ref.train.flat import Layout
from repvgg_ref.train.sgd import Factors, sgd_step
from tests.studies.gpu.settle.race import Work


def inference(model: Model, x: Array, math: Any) -> Work:
    """The fused network on images in channels-last memory, as torch is given them."""
    from repvgg_ref.gpu import cupy_ops
    from repvgg_ref.gpu.math_mode import activation_dtype

    ops = cupy_ops(math)
    nhwc = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).astype(activation_dtype(math))
    images = ops.from_host(nhwc).transpose(0, 3, 1, 2)
    return lambda: model.forward(images, backend=ops)


class Training:
    """A training on the device: its weights in one vector, as the trainer has them."""

    def __init__(self, model: Model, math: Any, *, lr: float) -> None:
        from repvgg_ref.gpu import cupy_ops

        self.ops, self._model, self._lr = cupy_ops(math), model, lr
        names = official_dialect(model.arch).names(model.params)
        learned = {name: array for name, array in model.params.items() if is_trainable(name)}
        self._layout = Layout({name: array.shape for name, array in learned.items()})
        self._weights = self._sent(self._layout.pack(learned))
        self._velocities: dict[str, Array] = {}
        decay = {name: decay_kernels(names[name]).decay for name in learned}
        self._factors = Factors(decay=self._layout.spread(decay, self._weights))
        self._statistics = {
            name: array if array.dtype.kind != "f" else self._sent(array)
            for name, array in model.params.items()
            if name not in learned
        }

    def step(self, x: Array, labels: Array) -> StepResult:
        """Forward, backward, SGD; nothing waits."""
        found = training_step(
            self._model.arch,
            self._layout.unpack(self._weights) | self._statistics,
            x,
            labels,
            ops=self.ops,
            eps=self._model.eps,
            momentum=self._model.momentum,
            label_smoothing=0.1,
        )
        taken = sgd_step(
            {"weights": self._weights},
            {"weights": self._layout.pack(found.grads)},
            self._velocities,
            lr=self._lr,
            momentum=0.9,
            nesterov=True,
            weight_decay=1e-4,
            factors=lambda _: self._factors,
        )
        self._weights, self._velocities = taken.params["weights"], taken.velocities
        self._statistics = dict(found.stats)
        return found

    def _sent(self, array: Array) -> Array:
        return self.ops.from_host(array.astype(np.float32))


def training(model: Model, x: Array, labels: Array, math: Any) -> Work:
    """Steps on one batch that stays on the device."""
    started = Training(model, math, lr=1e-3)
    images, there = started.ops.from_host(x), started.ops.from_host(labels)
    return lambda: started.step(images, there)
