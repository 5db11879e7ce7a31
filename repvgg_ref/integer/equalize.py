"""Cross-layer equalisation: channels of a layer scaled, and the next layer's inputs scaled back.

ReLU lets positive factors through, ``relu(c y) = c relu(y)``, so the network stays the same
(Nagel et al., arXiv 1906.04721, section 4.1). One scale for all channels then wastes less of its
range: the factor ``sqrt(r2 / r1)`` makes both layers' ranges of the channel, r1 and r2, equal.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.integer.quantize import LINEAR, as_chain
from repvgg_ref.models.network import Model

_SWEEPS = 40
_ENOUGH = 1e-3  # how far from 1 the factors of a sweep that ends it may be


def equalize(model: Model) -> tuple[Model, dict[str, Array]]:
    """Return an equal network, fused, whose channels have like ranges, and every layer's factors.

    Parameters
    ----------
    model : Model
        A plain chain, see `quantize.as_chain`; it is not changed.

    Returns
    -------
    equalized : Model
        In deploy form, with the dtype of `model`; scaled in float64, rounded once.
    factors : {layer: (O,) float64 array}
        By which the layer's output channels were multiplied.
    """
    deploy = as_chain(model)
    names = [*(spec.name for spec in deploy.arch.blocks if spec.activation == "relu")]
    wide = {name: array.astype(np.float64) for name, array in deploy.params.items()}
    factors = {name: np.ones(len(wide[f"{name}.fused.bias"])) for name in names}
    chain = [*(spec.name for spec in deploy.arch.blocks), LINEAR]
    for _ in range(_SWEEPS):
        farthest = 0.0
        for first, second in pairwise(chain):
            if first in factors:
                factor = _factor(_kernel(wide, first), _kernel(wide, second))
                scale_channels(wide, first, second, factor)
                factors[first] *= factor
                farthest = max(farthest, float(np.abs(factor - 1).max()))
        if farthest < _ENOUGH:
            break
    params = {name: wide[name].astype(array.dtype) for name, array in deploy.params.items()}
    return replace(deploy, params=params), factors


def _kernel(params: dict[str, Array], layer: str) -> Array:
    return params[f"{layer}.weight" if layer == LINEAR else f"{layer}.fused.weight"]


def _factor(first: Array, second: Array) -> Array:
    """What a channel's outputs are multiplied by, 1 where a range is zero; shape (O,)."""
    r1 = np.abs(first.reshape(len(first), -1)).max(axis=1)
    r2 = _input_ranges(second, len(first))
    alive = (r1 > 0) & (r2 > 0)
    ratio = np.divide(r2, r1, out=np.ones_like(r1), where=alive)
    found: Array = np.sqrt(ratio)
    return found


def _input_ranges(weight: Array, channels: int) -> Array:
    """The largest magnitude of what meets each input channel; groups side by side."""
    per_group = weight.shape[1]
    groups = channels // per_group
    # (G, O/G, C/G, K*K) -> (G, C/G) -> (C,)
    found: Array = (
        np.abs(weight)
        .reshape(groups, -1, per_group, weight[0, 0].size)
        .max(axis=(1, 3))
        .reshape(-1)
    )
    return found


def scale_channels(params: dict[str, Array], first: str, second: str, factor: Array) -> None:
    """Multiply the outputs of `first` and divide the inputs of `second`."""
    kernel, following = f"{first}.fused.weight", _kernel(params, second)
    params[kernel] = params[kernel] * factor[:, None, None, None]
    params[f"{first}.fused.bias"] = params[f"{first}.fused.bias"] * factor
    per_group = following.shape[1]
    groups = len(factor) // per_group
    # (C,) -> (G, 1, C/G, 1): every output of a group divides by its group's factors
    back = factor.reshape(groups, 1, per_group, 1)
    scaled = following.reshape(groups, -1, per_group, following[0, 0].size) / back
    params[f"{LINEAR}.weight" if second == LINEAR else f"{second}.fused.weight"] = scaled.reshape(
        following.shape
    )
