"""`repvgg-ref predict`: classify images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repvgg_ref_cli.options import (
    FILE,
    INPUT,
    algorithm_option,
    assumed_line,
    backend_option,
    block_option,
    checkpoint_option,
    debug_option,
    ema_option,
    eps_option,
    geometry_options,
    json_option,
    model_option,
    note,
    print_json,
    say,
)
from repvgg_ref_cli.piped import without_copy

if TYPE_CHECKING:
    from repvgg_ref.arrays import Array
    from repvgg_ref.models.network import Model


@click.command(short_help="Classify images, or their pixels, with any checkpoint.")
@click.argument("images", type=INPUT, nargs=-1, required=True, metavar="IMAGE...")
@checkpoint_option("weights", "--weights", help="In train or deploy form.")
@click.option("--classes", type=FILE, help="Class names: one a line, or a JSON list.")
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True)
@click.option(
    "--input",
    "preparation",
    type=click.Choice(["auto", "imagenet", "digits"]),
    default="auto",
    show_default=True,
    help="How images are prepared: as for ImageNet, or as for the bundled digits model.",
)
@click.option(
    "--size",
    type=click.IntRange(min=32, max=4096),
    show_default="what the file says, or 224",
    help="Crop.",
)
@click.option("--out", type=FILE, help="Of a PSPNet: draw its classes over IMAGE, as a PNG.")
@ema_option
@model_option
@block_option
@eps_option
@geometry_options
@backend_option
@algorithm_option
@json_option
@debug_option
def command(
    images: tuple[Path, ...],
    weights: Path,
    classes: Path | None,
    top: int,
    preparation: str,
    size: int | None,
    out: Path | None,
    ema: bool,
    model: str,
    block: str,
    eps: float | None,
    strides: Any,
    dilations: Any,
    backend: str,
    algorithm: str,
    as_json: bool,
) -> None:
    """Classify every IMAGE (- is stdin) and print its most probable classes.

    Images are turned upright (EXIF), flattened on white, brought to the model's colours, resized
    (shorter side to size * 256 / 224), centre-cropped and standardised, as the model's validation
    did: by the size, mean and deviation that the file says, else by ImageNet's. For a model of the
    bundled digits the digit is found in the picture, inverted if it is dark on light, straightened
    and scaled as those were recorded; the output says so.

    A PSPNet says what part of the picture each class is; --out draws it, with a legend. Pictures of
    any size are padded to 8k + 1 and cut back, larger ones than --size seen in windows.
    """
    import repvgg_ref
    from repvgg_ref.data.images import assumed_size, network_input
    from repvgg_ref.models.arguments import require_head
    from repvgg_ref_cli.progress import ProgressBar

    loaded = repvgg_ref.load(
        weights,
        model=model,
        eps=eps,
        weights="ema" if ema else "model",
        block=block,
        strides=strides,
        dilations=dilations,
    )
    for message in (*loaded.notes, *assumed_line(loaded.assumed)):
        note(message)
    require_head(loaded.arch, "predict")
    if loaded.arch.is_dense:
        _segment(
            loaded,
            images,
            classes,
            out=out,
            size=size,
            backend=backend,
            algorithm=algorithm,
            as_json=as_json,
        )
        return
    if out is not None:
        raise click.UsageError("--out draws classes of pixels: it needs a PSPNet's weights")
    guessed = assumed_size(loaded.arch, loaded.about, preparation, size)
    if guessed is not None:
        note(f"assumed input size {guessed}: not in the file; --size says otherwise")
    names, source = _class_names(classes, loaded)
    if source == "imagenet":
        note("the file names no classes: ImageNet's 1000 are shown; --classes names others")
    results = []
    with ProgressBar("classifying") as progress:
        for index, path in enumerate(images):
            done: list[str] = []
            x = network_input(
                path,
                loaded.arch,
                preparation=preparation,
                size=size,
                about=loaded.about,
                notes=done,
            )
            logits = loaded.forward(x, backend=backend, algorithm=algorithm)
            best = _most_probable(path, logits[0], names, top)
            results.append({"image": without_copy(path), "top": best, "prepared": done})
            progress(path.name, index + 1, len(images))
    if as_json:
        print_json(
            {
                "model": loaded.name,
                "form": loaded.form,
                "assumed": loaded.assumed.to_json() | {"input_size": guessed},
                "class_names": source,
                "images": results,
            }
        )
    else:
        _show(results)


def _segment(
    model: Model, images: tuple[Path, ...], classes: Path | None, *, as_json: bool, **how: Any
) -> None:
    """The same of a network that says a class for every pixel."""
    from repvgg_ref_cli.segmentation import predict, show_parts

    known, source = _class_names(classes, model)
    if source == "cityscapes":
        note("the file names no classes: Cityscapes' 19 are shown; --classes names others")
    names = known or [str(c) for c in range(model.arch.num_classes)]
    results = predict(model, images, names, **how)
    if not as_json:
        show_parts(results)
        return
    print_json(
        {
            "model": model.name,
            "form": model.form,
            "assumed": model.assumed.to_json(),
            "class_names": source,
            "images": results,
        }
    )


def _class_names(path: Path | None, model: Model) -> tuple[Sequence[str] | None, str]:
    """The names in `path`, those that the model knows, the usual data set's or none; and which."""
    from repvgg_ref.data.cityscapes import CLASSES
    from repvgg_ref.data.imagenet import imagenet_classes, is_imagenet

    if path is not None:
        return _listed(path, model.arch.num_classes), "option"
    if model.about.classes is not None:  # folders called as ImageNet's get their names beside them
        known = {number: f"{number} {name}" for number, name in imagenet_classes().items()}
        return [known.get(name, name) for name in model.about.classes], "file"
    if is_imagenet(model.arch):
        return list(imagenet_classes().values()), "imagenet"
    if model.arch.is_dense and model.arch.num_classes == len(CLASSES):
        return CLASSES, "cityscapes"
    return None, "none"


def _listed(path: Path, count: int) -> list[str]:
    """The names in a file."""
    import json

    from repvgg_ref.errors import CheckpointError

    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        listed = json.loads(text)
    except (ValueError, RecursionError):
        listed = text.splitlines()
    if not isinstance(listed, list) or len(listed) != count:
        raise CheckpointError(
            f"{path.name} does not name the model's classes",
            got=f"{len(listed)} lines" if isinstance(listed, list) else type(listed).__name__,
            wanted=f"{count} names, one a line or as a JSON list",
        )
    if odd := [type(name).__name__ for name in listed if not isinstance(name, str | int)]:
        raise CheckpointError(
            f"{path.name} does not name the model's classes", got=f"{odd[0]} in the list"
        )
    return [str(name) for name in listed]


def _most_probable(
    path: Path, logits: Array, names: Sequence[str] | None, top: int
) -> list[dict[str, Any]]:
    import numpy as np

    from repvgg_ref.errors import CheckpointError

    if not np.isfinite(logits).all():
        raise CheckpointError(
            f"{path.name}: the model's outputs are not finite",
            advice="see what `repvgg-ref inspect` says about the weights",
        )
    powers = np.exp(logits.astype(np.float64) - logits.max())
    probabilities = powers / powers.sum()
    best = np.argsort(-probabilities, kind="stable")[:top]
    return [
        {
            "index": int(i),
            "class": None if names is None else names[i],
            "probability": float(probabilities[i]),
        }
        for i in best
    ]


def _show(results: list[dict[str, Any]]) -> None:
    from weights_io import sanitize

    for found in results:
        done = f"  ({', '.join(found['prepared'])})" if found["prepared"] else ""
        say(sanitize(found["image"]) + done)
        for entry in found["top"]:
            name = str(entry["index"]) if entry["class"] is None else entry["class"]
            click.echo(f"  {entry['probability']:7.2%}  {sanitize(name)}")
