"""What enters each layer of a network: of a candidate's own outputs, or of the right ones."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.models.graph import INPUT
from repvgg_ref.oracle.programs.layers import Programs
from repvgg_ref.oracle.programs.program import layer_output, plain


def go_on(programs: Programs, name: str, known: dict[str, Array]) -> None:
    """Put a layer's right output among those that are `known`, and let go what nobody reads."""
    x = programs.input_of(name, known)
    if name != "linear" and x is not None:
        known[name] = layer_output(plain(programs[name]), x)
    for source in programs.last_read(name):
        known.pop(source, None)


def inputs_of_layers(
    programs: Programs, outputs: Mapping[str, Array], x: Array
) -> dict[str, Array | None]:
    """The candidate's own input of each layer, None where it is not known."""
    channels = programs.model.arch.channels
    known = {INPUT: np.asarray(x, np.float64)}
    for name, y_hat in outputs.items():
        if name in channels and (given := _next_input(y_hat, channels[name])) is not None:
            known[name] = given
    return {name: programs.input_of(name, known) for name in programs}


def _next_input(y_hat: Array, channels: int) -> Array | None:
    """The candidate's output as another layer's input, if it can be one."""
    y_hat = np.asarray(y_hat, np.float64)
    fits = y_hat.ndim == 4 and y_hat.shape[1] == channels
    return y_hat if fits and np.isfinite(y_hat).all() else None
