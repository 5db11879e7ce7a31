"""What a bundle knows of the training steps: inputs, recipe, every number, and how exact it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import weights_io
from repvgg_ref.arrays import Array, one_line, require_finite
from repvgg_ref.errors import ReportedError
from repvgg_ref.models.network import Model
from repvgg_ref.oracle.json_files import read_object
from repvgg_ref.oracle.programs.inputs import dropout_masks
from repvgg_ref.oracle.training.dump import KEPT
from repvgg_ref.oracle.training.noise import ALLOWED, Yard, Yardstick, relu_margin
from repvgg_ref.oracle.training.recipe import Recipe, fitting_recipe
from repvgg_ref.oracle.training.rounding import yardstick_of
from repvgg_ref.oracle.training.run import Arrays, right_setup, run
from repvgg_ref.train.plan import activation_bytes, available_memory
from weights_io import sanitize

# In float64 the reference's layers take up to 1.5 times what is kept of them: windows written out.
_WINDOWS = 1.5
_VECTORS = 10  # weights, gradients, velocities, before and after a step, and of the runs with noise
ARRAYS, DESCRIPTION = "train_step.npz", "train_step.json"
# Gradients and weights of a large network are stored in float32: 8 bytes a parameter, twice.
_MOST_FLOAT64 = 24 << 20

_HOW = """
Load the weights, feed `input` and `labels` (and keep the channels of kept/NAME at the dropout NAME,
where there is one), train as `recipe` says, and dump an npz with the names of train_step.npz:
loss, logits, batch_mean/<bn>, batch_var/<bn> (biased), grad/<name> and
stat/<name> (running statistics) of the first step; losses (one a step) and after/<name> after the
last. Any whole kinds will do. No array of a right port has a root-mean-square error above `allowed`
times tolerances[name][0] or a largest error above `allowed` times tolerances[name][1], unless it
adds up long sums one term after the other. These come from runs with rounding errors put in on
purpose: a yardstick, not a proven bound. `repvgg-ref verify` allows far less: what float32 itself
did (`rounding`: root mean square, largest, scale) times the port's own level.
"""


@dataclass(frozen=True)
class TrainingSteps:
    """The right training steps on one batch.

    Attributes
    ----------
    exact : mapping
        The numbers of `run`, in the order in which a step computes them.
    yardstick : Yardstick
        For float32.
    margin : float
        How near to zero a ReLU's input comes (`relu_margin`).
    stored : "float64" or "float32"
        What `exact` was rounded to on its way.
    kept : mapping
        Which channels every dropout keeps: node -> bool (N, C).
    """

    x: Array
    labels: Array
    recipe: Recipe
    exact: Mapping[str, Array]
    yardstick: Yardstick
    margin: float
    stored: str = "float64"
    kept: Mapping[str, Array] = field(default_factory=dict)

    __repr__ = one_line


def training_steps(
    model: Model,
    x: Array,
    labels: Array,
    *,
    steps: int = 3,
    recipe: Recipe | None = None,
    kept: Mapping[str, Array] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> TrainingSteps:
    """Take the steps in float64 and measure what rounding does to them.

    Parameters
    ----------
    model : Model
        Train form.
    x : array, shape (N, in_channels, H, W)
    labels : int array (N,), or float array (N, num_classes); (N, H, W) of a dense network
    steps : int
        How many, if no `recipe` says so.
    recipe : Recipe, optional
        Default `fitting_recipe`.
    kept : mapping, optional
        Which channels the dropouts keep: node -> bool (N, C). Default `dropout_masks`.

    Raises
    ------
    NotFusibleError
        If the model has no branches.
    ReportedError
        If a number of the steps is not finite, or the machine has too little memory for them.
    """
    require_memory(model, x)
    kept = dropout_masks(model.arch, x) if kept is None else kept
    if recipe is None:
        recipe = default_recipe(model, x, labels, steps, kept)
    setup = right_setup(model, x, labels, recipe, kept)
    exact = run(setup)
    _require_finite(exact)
    floating = {name: array for name, array in exact.items() if array.dtype.kind == "f"}
    yardstick = yardstick_of(setup, floating, progress=progress)
    return TrainingSteps(x, labels, recipe, exact, yardstick, relu_margin(setup), kept=kept)


def needed_memory(model: Model, x: Array) -> int:
    """Bytes that the steps take at most, estimated: what layers keep, and vectors of parameters."""
    images, _, height, width = np.shape(x)
    wide = np.dtype(np.float64).itemsize
    kept = activation_bytes(model.arch, images=images, extent=(height, width), itemsize=wide)
    vectors = _VECTORS * sum(array.size for array in model.params.values()) * wide
    return int(_WINDOWS * kept + vectors)


def require_memory(model: Model, x: Array, available: int | None = None) -> None:
    """Refuse steps that do not fit into what is `available`, by default on this machine.

    Raises
    ------
    ReportedError
        If they do not; it says how much they need.
    """
    needed = needed_memory(model, x)
    given = available_memory(np.empty(0)) if available is None else available
    if given is not None and needed > given:
        raise ReportedError(
            "the training steps of this batch do not fit into memory",
            got=f"about {needed / 2**30:.1f} GiB needed for {'x'.join(map(str, np.shape(x)))}",
            wanted=f"at most the {given / 2**30:.1f} GiB that are available",
            advice="--inputs FILE.npy with smaller images shows the same bugs",
        )


def default_recipe(
    model: Model, x: Array, labels: Array, steps: int, kept: Mapping[str, Array] | None = None
) -> Recipe:
    """`fitting_recipe` for the gradients on this batch."""
    pixels = model.arch.is_dense
    probing = Recipe((0.0,), label_smoothing=0.0 if pixels else 0.1, pixels=pixels)
    setup = right_setup(model, x, labels, probing, kept)
    start = run(setup, first_only=True)
    grads = {n.removeprefix("grad/"): g for n, g in start.items() if n.startswith("grad/")}
    _require_finite(grads)
    return fitting_recipe(model.state_dict(), grads, steps, pixels=pixels, roles=setup.roles)


def write_steps(steps: TrainingSteps, folder: Path) -> None:
    """Write `ARRAYS` and `DESCRIPTION` into `folder`."""
    arrays = {name: np.asarray(array) for name, array in steps.exact.items()}
    size = sum(array.nbytes for array in arrays.values())
    stored = "float64" if size <= _MOST_FLOAT64 else "float32"
    if stored == "float32":
        arrays = {n: a.astype(np.float32) if _is_large(n, a) else a for n, a in arrays.items()}
    own = {"input": np.asarray(steps.x), "labels": np.asarray(steps.labels)}
    own |= {f"{KEPT}{name}": mask.astype(np.uint8) for name, mask in steps.kept.items()}
    weights_io.save_weights(folder / ARRAYS, own | arrays, container="npz")
    described = {
        "recipe": steps.recipe.to_json(),
        "stored": stored,
        "how_to_compare": " ".join(_HOW.split()),
        "allowed": ALLOWED,
        "relu_margin": steps.margin if np.isfinite(steps.margin) else None,
        "unit_roundoff": steps.yardstick.u,
        "tolerances": {n: [y.rms, y.largest] for n, y in steps.yardstick.of.items()},
        "noise_scale": {n: y.scale for n, y in steps.yardstick.of.items()},
        "rounding": {n: list(y) for n, y in steps.yardstick.rounding.items()},
        "sums": {n: list(y) for n, y in steps.yardstick.sums.items()},
    }
    text = json.dumps(described, indent=1, allow_nan=False)
    (folder / DESCRIPTION).write_text(text + "\n", encoding="utf-8")


def read_steps(folder: Path) -> TrainingSteps:
    """Read what `write_steps` wrote."""
    try:
        described = read_object(folder / DESCRIPTION)
        with weights_io.open_weights(folder / ARRAYS) as archive:
            root: Any = archive.root
            arrays: Arrays = {str(name): lazy.read() for name, lazy in root.items()}
        scales = described.get("noise_scale", {})
        yards = {
            n: _yard(rms, big, scales.get(n, 0.0))
            for n, (rms, big) in described["tolerances"].items()
        }
        others = (
            {n: _yard(*yard) for n, yard in described.get(key, {}).items()}
            for key in ("rounding", "sums")
        )
        x, labels = arrays.pop("input"), arrays.pop("labels")
        masks = [name for name in arrays if name.startswith(KEPT)]
        kept = {name.removeprefix(KEPT): arrays.pop(name) != 0 for name in masks}
        margin = described["relu_margin"]
        return TrainingSteps(
            x,
            labels,
            Recipe.from_json(described["recipe"]),
            {n: a.astype(np.float64) if a.dtype.kind == "f" else a for n, a in arrays.items()},
            Yardstick(float(described["unit_roundoff"]), yards, *others),
            np.inf if margin is None else float(margin),
            str(described["stored"]),
            kept,
        )
    except (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError) as error:
        raise ReportedError(
            f"{sanitize(folder)}: the training steps of this bundle cannot be read",
            got=sanitize(f"{type(error).__name__}: {error}"),
            advice="write the bundle again with --train-step",
        ) from None


def _yard(*sizes: Any) -> Yard:
    """From what JSON holds: numbers, and none of them infinite, which would allow anything."""
    yard = Yard(*map(float, sizes))
    if not np.isfinite(yard).all():
        raise ValueError(f"{sizes} are no sizes")
    return yard


def _is_large(name: str, array: Array) -> bool:
    return name.startswith(("grad/", "after/")) and array.dtype.kind == "f"


def _require_finite(arrays: Mapping[str, Array]) -> None:
    for name, array in arrays.items():
        require_finite(
            array,
            f"{name} of the reference's own training step is not finite",
            advice="take another checkpoint, or inputs of the scale of normalised images",
        )
