"""The arrays of a golden bundle: layer outputs, certified local bounds, ONNX tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array, one_line
from repvgg_ref.files.onnx_graph.packages import require
from repvgg_ref.models.graph import INPUT, QUIET, Node
from repvgg_ref.models.layers import Pass
from repvgg_ref.models.network import Model
from repvgg_ref.oracle.bounds.block import layer_bound
from repvgg_ref.oracle.bounds.nodes import node_bound
from repvgg_ref.oracle.bounds.precision import PRECISIONS
from repvgg_ref.oracle.programs.layers import Programs
from repvgg_ref.oracle.programs.node import wide_pass
from repvgg_ref.oracle.programs.program import layer_output

OUTPUTS, BOUNDS, WEIGHTS = "outputs.npz", "bounds.npz", "weights.npz"
DATA_SET = "test_data_set_0"
BOUND_PRECISIONS = ("fp32", "fp16", "bf16")
_MOST_FLOAT64 = 16 << 20
_MOST_BOUNDS = 24 << 20


class Layer(NamedTuple):
    """One layer: its exact output, and for each of `BOUND_PRECISIONS` the certified bound."""

    y: Array
    bounds: dict[str, Array]

    def __repr__(self) -> str:
        """One line, without the numbers."""
        return one_line(self)


def layer_arrays(
    model: Model, x: Array, step: Callable[[str], None] = lambda name: None
) -> dict[str, Layer]:
    """Every layer in float64, each on the exact outputs of those that feed it.

    Parameters
    ----------
    x : array, shape (N, in_channels, H, W)
    step : callable
        Called with each layer's name when it is done.
    """
    programs, run = Programs(model), wide_pass(model)
    known: dict[str, Array] = {INPUT: np.asarray(x, np.float64)}
    found: dict[str, Layer] = {}
    for node in model.arch.evaluated:
        layer = _layer(node, programs, run, known)
        known[node.name] = layer.y
        if node.name not in QUIET:
            found[node.name] = layer
            step(node.name)
    return found


def _layer(node: Node, programs: Programs, run: Pass, known: Mapping[str, Array]) -> Layer:
    """A node's exact output, and its bounds."""
    if node.name in programs:
        program, below = programs[node.name], programs.input_of(node.name, known)
        assert below is not None
        y = layer_output(program, below)
        bounds = {
            precision: layer_bound(program, below, y, PRECISIONS[precision]).certified
            for precision in BOUND_PRECISIONS
        }
        return Layer(y, bounds)
    xs = [known[name] for name in node.inputs]
    y = node.op.forward(node.name, xs, run)[0]
    return Layer(
        y, {name: node_bound(node, xs, run, PRECISIONS[name]) for name in BOUND_PRECISIONS}
    )


def output_arrays(x: Array, layers: dict[str, Layer], head: str) -> tuple[dict[str, Array], str]:
    """The input and every output, that of the `head` the logits, and the layers' element type.

    float64, unless that is beyond 16 MB: then float32, the logits still in float64.
    """
    size, head = sum(layer.y.nbytes for layer in layers.values()), list(layers)[-1]
    stored = "float64" if size <= _MOST_FLOAT64 else "float32"
    arrays = {
        name: layer.y if name == head else layer.y.astype(stored) for name, layer in layers.items()
    }
    return {"input": x, **arrays}, stored


def bound_arrays(layers: dict[str, Layer]) -> tuple[dict[str, Array], str]:
    """``<layer>/<precision>``, and "element", or "channel" where that is too large.

    float32, rounded up: a bound must not shrink. A channel's is its elements' largest.
    """
    size = sum(layer.y.size * 4 * len(layer.bounds) for layer in layers.values())
    shape = "element" if size <= _MOST_BOUNDS else "channel"
    arrays = {}
    for name, layer in layers.items():
        for precision, bound in layer.bounds.items():
            if shape == "channel":
                bound = np.moveaxis(bound, 1, 0).reshape(bound.shape[1], -1).max(axis=1)
            arrays[f"{name}/{precision}"] = rounded_up(bound)
    return arrays, shape


def rounded_up(bound: Array) -> Array:
    """float32, each value the smallest that is no smaller; infinity beyond its range."""
    with np.errstate(over="ignore", under="ignore"):
        single = bound.astype(np.float32)
        above = np.nextafter(single, np.float32(np.inf))
    return np.where(single < bound, above, single)


def write_data_set(folder: Path, x: Array, head: str, logits: Array) -> None:
    """Write input_0.pb and output_0.pb as ONNX's own backend tests have them, float32.

    `head` is what the logits are called.

    Raises
    ------
    MissingExtraError
        If the onnx package is not installed.
    """
    helper = require("onnx.numpy_helper")
    folder.mkdir()
    for file, name, array in (("input_0.pb", "input", x), ("output_0.pb", head, logits)):
        tensor = helper.from_array(np.ascontiguousarray(array, np.float32), name)
        (folder / file).write_bytes(tensor.SerializeToString())


def float32_outputs(model: Model, x: Array) -> dict[str, Array]:
    """What a plain float32 port gives."""
    params = {
        name: array.astype(np.float32) if array.dtype.kind == "f" else array
        for name, array in model.params.items()
    }
    single = replace(model, params=params)
    return single.forward(x.astype(np.float32), backend="reference", layers=True)


def float32_errors(model: Model, x: Array, layers: dict[str, Layer]) -> dict[str, float]:
    """Largest end-to-end error of our own float32 forward pass, over the layer's largest value.

    No bound, but the scale of what an honest port shows when it is run from the image on.
    """
    errors = {}
    for name, single in float32_outputs(model, x).items():
        size = float(np.abs(layers[name].y).max())
        error = float(np.abs(single.astype(np.float64) - layers[name].y).max())
        errors[name] = error / size if size > 0 else error
    return errors
