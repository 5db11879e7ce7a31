"""What a train-step bundle trains with. Every setting is one that ports get wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.errors import ReportedError
from repvgg_ref.train.decay import DECAY_RULES


@dataclass(frozen=True)
class Recipe:
    """SGD with momentum, cross-entropy with label smoothing, on one batch again and again.

    The learning rate falls from step to step, so that a velocity that holds it (Caffe's and
    TensorFlow's convention) shows; smoothing and weight decay are large enough to be seen.

    Attributes
    ----------
    lrs : tuple of float
        One learning rate a step.
    decay : str
        A key of `DECAY_RULES`: what weight decay applies to.
    """

    lrs: tuple[float, ...] = (0.05, 0.03, 0.02)
    momentum: float = 0.9
    weight_decay: float = 5e-3
    nesterov: bool = False
    label_smoothing: float = 0.1
    decay: str = "kernels"

    def __post_init__(self) -> None:
        if not self.lrs:
            raise ReportedError("a recipe needs at least one step", got="no learning rates")
        if self.decay not in DECAY_RULES:
            raise ReportedError(
                "there is no such weight-decay rule",
                got=repr(self.decay),
                wanted=", ".join(DECAY_RULES),
            )

    def to_json(self) -> dict[str, Any]:
        """The fields, and the equations in words."""
        return asdict(self) | {
            "lrs": list(self.lrs),
            "update": "d = grad + weight_decay * w (kernels of convolutions and linear layers only "
            "under the rule 'kernels'); v = momentum * v + d, v = d in the first step; "
            "w -= lr * v, or lr * (d + momentum * v) with nesterov",
            "loss": "mean over the batch of the cross-entropy with targets "
            "(1 - label_smoothing) * one_hot + label_smoothing / classes; "
            "plus 0.1 of each auxiliary head's, where there are any",
            "batch": "the same in every step; batch norm in training mode",
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Recipe:
        """The recipe that a manifest describes."""
        try:
            return cls(
                tuple(float(lr) for lr in fields["lrs"]),
                float(fields["momentum"]),
                float(fields["weight_decay"]),
                bool(fields["nesterov"]),
                float(fields["label_smoothing"]),
                str(fields["decay"]),
            )
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise ReportedError("the manifest's recipe is incomplete", got=str(error)) from None


def fitting_recipe(weights: Mapping[str, Array], grads: Mapping[str, Array], steps: int) -> Recipe:
    """A recipe whose steps are small for these weights, and whose every setting shows.

    The first learning rate moves no array by more than a fiftieth of its norm, so that rounding
    is not amplified from step to step; it falls by two fifths a step. Weight decay is as large as
    keeps ``lr * weight_decay`` at 5e-4: a thousand times what float32 resolves.

    Parameters
    ----------
    weights, grads : mapping
        Official name -> array; gradients at these weights.
    steps : int
    """
    if steps < 1:
        raise ReportedError("a train-step bundle needs a step", got=steps, wanted="at least 1")
    moves = [
        float(np.linalg.norm(weights[name]) / size)
        for name, grad in grads.items()
        if (size := float(np.linalg.norm(grad))) > 0 and np.any(weights[name])
    ]
    lr = _rounded_down(min(0.05, 0.02 * min(moves, default=1.0)))
    lrs = [float(f"{lr * 0.6**i:.3g}") for i in range(steps)]
    return Recipe(tuple(lrs), weight_decay=min(1.0, float(f"{5e-4 / lr:.1g}")))


def _rounded_down(value: float) -> float:
    """The largest 1, 2 or 5 times a power of ten that is not above `value`."""
    power = 10.0 ** np.floor(np.log10(value))
    digit = next(d for d in (5.0, 2.0, 1.0) if d * power <= value * (1 + 1e-12))
    return float(f"{digit * power:.1g}")
