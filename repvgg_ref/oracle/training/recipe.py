"""What a train-step bundle trains with. Every setting is one that ports get wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.errors import ReportedError
from repvgg_ref.train.decay import DECAY_RULES

POLY_POWER = 0.9  # PSPNet's


_LOSS = (
    "mean over the batch of the cross-entropy with targets "
    "(1 - label_smoothing) * one_hot + label_smoothing / classes; "
    "plus 0.1 of each auxiliary head's, where there are any"
)
_LOSS_OF_PIXELS = (
    "mean over all pixels whose label is not 255 of the cross-entropy, plus 0.4 of the same of the "
    "auxiliary head; logits of both at the images' size; no channel but those that kept/NAME lists "
    "goes through the dropout NAME, and those times 1 / (1 - rate)"
)


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
        A key of `DECAY_RULES`: what weight decay applies to, and what learns faster.
    pixels : bool
        Whether every pixel has a label, and some are ignored.
    poly_power : float, optional
        The power by which `lrs` fall, where they are `poly_rates`.
    """

    lrs: tuple[float, ...] = (0.05, 0.03, 0.02)
    momentum: float = 0.9
    weight_decay: float = 5e-3
    nesterov: bool = False
    label_smoothing: float = 0.1
    decay: str = "kernels"
    pixels: bool = False
    poly_power: float | None = None

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
            "w -= lr * v, or lr * (d + momentum * v) with nesterov; under the rule 'segmentation' "
            "every array decays, and ppm, cls and aux learn with 10 lr",
            "loss": _LOSS_OF_PIXELS if self.pixels else _LOSS,
            "batch": "the same in every step; batch norm in training mode",
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Recipe:
        """The recipe that a manifest describes."""
        try:
            power = fields.get("poly_power")
            return cls(
                tuple(float(lr) for lr in fields["lrs"]),
                float(fields["momentum"]),
                float(fields["weight_decay"]),
                bool(fields["nesterov"]),
                float(fields["label_smoothing"]),
                str(fields["decay"]),
                bool(fields.get("pixels", False)),
                None if power is None else float(power),
            )
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise ReportedError("the manifest's recipe is incomplete", got=str(error)) from None


def poly_rates(lr: float, steps: int, power: float) -> tuple[float, ...]:
    """``lr (1 - i / steps)^power``, i from 0: the schedule "poly"."""
    return tuple(lr * (1 - i / steps) ** power for i in range(steps))


def fitting_recipe(
    weights: Mapping[str, Array],
    grads: Mapping[str, Array],
    steps: int,
    *,
    pixels: bool = False,
    roles: Mapping[str, str] | None = None,
) -> Recipe:
    """A recipe whose steps are small for these weights, and whose every setting shows.

    The first learning rate moves no array by more than a fiftieth of its norm, so that rounding
    is not amplified from step to step; it falls by two fifths a step. Weight decay is as large as
    keeps ``lr * weight_decay`` at 5e-4: a thousand times what float32 resolves.

    Parameters
    ----------
    weights, grads : mapping
        Official name -> array; gradients at these weights.
    steps : int
    pixels : bool
        Whether it is for a network that says a class for every pixel: PSPNet's rule and schedule.
    roles : mapping, optional
        Official name -> the name by which the rule goes (`role_names`).
    """
    if steps < 1:
        raise ReportedError("a train-step bundle needs a step", got=steps, wanted="at least 1")
    rule = "segmentation" if pixels else "kernels"
    known = roles or {}
    moves = [
        float(np.linalg.norm(weights[name]) / size)
        for name, grad in grads.items()
        if (size := _speed(known.get(name, name), rule) * float(np.linalg.norm(grad))) > 0
        and np.any(weights[name])
    ]
    lr = _rounded_down(min(0.05, 0.02 * min(moves, default=1.0)))
    decay = min(1.0, float(f"{5e-4 / lr:.1g}"))
    if pixels:
        rates = poly_rates(lr, steps, POLY_POWER)
        return Recipe(
            rates, 0.9, decay, label_smoothing=0, decay=rule, pixels=True, poly_power=POLY_POWER
        )
    lrs = [float(f"{lr * 0.6**i:.3g}") for i in range(steps)]
    return Recipe(tuple(lrs), weight_decay=decay)


def _speed(role: str, rule: str) -> float:
    """How many times as fast an array learns."""
    return float(DECAY_RULES[rule](role).lr)


def _rounded_down(value: float) -> float:
    """The largest 1, 2 or 5 times a power of ten that is not above `value`."""
    power = 10.0 ** np.floor(np.log10(value))
    digit = next(d for d in (5.0, 2.0, 1.0) if d * power <= value * (1 + 1e-12))
    return float(f"{digit * power:.1g}")
