"""Stochastic gradient descent with momentum, as one pure function of named arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from repvgg_ref.arrays import Array, one_line
from repvgg_ref.errors import ShapeError


class Factors(NamedTuple):
    """What multiplies the learning rate and the weight decay of one array, or of each element."""

    lr: float | Array = 1.0
    decay: float | Array = 1.0


class SgdStep(NamedTuple):
    """Parameters and velocities after the step."""

    params: dict[str, Array]
    velocities: dict[str, Array]

    def __repr__(self) -> str:
        """One line, without the numbers."""
        return one_line(self)


def sgd_step(
    params: Mapping[str, Array],
    grads: Mapping[str, Array],
    velocities: Mapping[str, Array],
    *,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    factors: Callable[[str], Factors],
) -> SgdStep:
    """Take one step; modifies nothing.

    ``d = grad + weight_decay * param``, ``v = momentum * velocity + d``, and
    ``param - lr * (d + momentum * v if nesterov else v)``: torch's `SGD` without dampening
    (Sutskever et al., ICML 2013, section 2, with lr taken out of the velocity).

    Parameters
    ----------
    params, grads : mapping
        Name -> array. A parameter without a gradient (a running mean) is passed on as it is.
    velocities : mapping
        From the last step; empty before the first, which is the same as zeros.
    lr, momentum, weight_decay, nesterov : float, and bool for the last
        As in the equations.
    factors : callable
        Name -> `Factors`: a rule of `train.decay`, or your own.

    Raises
    ------
    ShapeError
        If a gradient has no parameter of its shape.
    """
    after, moved = dict(params), dict(velocities)
    for name, grad in grads.items():
        param = params.get(name)
        if param is None or param.shape != grad.shape:
            raise ShapeError(
                f"sgd: the gradient of {name} must have its parameter's shape",
                got=grad.shape,
                wanted="no such parameter" if param is None else param.shape,
            )
        factor = factors(name)
        direction = grad + (weight_decay * factor.decay) * param
        velocity = velocities.get(name)
        moved[name] = direction if velocity is None else momentum * velocity + direction
        step = direction + momentum * moved[name] if nesterov else moved[name]
        after[name] = param - (lr * factor.lr) * step
    return SgdStep(after, moved)
