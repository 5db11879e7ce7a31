"""SGD on the device, in place: one launch for up to 56 arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import cupy

from repvgg_ref.arrays import Array
from repvgg_ref.errors import ShapeError
from repvgg_ref.gpu import kernels


class SgdStep(NamedTuple):
    """Parameters and velocities after the step; as `train.sgd.SgdStep`."""

    params: dict[str, Array]
    velocities: dict[str, Array]


def sgd_step(
    params: Mapping[str, Array],
    grads: Mapping[str, Array],
    velocities: Mapping[str, Array],
    *,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    factors: Callable[[str], Any],
    grad_factor: float | Array,
    skip: Array | None,
) -> SgdStep:
    """See `repvgg_ref.gpu.sgd_step`.

    Raises
    ------
    ShapeError
        If a gradient has no parameter of its shape, or if a factor is not one number for its array.
    """
    moved = dict(velocities)
    named = {name: factors(name) for name in grads}
    for name, grad in grads.items():
        if name not in params or params[name].shape != grad.shape:
            raise ShapeError(
                f"sgd: the gradient of {name} must have its parameter's shape",
                got=grad.shape,
                wanted=params[name].shape if name in params else "no such parameter",
            )
        if any(hasattr(factor, "shape") for factor in named[name]):
            raise ShapeError(
                f"sgd: on the device a factor is one number for an array, that of {name} is not",
                advice="give each array its own factors, or take train.sgd.sgd_step",
            )
        if name not in moved:
            moved[name] = cupy.zeros_like(params[name])
    kernels.sgd_update(
        [params[name] for name in grads],
        [cupy.ascontiguousarray(grad) for grad in grads.values()],
        [moved[name] for name in grads],
        lr=lr,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        lr_factors=[factor.lr for factor in named.values()],
        decay_factors=[factor.decay for factor in named.values()],
        grad_factor=grad_factor,
        skip=skip,
    )
    return SgdStep(dict(params), moved)
