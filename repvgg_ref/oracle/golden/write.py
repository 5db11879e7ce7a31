"""Golden vectors: what every layer of a reference gives, how exact that is, what it would notice.

A bundle is a folder for whoever writes a port in a language that cannot call this package:
``manifest.json`` (what all of it is, and how to compare), ``outputs.npz`` (the input and every
layer's output), ``bounds.npz`` (certified local bounds), ``test_data_set_0`` (input and logits as
ONNX tensors), ``weights.npz`` (if small), ``train_step.npz`` and ``.json``, ``raw`` (on request).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import weights_io
from repvgg_ref.arrays import Array
from repvgg_ref.errors import MissingExtraError, ReportedError
from repvgg_ref.files.checkpoint import save
from repvgg_ref.files.metadata import describe
from repvgg_ref.models.arguments import image_batch, training_batch
from repvgg_ref.models.graph import INPUT, Network
from repvgg_ref.models.network import Model, require_branches
from repvgg_ref.oracle.golden.arrays import (
    BOUND_PRECISIONS,
    BOUNDS,
    DATA_SET,
    OUTPUTS,
    WEIGHTS,
    Layer,
    bound_arrays,
    float32_errors,
    layer_arrays,
    output_arrays,
    write_data_set,
)
from repvgg_ref.oracle.golden.folder import (
    FORMAT,
    MANIFEST,
    VERSION,
    atomic_folder,
    digest_of,
    require_free,
    sha256,
)
from repvgg_ref.oracle.golden.mutation import MutationMatrix, mutation_matrix
from repvgg_ref.oracle.golden.raw import RAW, write_raw
from repvgg_ref.oracle.golden.summary import GoldenSummary, mutation_json
from repvgg_ref.oracle.graphs.vectors import dense_matrix
from repvgg_ref.oracle.programs.distinguishing import weak_statistics
from repvgg_ref.oracle.programs.inputs import (
    dropout_masks,
    golden_inputs,
    training_inputs,
    training_labels,
)
from repvgg_ref.oracle.programs.layers import require_layers, require_reference, require_steps
from repvgg_ref.oracle.training.noise import noisy_runs, relu_margin
from repvgg_ref.oracle.training.recipe import Recipe
from repvgg_ref.oracle.training.run import right_setup
from repvgg_ref.oracle.training.steps import (
    TrainingSteps,
    default_recipe,
    require_memory,
    training_steps,
    write_steps,
)
from repvgg_ref.version import __version__

Progress = Callable[[str, int, int], None]

_MOST_WEIGHTS = 16 << 20
# A ReLU input this near to zero (relative) may switch in a right float32 port; then another
# batch is tried, a few times.
_SAFE_MARGIN = 1e-5
_BATCHES_TRIED = 4

_WITHIN = (
    ", rounded to your number format; every element of what it returns must be "
    "within bounds['<layer>/<format>'] of outputs['<layer>']. Correct arithmetic of any order "
    "cannot be outside; the bounds hold for direct convolution, fused or in three branches."
)
_LOCALLY = (
    "Layer by layer (finds the wrong layer): give your layer i the array outputs[layer i - 1] (the "
    "first one 'input')" + _WITHIN
)
_LOCALLY_WIRED = (
    "Layer by layer (finds the wrong layer): give your layer the arrays of outputs that inputs of "
    "this file lists for it; the last one takes the mean of its own over height and width first"
    + _WITHIN
)
_HOW = (
    "From the image on: compare with outputs; 'end_to_end_float32_error' says what our own float32 "
    "pass differs by, relative to each layer's largest value. That is a scale, not a bound.",
    "Or hand your outputs (an npz with these names) to "
    "`repvgg-ref verify --reference BUNDLE --candidate YOURS.npz`, which names the bug.",
    "Without a reader of npz: write the bundle with --raw; raw/index.txt lists every file.",
    "Write comparisons as `not (error <= bound)`, so that NaN fails.",
)


def write_golden(
    model: Model,
    out_dir: str | Path,
    *,
    inputs: Array | None = None,
    train_step: bool = False,
    labels: Array | None = None,
    steps: int = 3,
    weights: bool | None = None,
    raw: bool = False,
    progress: Progress | None = None,
) -> GoldenSummary:
    """Write a bundle of golden vectors; all of it appears at once, or nothing does.

    Parameters
    ----------
    model : Model
        Train form, or deploy form without `train_step`.
    out_dir : str or Path
        A new folder, or an older bundle of the same model to replace.
    inputs : array, shape (N, in_channels, H, W), optional
        Default: `golden_inputs`.
    labels : int array (N,), or float array (N, num_classes), or (N, H, W); optional
    steps : int
        Steps of SGD.
    weights : bool, optional
        Whether to put the weights in; default if they are below 16 MB.
    raw : bool
        Whether to write all of it as raw numbers too (`golden.raw`), fused weights included.
    progress : callable, optional
        ``progress(what, done, total)``.

    Raises
    ------
    NotFusibleError
        If `train_step` is asked of a model in deploy form.
    ReportedError
        If `out_dir` holds something else, a bundle of another model among it, the reference is not
        finite, or of a network of which there are no vectors.
    """
    which = _which_model(model)
    require_free(Path(out_dir), which)
    if train_step:
        require_branches(model, "a train-step bundle")
        require_steps(model.arch)
    require_vectors(model.arch, raw=raw)
    x = _batch(model, golden_inputs(model.arch) if inputs is None else inputs)
    if train_step and inputs is not None:  # before the long work
        require_memory(model, training_batch(model.arch, x))
    step = _counter(model, progress, train_step)
    matrix_of = dense_matrix if model.arch.is_dense else mutation_matrix
    layers = layer_arrays(model, x, step)
    matrix = matrix_of(model, x, progress=lambda name, *_: step(name))
    trained = _trained(model, inputs, labels, steps, step) if train_step else None
    with atomic_folder(Path(out_dir), which) as folder:
        outputs, stored = output_arrays(x, layers, model.arch.head.name)
        bounds, bounds_per = bound_arrays(layers)
        weights_io.save_weights(folder / OUTPUTS, outputs, container="npz")
        weights_io.save_weights(folder / BOUNDS, bounds, container="npz")
        if raw:
            write_raw(folder / RAW, model, outputs, bounds)
        skipped = _optional_parts(folder, model, x, layers, weights)
        if trained is not None:
            write_steps(trained, folder)
        warnings = (*_warnings(model, matrix), *_training_warnings(trained))
        manifest = _manifest(model, x, matrix, warnings, skipped)
        manifest |= {
            "outputs": {"dtype": stored, "logits_dtype": "float64", "computed_in": "float64"},
            "bounds": {
                "per": bounds_per,
                "dtype": "float32, rounded up",
                "formats": list(BOUND_PRECISIONS),
                "kind": "certified, for the local comparison",
            },
            "end_to_end_float32_error": float32_errors(model, x, layers),
            "train_step": None if trained is None else trained.recipe.to_json(),
        }
        manifest["files"] = _described_files(folder)
        text = json.dumps(manifest, indent=1, allow_nan=False)
        (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
        files = {name: (folder / name).stat().st_size for name in (*manifest["files"], MANIFEST)}
    of_model = Path(out_dir), model.name, model.form
    return GoldenSummary(
        *of_model, matrix, files, warnings, skipped, trained, assumed=model.assumed
    )


def require_vectors(arch: Network, *, raw: bool = False) -> None:
    """Raise `ReportedError` where of a network, or of what is asked of it, nothing is written."""
    require_layers(arch)
    if raw and not (arch.is_chain or arch.is_dense):
        raise ReportedError(
            "raw numbers are described for chains of layers only",
            got=f"{arch.name}, whose layers have several inputs, with --raw",
            wanted="no --raw",
            advice="outputs.npz and bounds.npz hold the same",
        )


def _batch(model: Model, x: Array) -> Array:
    """The batch as float32, which is what ports take; everything is computed from that."""
    x = image_batch(model.arch, x)
    single = np.asarray(x, np.float32)
    if single.size == 0 or not np.isfinite(single).all():
        raise ReportedError(
            "the inputs are no batch of finite numbers", got=f"shape {tuple(x.shape)}"
        )
    require_reference(model)
    return single


def _counter(model: Model, progress: Progress | None, train_step: bool) -> Callable[[str], None]:
    """One progress bar over layers, mutants and noisy runs."""
    total = 2 * len(model.arch.layer_names)
    if train_step:
        total += noisy_runs(sum(array.size for array in model.params.values()))
    done = 0

    def step(name: str) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(name, min(done, total), total)

    return step


def _trained(
    model: Model,
    inputs: Array | None,
    labels: Array | None,
    steps: int,
    step: Callable[[str], None],
) -> TrainingSteps:
    """The training steps, on the batch that keeps ReLUs farthest from their edge."""

    def classes(x: Array) -> Array:
        return training_labels(model.arch, x) if labels is None else labels

    best: tuple[float, Array] | None = None
    recipe: Recipe | None = None
    for x in _candidates(model, inputs):
        kept = dropout_masks(model.arch, x)
        recipe = recipe or default_recipe(model, x, classes(x), steps, kept)
        margin = relu_margin(right_setup(model, x, classes(x), recipe, kept))
        if best is None or margin > best[0]:
            best = margin, x
        if margin >= _SAFE_MARGIN:
            break
    assert best is not None
    return training_steps(
        model, best[1], classes(best[1]), steps=steps, progress=lambda name, *_: step(name)
    )


def _candidates(model: Model, inputs: Array | None) -> Iterator[Array]:
    if inputs is not None:
        yield _batch(model, inputs)
        return
    for seed in range(_BATCHES_TRIED):
        yield training_inputs(model.arch, seed=seed)


def _optional_parts(
    folder: Path, model: Model, x: Array, layers: Mapping[str, Layer], weights: bool | None
) -> tuple[str, ...]:
    """Write the ONNX data set and the weights if they can and should be; say what was not."""
    skipped = []
    try:
        head = model.arch.head.name
        write_data_set(folder / DATA_SET, x, head, layers[head].y)
    except MissingExtraError as missing:
        skipped.append(f"{DATA_SET}: {missing}")
    size = sum(array.nbytes for array in model.params.values())
    if weights or (weights is None and size <= _MOST_WEIGHTS):
        save(model, folder / WEIGHTS)
    else:
        skipped.append(f"{WEIGHTS}: {size / 1e6:.0f} MB; the manifest has their digest")
    return tuple(skipped)


def _warnings(model: Model, matrix: MutationMatrix) -> tuple[str, ...]:
    found = weak_statistics(model)
    if matrix.survivors:
        bugs = list(dict.fromkeys(mutant.bug for mutant in matrix.survivors))
        shown = ", ".join(bugs[:6]) + (f" and {len(bugs) - 6} more" if len(bugs) > 6 else "")
        share = f"{len(matrix.survivors)} of {matrix.counted}"
        said = f"{share} planted bugs would pass unnoticed: {shown}"
        if model.arch.is_dense:
            said += "; certified bounds alone judge here, which single roundings need not leave"
        elif model.name != "custom":
            said += f"; chosen weights (--reference {model.name}) hide none"
        found.append(said)
    return tuple(found)


def _training_warnings(steps: TrainingSteps | None) -> tuple[str, ...]:
    if steps is None or steps.margin >= _SAFE_MARGIN / 10:
        return ()
    return (
        f"a ReLU's input comes within {steps.margin:.1g} of zero (relative): it may switch in a "
        "right port too, so some tolerances are wide",
    )


def _which_model(model: Model) -> dict[str, Any]:
    """The entries of the manifest that tell one model from another."""
    return {
        "model": model.name,
        "form": model.form,
        "eps": model.eps,
        "architecture": {
            "name": model.arch.name,
            "blocks": [asdict(block) for block in model.arch.blocks],
            **({"dense": True} if model.arch.is_dense else {}),
            "num_classes": model.arch.num_classes,
            "aux_heads": [asdict(head) for head in model.arch.aux_heads],
        },
        "weights_sha256": digest_of(model.state_dict()),
    }


def _manifest(
    model: Model,
    x: Array,
    matrix: MutationMatrix,
    warnings: tuple[str, ...],
    skipped: tuple[str, ...],
) -> dict[str, Any]:
    """What is not about single files."""
    return {
        "format": FORMAT,
        "format_version": VERSION,
        "repvgg_ref": __version__,
        **_which_model(model),
        "momentum": model.momentum,
        "assumed": model.assumed.to_json(),
        "metadata": describe(model.arch, model.form, model.eps, model.about, model.assumed),
        "layout": "NCHW",
        "kernel_layout": "OIHW",
        "layers": list(model.arch.layer_names),
        "inputs": _wiring(model.arch),
        "input": {"shape": list(x.shape), "dtype": "float32"},
        "how_to_compare": [_LOCALLY if model.arch.is_chain else _LOCALLY_WIRED, *_HOW],
        "mutation": mutation_json(matrix),
        "warnings": list(warnings),
        "skipped": list(skipped),
    }


def _wiring(arch: Network) -> dict[str, list[str]]:
    """Layer -> the layers that it gets; what no report lists is left out."""
    fed = {node.name: node.inputs for node in arch.evaluated}
    layers = arch.layer_names

    def sources(name: str) -> list[str]:
        given = ([one] if one in (*layers, INPUT) else sources(one) for one in fed[name])
        return [one for each in given for one in each]

    return {name: sources(name) for name in layers}


def _described_files(folder: Path) -> dict[str, Any]:
    """Digest and size of every file, and what arrays an npz holds."""
    files: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        about: dict[str, Any] = {"sha256": sha256(path), "bytes": path.stat().st_size}
        if path.suffix == ".npz" and path.name != WEIGHTS:
            with np.load(path) as archive:
                about["arrays"] = {
                    name: {"shape": list(archive[name].shape), "dtype": archive[name].dtype.name}
                    for name in archive.files
                }
        files[path.relative_to(folder).as_posix()] = about
    return files
