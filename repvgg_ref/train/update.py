"""One optimiser step on the state of a training: pure, and the same on every rank.

The state's arrays are flat vectors. Each rank's gradient, running statistics and figures lie in one
vector, so a step makes one all-reduce; afterwards every rank holds the same state. Running
statistics are rank 0's, as in torch's DistributedDataParallel.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array, array_module, one_line, to_numpy
from repvgg_ref.data.loader import Batch
from repvgg_ref.data.source import Standardise
from repvgg_ref.models.names import role_names
from repvgg_ref.models.network import Model
from repvgg_ref.models.parameters import is_trainable, param_shapes
from repvgg_ref.models.step import training_step
from repvgg_ref.ops import Ops
from repvgg_ref.train.comm import Comm
from repvgg_ref.train.custom_l2 import custom_l2, penalised_kernels
from repvgg_ref.train.decay import factors_of
from repvgg_ref.train.flat import Layout
from repvgg_ref.train.loss_scale import START, LossScale, scaled
from repvgg_ref.train.mixup import draw_blend, mixed, one_hot
from repvgg_ref.train.recipe import Recipe
from repvgg_ref.train.sgd import Factors, sgd_step
from repvgg_ref.train.state import StateError

_COUNTER = ".num_batches_tracked"
_FIGURES = 3  # loss, images right, ranks that were asked to stop


@dataclass(frozen=True)
class State:
    """Everything that a step changes; vectors are flat, on the backend's device.

    Attributes
    ----------
    step : int
        Optimiser steps done.
    weights, velocity : arrays, (trainable,)
    running : array, (batch norm statistics,)
    counters : dict
        Each batch norm's ``num_batches_tracked``, on the host.
    ema : array, (trainable + statistics,), or None
    scale : LossScale
        What the loss's gradient is multiplied by; 1 but in float16.
    """

    step: int
    weights: Array
    velocity: Array
    running: Array
    counters: dict[str, Array]
    ema: Array | None
    scale: LossScale

    __repr__ = one_line


class Seconds(NamedTuple):
    """Where a step's time went, on this rank."""

    forward_backward: float
    reduce: float
    optimiser: float


class Stepped(NamedTuple):
    """The state after a step; `loss` and `correct` are those of the whole batch before it.

    `skipped`: the scaled gradient overflowed, so the weights stayed.
    """

    state: State
    loss: float
    correct: float
    stop: bool
    skipped: bool
    seconds: Seconds


class Updater:
    """The step's equations for one network, recipe and backend.

    Parameters
    ----------
    like : Model
        Whose architecture is trained, with its batch norm's eps and momentum, and what it says of
        its classes and pictures.
    seed : int
        Of mixup's random numbers.
    scales_loss : bool
        Whether the arithmetic needs a loss scale: float16.
    """

    def __init__(
        self,
        like: Model,
        recipe: Recipe,
        standardise: Standardise,
        *,
        ops: Ops,
        comm: Comm,
        seed: int,
        dtype: Any,
        scales_loss: bool = False,
    ) -> None:
        self.arch, self.eps, self.momentum = like.arch, like.eps, like.momentum
        self.about = like.about
        self.recipe = recipe
        self.ops, self._comm, self._seed = ops, comm, seed
        self.dtype = np.dtype(dtype)
        self._standardise, self._scales_loss = standardise, scales_loss
        shapes = param_shapes(like.arch, "train")
        self.trainable = Layout({n: s for n, s in shapes.items() if is_trainable(n)})
        self.statistics = Layout(
            {n: s for n, s in shapes.items() if not is_trainable(n) and not n.endswith(_COUNTER)}
        )
        self._layouts = self.trainable, self.statistics
        self._vectors = self._factors()

    def start(self, params: Mapping[str, Array]) -> State:
        """The state before the first step: no velocity, the averages equal to the weights."""
        zeros = {name: np.zeros(shape) for name, shape in self.trainable.shapes.items()}
        return self.restored(0, params, zeros, params, {})

    def restored(
        self,
        step: int,
        weights: Mapping[str, Array],
        velocity: Mapping[str, Array],
        running: Mapping[str, Array],
        ema: Mapping[str, Array],
        scale: LossScale | None = None,
    ) -> State:
        """The state that these named arrays on the host are.

        Averages that the recipe wants and `ema` does not have begin at the weights.

        Raises
        ------
        StateError
            If an array is missing, or has another shape.
        """
        averaged = (ema or {**weights, **running}) if self.recipe.ema else {}
        averages = [self._vector(part, averaged) for part in self._layouts if averaged]
        first = self._vector(self.trainable, weights)
        return State(
            step,
            first,
            self._vector(self.trainable, velocity),
            self._vector(self.statistics, running),
            {n: np.asarray(a, np.int64) for n, a in running.items() if n.endswith(_COUNTER)},
            array_module(first).concatenate(averages) if averages else None,
            (scale or LossScale(START)) if self._scales_loss else LossScale(),
        )

    def _vector(self, layout: Layout, arrays: Mapping[str, Array]) -> Array:
        """`arrays` as one vector on the device, in the training's dtype."""
        for name, shape in layout.shapes.items():
            if name not in arrays or arrays[name].shape != shape:
                raise StateError(
                    "the saved state is of another network",
                    got=f"{name}: {arrays[name].shape if name in arrays else 'missing'}",
                    wanted=shape,
                )
        flat = layout.pack({name: np.asarray(arrays[name], self.dtype) for name in layout.shapes})
        return self.ops.from_host(flat)

    def model(self, state: State, *, averaged: bool = False) -> Model:
        """The network in train form; its arrays are views of the state's, or of the averages."""
        weights, running = state.weights, state.running
        if averaged and state.ema is not None:
            weights, running = state.ema[: self.trainable.size], state.ema[self.trainable.size :]
        params = self._params(weights, running, state.counters)
        return Model(self.arch, "train", params, self.eps, self.momentum, about=self.about)

    @np.errstate(over="ignore", invalid="ignore")  # a loss that is not finite is the caller's find
    def step(
        self, state: State, parts: Sequence[Batch], *, lr: float, epoch: int, stop: bool = False
    ) -> Stepped:
        """One step on this rank's images, in `parts` whose gradients are averaged.

        `stop` is told to all ranks in the same message; `Stepped.stop` says if any was told so.
        """
        began = time.perf_counter()
        local, counters = self._local(state, parts, epoch, stop)
        computed = time.perf_counter()
        total = self._comm.sum(local)
        split = self.trainable.size
        shares = len(parts) * self._comm.size
        grad = total[:split] / (shares * state.scale.value)
        running = total[split:-_FIGURES].copy()
        loss, correct, asked = to_numpy(total[-_FIGURES:]).tolist()
        loss /= shares
        reduced = time.perf_counter()
        if self.recipe.custom_l2:
            penalty, grad = self._with_custom_l2(state.weights, running, grad)
            loss += penalty
        skipped = self._scales_loss and not bool(array_module(grad).isfinite(grad).all())
        if skipped:
            after = replace(state, step=state.step + 1, running=running)
        else:
            after = self._moved(state, grad, running, lr)
        done = time.perf_counter()
        seconds = Seconds(computed - began, reduced - computed, done - reduced)
        scale = state.scale.after(overflow=skipped) if self._scales_loss else state.scale
        after = replace(after, counters=counters, scale=scale)
        return Stepped(after, loss, correct, asked > 0, skipped, seconds)

    def inputs(self, batch: Batch) -> Array:
        """Pixels on the device as the network's input: (N, S, S, C) uint8 -> (N, C, S, S)."""
        return self._standardise.view(self.ops.from_host(batch.images), self.dtype)

    def _local(
        self, state: State, parts: Sequence[Batch], epoch: int, stop: bool
    ) -> tuple[Array, dict[str, Array]]:
        """Sums over the parts of this rank: gradient, statistics (rank 0's), figures."""
        running, counters = state.running, state.counters
        grad: Any = 0
        loss: Any = 0
        correct: Any = 0
        for number, part in enumerate(parts):
            seed = self._seed, epoch, state.step, number
            x, labels, targets = self._targets(part, seed)
            params = self._params(state.weights, running, counters)
            result = training_step(
                self.arch,
                params,
                x,
                targets,
                ops=scaled(self.ops, state.scale.value),
                eps=self.eps,
                momentum=self.momentum,
                label_smoothing=self.recipe.label_smoothing,
                draws=(*seed, self._comm.rank) if self.recipe.drop else None,
            )
            grad = grad + self.trainable.pack(result.grads)
            running = self.statistics.pack(result.stats)
            counters = {name: np.asarray(result.stats[name]) for name in counters}
            loss = loss + result.loss
            correct = correct + (result.logits.argmax(axis=1) == labels).sum()
        xp = array_module(grad)
        if self._comm.rank != 0:
            running = xp.zeros_like(running)
        figures = xp.stack([xp.asarray(v, self.dtype) for v in (loss, correct, float(stop))])
        return xp.concatenate([grad, running, figures]), counters

    def _targets(self, part: Batch, seed: tuple[int, ...]) -> tuple[Array, Array, Array]:
        """Input, labels, and what the loss compares with: blended by mixup if the recipe says."""
        x, labels = self.inputs(part), self.ops.from_host(part.labels)
        if not self.recipe.mixup:
            return x, labels, labels
        blend = draw_blend(len(part.labels), alpha=self.recipe.mixup, seed=(*seed, self._comm.rank))
        hot = one_hot(labels, self.arch.num_classes, self.dtype)
        return mixed(x, blend), labels, mixed(hot, blend)

    def _with_custom_l2(self, weights: Array, running: Array, grad: Array) -> tuple[float, Array]:
        params = self.trainable.unpack(weights) | self.statistics.unpack(running)
        penalty, grads = custom_l2(
            self.arch, params, eps=self.eps, weight_decay=self.recipe.weight_decay
        )
        named = self.trainable.unpack(grad)  # views: the vector itself is added to
        for name, more in grads.items():
            named[name] += more
        return float(penalty), grad

    def _moved(self, state: State, grad: Array, running: Array, lr: float) -> State:
        moved = sgd_step(
            {"weights": state.weights},
            {"weights": grad},
            {"weights": state.velocity},
            lr=lr,
            momentum=self.recipe.momentum,
            nesterov=self.recipe.nesterov,
            weight_decay=self.recipe.weight_decay,
            factors=lambda _: self._vectors,
        )
        weights, velocity = moved.params["weights"], moved.velocities["weights"]
        ema = state.ema
        if ema is not None:
            now = array_module(weights).concatenate([weights, running])
            ema = self.recipe.ema * ema + (1 - self.recipe.ema) * now
        return replace(
            state,
            step=state.step + 1,
            weights=weights,
            velocity=velocity,
            running=running,
            ema=ema,
        )

    def _params(
        self, weights: Array, running: Array, counters: Mapping[str, Array]
    ) -> dict[str, Array]:
        named = self.trainable.unpack(weights) | self.statistics.unpack(running) | dict(counters)
        return {name: named[name] for name in param_shapes(self.arch, "train")}

    def _factors(self) -> Factors:
        """The recipe's factors of every element of the weights; 1 where all are."""
        roles, rule = role_names(self.arch), self.recipe.decay
        factors = {name: factors_of(roles[name], rule=rule) for name in self.trainable.shapes}
        for name in penalised_kernels(self.arch) if self.recipe.custom_l2 else ():
            factors[name] = factors[name]._replace(decay=0.0)
        like = self.ops.from_host(np.zeros(0, self.dtype))
        lr = {name: factor.lr for name, factor in factors.items()}
        decay = {name: factor.decay for name, factor in factors.items()}
        return Factors(
            self.trainable.spread(lr, like) if any(factor != 1 for factor in lr.values()) else 1.0,
            self.trainable.spread(decay, like),
        )


def on_host(model: Model) -> Model:
    """`model` with its arrays in the host's memory."""
    params = {name: to_numpy(array) for name, array in model.params.items()}
    return replace(model, params=params)
