"""`repvgg-ref advise`: what 8-bit integers would cost in each layer, why, and what helps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repvgg_ref_cli.console import Fitting, console
from repvgg_ref_cli.options import (
    Output,
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
    weights_set_option,
)
from repvgg_ref_cli.piped import destination, refuse_two_on_stdout

if TYPE_CHECKING:
    from rich.table import Table

    from repvgg_ref.integer.advise import Advice
    from repvgg_ref.models.network import Model
    from repvgg_ref_cli.calibration import Parted

_MADE, _SIDE = 16, 224
_SPARK = 16


@click.command(short_help="Say what 8-bit integers would cost in each layer, and what helps.")
@checkpoint_option("source", "--in", help="Best in train form: its branches tell the cause.")
@click.option(
    "--calibrate",
    metavar="DIR|FILE.npy",
    help="Images, as for quantize; class folders also show accuracy. [made of noise]",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    help="Images at most that ranges are measured on.",
)
@click.option(
    "--held-out",
    type=click.IntRange(min=1),
    default=512,
    show_default=True,
    help="Other images at most, on which gains are counted; six passes each.",
)
@click.option(
    "--report", "page", type=Output("html"), help="Also write one HTML page with pictures."
)
@block_option
@eps_option
@geometry_options
@weights_set_option
@json_option
@debug_option
def command(
    source: Path,
    calibrate: str | None,
    limit: int,
    held_out: int,
    page: Path | None,
    block: str,
    eps: float | None,
    strides: Any,
    dilations: Any,
    weights_set: Any,
    as_json: bool,
) -> None:
    """Simulate 8-bit integers in each layer and in all, with every remedy, worst layer first.

    Ranges are measured on images to train on, gains counted on others: the data set's val, or what
    training holds out of it; of a file or a folder without parts, on others of it. Intervals hold
    the truth for images like these in 95 of 100 cases.
    """
    import repvgg_ref
    from repvgg_ref.integer.advise import advise
    from repvgg_ref.integer.page import render_page
    from weights_io import atomic_path

    refuse_two_on_stdout(page, as_json=as_json, option="--report")
    model = repvgg_ref.load(
        source, eps=eps, block=block, strides=strides, dilations=dilations, weights=weights_set
    )
    for message in (*model.notes, *assumed_line(model.assumed)):
        note(message)
    parts = _images(calibrate, model, limit, held_out)
    advice = advise(model, parts.held_out, parts.labels, ranges_from=parts.images)
    if page is not None:
        with destination(page, "page.html") as target, atomic_path(target) as path:
            path.write_text(render_page(advice), encoding="utf-8")
    if as_json:
        print_json(advice.to_json())
    else:
        _show(advice)


def _images(calibrate: str | None, model: Model, limit: int, held_out: int) -> Parted:
    from repvgg_ref_cli.calibration import of_both, parted, parted_images

    if calibrate is not None:
        return parted_images(calibrate, model, limit, held_out)
    import numpy as np

    note("no images given: noise stands for them; --calibrate DIR makes the figures yours")
    side = _SIDE if model.about.input_size is None else model.about.input_size[0]
    shape = (_MADE, model.arch.in_channels, side, side)
    images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return of_both(*(images[each] for each in parted(len(images), limit, held_out)))


def _show(advice: Advice) -> None:
    console().print(Fitting(_layers(advice), drop=[6, 3]))
    console().print(Fitting(_simulated(advice)))
    say(f"{advice.source}, intervals at 95 %; dB: signal over quantisation noise, more is better")
    for number, step in enumerate(advice.steps, 1):
        say(f"{number}. {step}")


def _layers(advice: Advice) -> Table:
    from rich.text import Text

    from repvgg_ref.integer.page import spark

    table = _table("layer", "alone", "kernel dB", "a channel", "equalized", "range", "channels")
    for layer in advice.layers:
        name = Text(layer.name)
        if layer.keep_fp16:
            name.append(" fp16", style="red")
        table.add_row(
            name,
            f"{layer.alone:.1f}",
            f"{layer.sqnr_per_tensor:.1f}",
            f"{layer.sqnr_per_channel:.1f}",
            f"{layer.gain_of_equalization:+.1f}",
            f"{layer.range_ratio:.1f}",
            Text(spark(layer.ranges, _SPARK)),
        )
    return table


def _simulated(advice: Advice) -> Table:
    counted = "same class" if advice.simulated[0].top1 is None else "top-1"
    table = _table("simulated", "dB", counted, "gain in points")
    for each in advice.simulated:
        rate = each.same_class if each.top1 is None else each.top1
        gain = (
            ""
            if each is advice.naive
            else f"{each.gain_over(advice.naive)}".removesuffix(" points")
        )
        table.add_row(each.name, f"{each.sqnr:.1f}", f"{rate:.1%}", gain)
    return table


def _table(*titles: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(titles[0], no_wrap=True)
    for title in titles[1:]:
        table.add_column(title, justify="right", no_wrap=True)
    return table
