"""`repvgg-ref eval`: top-1 and top-5 accuracy on a labelled data set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repvgg_ref_cli.data_options import (
    data_option,
    decoder_option,
    interpolation_option,
    threads_option,
)
from repvgg_ref_cli.options import (
    FILE,
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

if TYPE_CHECKING:
    from repvgg_ref.arrays import Array
    from repvgg_ref.data.loader import Loader
    from repvgg_ref.data.source import Standardise
    from repvgg_ref.data.transforms import EvaluationTransform
    from repvgg_ref.models.network import Model
    from repvgg_ref.models.published import Published
    from repvgg_ref.train.accuracy import Tally
    from repvgg_ref.train.evaluate import Counted

_PIXELS = click.IntRange(1, 4096)
_COUNT = click.IntRange(min=1)
_DISAGREES = 1


@click.command(short_help="Top-1 and top-5, or mIoU, on a labelled data set.")
@checkpoint_option("weights", "--weights", help="In train or deploy form.")
@data_option
@click.option(
    "--split",
    type=click.Choice(["train", "val", "held-out"]),
    default="val",
    show_default=True,
    help="Part; held-out is what `train` evaluates on: val, or what it keeps apart without one.",
)
@click.option(
    "--size",
    type=_PIXELS,
    show_default="what the file says; 224, D2se 320, small pictures their own",
    help="Of the crop.",
)
@click.option(
    "--resize", type=_PIXELS, show_default="size / 0.875, or size", help="Shorter side first."
)
@interpolation_option
@click.option("--batch", type=_COUNT, default=64, show_default=True, help="Images at once.")
@threads_option
@click.option("--limit", type=_COUNT, help="Only so many images, evenly spread.")
@click.option(
    "--form",
    type=click.Choice(["train", "deploy", "both"]),
    default="deploy",
    show_default=True,
    help="Which form to evaluate; both also shows that they agree.",
)
@click.option(
    "--flip/--no-flip", default=True, help="Pixels: average over the mirrored picture, too."
)
@click.option("--confusion", type=FILE, help="Pixels: draw which class is taken for which, a PNG.")
@ema_option
@decoder_option
@model_option
@block_option
@eps_option
@geometry_options
@backend_option
@algorithm_option
@json_option
@debug_option
@click.pass_context
def command(
    ctx: click.Context,
    weights: Path,
    data: str,
    split: str,
    size: int | None,
    resize: int | None,
    interpolation: str,
    batch: int,
    threads: int,
    limit: int | None,
    form: str,
    flip: bool,
    confusion: Path | None,
    ema: bool,
    decoder: str,
    model: str,
    block: str,
    eps: float | None,
    strides: Any,
    dilations: Any,
    backend: str,
    algorithm: str,
    as_json: bool,
) -> None:
    """Measure how often a network is right on DIR (val in it, or DIR itself).

    DIR holds one folder a class, tar files in WebDataset's layout, or what `repvgg-ref shards`
    wrote; `digits` is the bundled data. Classes are the sorted folder names, as for the official
    weights. The interval is Wilson's at 95 %.

    Blocks that cannot be fused are evaluated in train form.

    Of a PSPNet, whose data have labels of pixels, the result is mIoU, mAcc and allAcc: over windows
    of --size, two thirds of it apart, and the mirrored picture.

    Exit code 1 with --form both if the two forms disagree.
    """
    import repvgg_ref
    from repvgg_ref.data import splits_of
    from repvgg_ref.data.loader import Loader
    from repvgg_ref.data.skipped import told
    from repvgg_ref.models.arguments import require_head
    from repvgg_ref.train.evaluate import count
    from repvgg_ref.train.sources import (
        class_notes,
        open_validation,
        standardisation,
        validation_transform,
    )
    from repvgg_ref_cli.segmentation import evaluate

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
    require_head(loaded.arch, "eval")
    form = form if loaded.arch.is_fusible else "train"
    forms = _forms(loaded, form)
    source = open_validation(loaded, data, split=split, decoder=decoder, limit=limit)
    if split == "val" and Path(data).is_dir() and "val" not in splits_of(data):
        note(f"{data} has no val, so all of it is judged; after a training on it: --split held-out")
    for message in class_notes(loaded, source):
        note(message)
    if loaded.arch.is_dense:
        agree = evaluate(
            forms,
            source,
            size=size,
            flip=flip,
            backend=backend,
            algorithm=algorithm,
            confusion=confusion,
            as_json=as_json,
        )
        ctx.exit(0 if agree else _DISAGREES)
    transform = validation_transform(
        loaded, source, size=size, resize=resize, interpolation=interpolation
    )
    loader = Loader(
        source,
        transform=transform,
        batch_size=batch,
        threads=threads,
        shuffle=False,
        drop_last=False,
    )

    def forward(model: Model, x: Array) -> Array:
        logits = model.forward(x, backend=backend, algorithm=algorithm)
        _require_finite(logits)
        return logits

    standardise = standardisation(loaded, source)
    counted = count(forms, _inputs(loader, standardise), forward=forward, roundoff=2.0**-24)
    for line in told(loader.skipped):
        note(line)
    found = _as_json(loaded, form, counted, loader, transform)
    if as_json:
        print_json(found)
    else:
        _show(found)
    if counted.comparison is not None and not counted.comparison.ok:
        ctx.exit(_DISAGREES)


def _forms(model: Model, form: str) -> list[Model]:
    """The models to evaluate."""
    from repvgg_ref import fuse
    from repvgg_ref.errors import NotFusibleError

    if model.form == "deploy":
        if form != "deploy":
            raise NotFusibleError(
                "the file's branches are fused already",
                got="deploy form",
                wanted="a training checkpoint",
                advice="leave --form out",
            )
        return [model]
    forms = [model] if form != "deploy" else []
    return forms if form == "train" else [*forms, fuse(model)]


def _require_finite(logits: Array) -> None:
    import numpy as np

    from repvgg_ref.errors import CheckpointError

    if not np.isfinite(logits).all():
        raise CheckpointError(
            "the model's outputs are not finite",
            advice="see what `repvgg-ref inspect` says about the weights",
        )


def _inputs(loader: Loader, standardise: Standardise) -> Iterator[tuple[Array, Array]]:
    """The batches as the network takes them, with a progress bar."""
    import time
    from contextlib import closing

    from repvgg_ref_cli.progress import ProgressBar

    started, done, total = time.monotonic(), 0, len(loader.source)
    with ProgressBar("evaluating") as progress, closing(loader.epoch(0)) as batches:
        for batch in batches:
            yield standardise(batch.images), batch.labels
            done += len(batch.labels)
            progress(f"{done / (time.monotonic() - started):.0f} images/s", done, total)


def _as_json(
    model: Model, form: str, counted: Counted, loader: Loader, transform: EvaluationTransform
) -> dict[str, Any]:
    from repvgg_ref.train.accuracy import Tally
    from repvgg_ref_cli.segmentation import agreement

    tallies = {form: each for form, each in counted.tallies.items() if isinstance(each, Tally)}
    *_, last = tallies.values()  # the fused form if there are both
    found: dict[str, Any] = {
        "model": model.name,
        "form": form,
        "assumed": model.assumed.to_json(),
        **_rates(last),
        "size": transform.size,
        "resize": transform.resize,
        "skipped": [{"image": name, "reason": reason} for name, reason in loader.skipped],
        "expected": _expected(_published(model), transform.size),
    }
    if (apart := counted.comparison) is not None:
        found["forms"] = {name: _rates(tally) for name, tally in tallies.items()}
        found["agreement"] = agreement(apart)
    return found


def _published(model: Model) -> Published | None:
    """What is stated of this network: nothing, if it has other strides or dilations."""
    from repvgg_ref.models.geometry import geometry_of
    from repvgg_ref.models.published import PUBLISHED
    from repvgg_ref.models.registry import network

    if model.name not in PUBLISHED:
        return None
    usual, own = (geometry_of(each) for each in (network(model.name), model.arch))
    return PUBLISHED[model.name] if usual | own == usual else None


def _rates(tally: Tally) -> dict[str, Any]:
    from repvgg_ref.models.rates import wilson_interval

    return {
        "images": tally.images,
        "top1": tally.score.top1,
        "top5": tally.score.top5,
        "interval": list(wilson_interval(tally.top1, tally.images)),
    }


def _expected(published: Published | None, size: int) -> dict[str, Any] | None:
    """Top-1 as parts of 1, and whether it was measured on crops of this size."""
    if published is None:
        return None
    return {
        name: None if value is None else value / 100
        for name, value in (("paper", published.paper), ("timm", published.timm))
    } | {"size": published.size, "same_size": published.size == size}


def _show(found: dict[str, Any]) -> None:
    say(
        f"{found['model']}, {found['form']} form{'s' if found['form'] == 'both' else ''}, "
        f"{found['images']} images "
        f"({found['size']} x {found['size']} of {found['resize']})"
    )
    for form, rates in found.get("forms", {found["form"]: found}).items():
        low, high = rates["interval"]
        of = f", {form} form" if "forms" in found else ""
        say(f"top-1  {rates['top1']:7.2%}  (95 % interval {low:.2%} to {high:.2%}{of})")
        say(f"top-5  {rates['top5']:7.2%}")
    if "agreement" in found:
        apart = found["agreement"]
        say(
            f"forms  {'agree' if apart['ok'] else 'DISAGREE'}: the same class for "
            f"{apart['same_class']} of {found['images']} images; logits differ by at most "
            f"{apart['largest_difference']:.2g}; on the image closest to what rounding explains "
            f"by {apart['max_difference']:.2g} of {apart['tolerance']:.2g}"
        )
    if found["expected"] is not None:
        _show_expected(found["expected"])


def _show_expected(expected: dict[str, Any]) -> None:
    stated = [
        f"{expected[name]:.2%} ({says})"
        for name, says in (("paper", "paper"), ("timm", "released weights, timm"))
        if expected[name] is not None
    ]
    other = "" if expected["same_size"] else f", at {expected['size']} x {expected['size']}"
    say(f"stated {', '.join(stated)} on ImageNet's validation set{other}")
