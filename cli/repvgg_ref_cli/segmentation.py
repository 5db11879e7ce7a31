"""`eval` and `predict` of networks that say a class for every pixel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repvgg_ref_cli.options import note, print_json, say
from repvgg_ref_cli.piped import without_copy

if TYPE_CHECKING:
    from repvgg_ref.arrays import Array
    from repvgg_ref.data.source import Source
    from repvgg_ref.models.network import Model
    from repvgg_ref.train.evaluate import Comparison


def evaluate(
    forms: Sequence[Model],
    source: Source,
    *,
    size: int | None,
    flip: bool,
    backend: str,
    algorithm: str,
    confusion: Path | None,
    as_json: bool,
) -> bool:
    """Judge one form of a network, or both, on all pixels of a data set; whether they agree."""
    import numpy as np

    from repvgg_ref.data.dense import counts_nowhere
    from repvgg_ref.data.windows import window_of
    from repvgg_ref.train.evaluate import Furthest
    from repvgg_ref.train.pixels import confusion as count
    from repvgg_ref.train.pixels import scores_of

    window, classes = window_of(forms[0].about, size), len(source.classes)
    counts = [np.zeros((classes, classes), np.int64) for _ in forms]
    alike = pixels = void = 0
    furthest = Furthest()
    for image, labels in _pictures(source):
        taken = _classes(
            forms,
            image,
            window,
            flip=flip,
            backend=backend,
            algorithm=algorithm,
            see=furthest.see if len(forms) == 2 else None,
        )
        for own, found in zip(counts, taken, strict=True):
            own += count(found, labels, classes)
        alike += int((taken[0] == taken[-1]).sum())
        pixels += labels.size
        void += counts_nowhere(labels)
    *_, last = counts  # the fused form if there are both
    report: dict[str, Any] = {
        "model": forms[-1].name,
        "form": "both" if len(forms) == 2 else forms[0].form,
        "assumed": forms[-1].assumed.to_json(),
        "images": len(source),
        "void": void,
        **scores_of(last),
        "classes": list(source.classes),
        "window": window,
        "flip": flip,
        "confusion": last.tolist(),
    }
    if len(forms) == 2:
        report["forms"] = {f.form: scores_of(c) for f, c in zip(forms, counts, strict=True)}
        report["same_pixels"] = alike / pixels
        apart = furthest.compare(*forms, roundoff=2.0**-24)
        report["agreement"] = agreement(apart)
    if confusion is not None:
        _save(_confusion(last, source.classes), confusion)
    if void:
        note(f"of {void} of {len(source)} pictures no pixel has a label: they count nowhere")
    if as_json:
        print_json(report)
    else:
        _show(report)
    return len(forms) == 1 or apart.ok


def agreement(apart: Comparison) -> dict[str, Any]:
    """Whether two forms agree, for JSON."""
    return {
        "ok": apart.ok,
        "same_class": apart.same_class,
        "max_difference": apart.difference,
        "largest_difference": apart.largest,
        "tolerance": apart.tolerance,
    }


def predict(
    model: Model,
    images: Sequence[Path],
    names: Sequence[str],
    *,
    out: Path | None,
    size: int | None,
    backend: str,
    algorithm: str,
) -> list[dict[str, Any]]:
    """What each picture is made of; drawn over the only one if `out` says where."""
    import numpy as np

    from repvgg_ref.data.images import open_upright
    from repvgg_ref.data.overlay import overlay, shares
    from repvgg_ref.data.windows import window_of
    from repvgg_ref_cli.progress import ProgressBar

    if out is not None and len(images) > 1:
        raise click.UsageError("--out draws over one IMAGE; call it once for each")
    window, results = window_of(model.about, size), []
    with ProgressBar("segmenting") as progress:
        for number, path in enumerate(images, start=1):
            pixels = np.asarray(open_upright(path).convert("RGB"))
            (found,) = _classes(
                [model],
                pixels,
                window,
                flip=False,
                backend=backend,
                algorithm=algorithm,
                whole=True,
            )
            if out is not None:
                _save(overlay(pixels, found, names), out)
            parts = [
                {"index": c, "class": names[c], "share": part}
                for c, part in shares(found, len(names))
            ]
            drawn = None if out is None else str(out)
            results.append({"image": without_copy(path), "pixels": parts, "out": drawn})
            progress(path.name, number, len(images))
    return results


def show_parts(results: list[dict[str, Any]]) -> None:
    """For people."""
    from weights_io import sanitize

    for found in results:
        say(sanitize(found["image"]))
        for entry in found["pixels"]:
            click.echo(f"  {entry['share']:7.2%}  {sanitize(entry['class'])}")
        if found["out"] is not None:
            say(f"wrote  {sanitize(found['out'])}")


def _classes(
    forms: Sequence[Model],
    pixels: Array,
    window: int,
    *,
    flip: bool,
    backend: str,
    algorithm: str,
    whole: bool = False,
    see: Callable[[Array, Array, Array], None] | None = None,
) -> Array:
    """The class that each form says of every pixel, (forms, H, W).

    `see` gets each window, and the logits of two forms.
    """
    import numpy as np

    from repvgg_ref.data.windows import probabilities_of_forms, standardise_of
    from repvgg_ref.errors import CheckpointError

    def forward(x: Array) -> Array:
        logits = [form.forward(x, backend=backend, algorithm=algorithm) for form in forms]
        if see is not None:
            see(x, *logits)
        return np.concatenate(logits)

    found = probabilities_of_forms(
        pixels,
        forward,
        size=window,
        flip=flip,
        whole=whole,
        standardise=standardise_of(forms[0].about),
    )
    if not np.isfinite(found).all():
        raise CheckpointError(
            "the model's outputs are not finite",
            advice="see what `repvgg-ref inspect` says about the weights",
        )
    classes: Array = found.argmax(axis=1)
    return classes


def _pictures(source: Source) -> Iterator[tuple[Array, Array]]:
    """Image (H, W, 3) and labels (H, W) of each picture, with a progress bar."""
    import numpy as np

    from repvgg_ref.data.dense import parted
    from repvgg_ref_cli.progress import ProgressBar

    with ProgressBar("evaluating") as progress:
        for index in range(len(source)):
            image, labels = parted(source.picture(index))
            yield np.asarray(image), np.asarray(labels)
            progress(source.key(index), index + 1, len(source))


def _confusion(counts: Array, classes: Sequence[str]) -> Any:
    from repvgg_ref.data.overlay import confusion_picture

    return confusion_picture(counts, classes)


def _save(picture: Any, path: Path) -> None:
    """Whole or not at all."""
    from repvgg_ref.errors import CheckpointError
    from weights_io import atomic_path

    if path.suffix.lower() != ".png":
        raise CheckpointError("pictures are written as PNG", got=path.name, wanted="x.png")
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        picture.save(file, "PNG")


def _part(score: float | None) -> str:
    return "undefined: no pixel has a label" if score is None else f"{score:7.2%}"


def _show(found: dict[str, Any]) -> None:
    say(
        f"{found['model']}, {found['form']} form{'s' if found['form'] == 'both' else ''}, "
        f"{found['images']} images (windows of {found['window']} x {found['window']}"
        f"{', mirrored too' if found['flip'] else ''})"
    )
    for form, scores in found.get("forms", {found["form"]: found}).items():
        of = f"  ({form} form)" if "forms" in found else ""
        say(f"mIoU    {_part(scores['miou'])}{of}")
        say(f"mAcc    {_part(scores['macc'])}")
        say(f"allAcc  {_part(scores['allacc'])}")
    if "same_pixels" in found:
        apart = found["agreement"]
        say(
            f"forms   {'agree' if apart['ok'] else 'DISAGREE'}: the same class for"
            f" {found['same_pixels']:.4%} of the pixels; logits differ by at most"
            f" {apart['largest_difference']:.2g}; in the window closest to what rounding explains"
            f" by {apart['max_difference']:.2g} of {apart['tolerance']:.2g}"
        )
    wide = max(map(len, found["classes"]))
    for name, iou in zip(found["classes"], found["iou"], strict=True):
        say(f"  {name:{wide}}  {'-' if iou is None else f'{iou:7.2%}'}")
