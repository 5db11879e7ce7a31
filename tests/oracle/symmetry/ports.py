"""Equal networks that look different, and some that only look equal.

The fused network is what is changed: torch computes its outputs, as an independent witness, where
it is installed, and our reference operators where it is not.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.models.network import Model, fuse


def changed(
    model: Model, layer: str, order: Array, factor: Array, *, taken_back: bool = True
) -> Model:
    """The deploy form with output channels of `layer` reordered, then scaled by `factor`.

    `order` must keep to what the next layer's groups allow; else the port is another network.
    """
    port = fuse(model) if model.form == "train" else model
    params = dict(port.params)
    names = list(model.arch.layer_names)
    after = names[names.index(layer) + 1]
    column = (slice(None), None, None, None)
    params[f"{layer}.fused.weight"] = params[f"{layer}.fused.weight"][order] * factor[column]
    params[f"{layer}.fused.bias"] = params[f"{layer}.fused.bias"][order] * factor
    if f"{layer}.se.up.weight" in params:
        down, up = params[f"{layer}.se.down.weight"], params[f"{layer}.se.up.weight"]
        params[f"{layer}.se.down.weight"] = down[:, order] / factor[None, :, None, None]
        params[f"{layer}.se.up.weight"] = up[order]
        params[f"{layer}.se.up.bias"] = params[f"{layer}.se.up.bias"][order]
    if taken_back:
        name = "linear.weight" if after == "linear" else f"{after}.fused.weight"
        params[name] = _columns(params[name], order, factor, _groups(model, after))
    return Model(model.arch, "deploy", _narrow(params), model.eps)


def _groups(model: Model, layer: str) -> int:
    return 1 if layer == "linear" else model.arch.block(layer).groups


def _columns(weight: Array, order: Array, factor: Array, groups: int) -> Array:
    """A kernel whose input channels are reordered within its groups."""
    per_group, outputs = weight.shape[1], len(weight) // groups
    found = weight.copy()
    for group in range(groups):
        rows, inputs = (slice(group * n, (group + 1) * n) for n in (outputs, per_group))
        own = order[inputs] - group * per_group
        assert ((own >= 0) & (own < per_group)).all(), "the order crosses groups"
        scale = factor[inputs].reshape(-1, *(1,) * (weight.ndim - 2))
        found[rows] = weight[rows][:, own] / scale
    return found


def drawn_order(model: Model, layer: str, rng: np.random.Generator) -> Array:
    """A random order of the output channels that the next layer's groups can take back."""
    names = list(model.arch.layer_names)
    after = names[names.index(layer) + 1]
    channels, groups = model.arch.block(layer).out_channels, _groups(model, after)
    mine = model.arch.block(layer).groups
    step = channels // np.lcm(groups, mine)
    return np.concatenate([rng.permutation(step) + at for at in range(0, channels, step)])


def _narrow(params: Mapping[str, Array]) -> dict[str, Array]:
    return {n: a.astype(np.float32) if a.dtype == np.float64 else a for n, a in params.items()}
