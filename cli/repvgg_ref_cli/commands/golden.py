"""`repvgg-ref golden`: golden vectors for whoever writes a port, and what they would notice."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repvgg_ref_cli import completion
from repvgg_ref_cli.options import (
    FILE,
    FOLDER,
    assumed_line,
    block_option,
    checkpoint_option,
    debug_option,
    eps_option,
    geometry_options,
    json_option,
    note,
    print_json,
    say,
)
from repvgg_ref_cli.piped import FileOrName

if TYPE_CHECKING:
    from repvgg_ref.models.geometry import Geometry
    from repvgg_ref.models.network import Model
    from repvgg_ref.oracle.golden.summary import GoldenSummary

_SHOWN_SURVIVORS = 8


@click.command(short_help="Write golden vectors, and say which known bugs they would miss.")
@checkpoint_option(
    "reference",
    "--reference",
    type=FileOrName("reference"),
    metavar="FILE|NAME",
    shell_complete=completion.models_and_files,
    help="A checkpoint (- is stdin), or an official name: with weights that hide no bug.",
)
@click.option(
    "--out", type=FOLDER, required=True, help="The bundle: a new folder, or this model's older one."
)
@click.option(
    "--inputs", type=FILE, help="The batch: .npy, .npz or a picture. [made so that bugs show]"
)
@click.option("--train-step", is_flag=True, help="Also gradients, statistics, weights after SGD.")
@click.option(
    "--steps",
    type=click.IntRange(min=1, max=100),
    default=3,
    show_default=True,
    help="Steps of SGD with --train-step.",
)
@click.option(
    "--raw", is_flag=True, help="Also raw .bin files with a plain index, fused weights included."
)
@eps_option
@geometry_options
@block_option
@json_option
@debug_option
def command(
    reference: str | Path,
    out: Path,
    inputs: Path | None,
    train_step: bool,
    steps: int,
    raw: bool,
    eps: float | None,
    strides: Any,
    dilations: Any,
    block: str,
    as_json: bool,
) -> None:
    """Write what every layer of the reference gives, in float64, with certified local bounds.

    The bundle is for ports in any language: npz files, ONNX tensors, and a manifest that says how
    to compare. Every known bug is planted in every layer once; the score says how many of them
    these vectors would notice. `repvgg-ref verify --reference BUNDLE --candidate YOURS.npz` names
    the bug in what a port dumped, training steps included.
    """
    from repvgg_ref.models.geometry import said_geometry
    from repvgg_ref.oracle.golden.write import write_golden
    from repvgg_ref.oracle.integers.question import is_about_integers
    from repvgg_ref_cli.batches import read_batch
    from repvgg_ref_cli.progress import ProgressBar

    reference = str(reference)  # of stdin it is a path
    if is_about_integers(reference, None):
        _integers(Path(reference), out, inputs, as_json=as_json)
        return
    said = said_geometry(strides, dilations)
    model = _reference(reference, eps, block, said, train_step)
    batch = None if inputs is None else read_batch(inputs, model)
    keeps_raw = not raw and (out / "raw").is_dir()
    raw = raw or keeps_raw
    chosen = not Path(reference).exists()
    with ProgressBar("golden") as progress:
        done = write_golden(
            model,
            out,
            inputs=batch,
            train_step=train_step,
            steps=steps,
            raw=raw,
            weights=True if chosen else None,
            progress=progress,
        )
    if keeps_raw:
        note(f"{out.name} had raw/, which is written again, too")
    for message in model.notes:
        note(message)
    if as_json:
        for message in (*done.warnings, *done.skipped, *assumed_line(done.assumed)):
            note(message)
        print_json(done.to_json())
    else:
        _show(done)


def _integers(reference: Path, out: Path, inputs: Path | None, *, as_json: bool) -> None:
    """Vectors of an integer network, which has no tolerance and no training step."""
    from repvgg_ref.oracle.candidates.npy_files import read_npy
    from repvgg_ref.oracle.integers.front import integer_network
    from repvgg_ref.oracle.integers.golden import write_integer_golden
    from weights_io import sanitize

    batch = None if inputs is None else read_npy(inputs)
    done = write_integer_golden(integer_network(reference), out, name=reference.name, inputs=batch)
    if as_json:
        print_json(done.to_json())
        return
    score = done.score
    say(f"wrote  {sanitize(str(done.out))}: {len(done.layers)} layers, rounding {done.rounding}")
    say(f"score  {score.killed} of {score.planted} planted bugs are noticed")
    for layer, bug, detail in score.survivors[:_SHOWN_SURVIVORS]:
        say(f"       hidden: {bug}{f' ({detail})' if detail else ''} in {layer}")
    for names in score.alike:
        say(f"alike  on this network: {', '.join(names)}; rounding/ tells them apart")
    say(f"next   read {sanitize(str(done.out / 'manifest.json'))}: how_to_compare")


def _reference(
    reference: str, eps: float | None, block: str, said: Geometry, train_step: bool
) -> Model:
    """The checkpoint, or weights chosen for an official architecture."""
    from repvgg_ref.errors import ReportedError, did_you_mean
    from repvgg_ref.files.checkpoint import load
    from repvgg_ref.models.geometry import with_geometry
    from repvgg_ref.models.network import DEFAULT_EPS
    from repvgg_ref.models.pspnet import CITYSCAPES_CLASSES
    from repvgg_ref.models.registry import find_name, list_models, network
    from repvgg_ref.oracle.golden.write import require_vectors
    from repvgg_ref.oracle.programs.distinguishing import INFERENCE, TRAINING, distinguishing_model

    if Path(reference).exists() or find_name(reference) is None:
        is_name = not Path(reference).exists() and not Path(reference).suffix
        if is_name and (meant := did_you_mean(reference, list_models())):
            raise ReportedError(
                "there is neither such a file nor such a network", got=reference, advice=meant
            )
        return load(reference, eps=eps, block=block, strides=said.strides, dilations=said.dilations)
    statistics = TRAINING if train_step else INFERENCE
    chosen = network(reference, block="repvgg" if block == "auto" else block)
    if chosen.is_dense:
        chosen = chosen.with_classes(CITYSCAPES_CLASSES)
    arch = with_geometry(chosen, said)
    require_vectors(arch)
    return distinguishing_model(
        arch,
        eps=DEFAULT_EPS if eps is None else eps,
        statistics=statistics,
    )


def _show(done: GoldenSummary) -> None:
    from weights_io import sanitize

    size = sum(done.files.values()) / 1e6
    say(f"wrote  {sanitize(str(done.out))}: {len(done.files)} files, {size:.2f} MB")
    say(f"       {done.model}, {done.form} form, {len(done.matrix.layers)} layers in float64")
    if done.steps is not None:
        recipe = done.steps.recipe
        rates = ", ".join(f"{lr:g}" for lr in recipe.lrs)
        say(
            f"train  {len(recipe.lrs)} steps of SGD, lr {rates},"
            f" momentum {recipe.momentum:g}, weight decay {recipe.weight_decay:g}"
        )
    matrix = done.matrix
    say(f"score  {matrix.killed} of {matrix.counted} planted bugs are noticed ({matrix.score:.1%})")
    if equivalent := len(matrix.mutants) - matrix.counted:
        say(f"       {equivalent} more compute the same function whatever the weights: not counted")
    for mutant in matrix.survivors[:_SHOWN_SURVIVORS]:
        detail = f" ({mutant.detail})" if mutant.detail else ""
        say(f"       hidden: {mutant.bug}{detail} in {mutant.layer}: {mutant.reason}")
    if len(matrix.survivors) > _SHOWN_SURVIVORS:
        say(f"       ... {len(matrix.survivors) - _SHOWN_SURVIVORS} more: manifest.json")
    for message in done.warnings:
        say(f"weak   {message}")
    for message in done.skipped:
        say(f"left   {message}")
    for message in assumed_line(done.assumed):
        say(f"       {message}")
    say(f"next   read {sanitize(str(done.out / 'manifest.json'))}: how_to_compare")
