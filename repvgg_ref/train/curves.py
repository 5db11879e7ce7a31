"""The training drawn: loss and accuracy over the steps, as SVG and as PNG, from the log."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import weights_io
from repvgg_ref.train.state import write_text

WIDTH, HEIGHT, MARGIN = 720, 260, 60
_POINTS = 600  # drawn of a curve at most; means of what lies between
_TICKS = 5
_COLOURS = ("#1f6feb", "#bc4c00", "#1a7f37")

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """A line of a panel; `points` are pixels."""

    label: str
    colour: str
    points: Points


@dataclass(frozen=True)
class Panel:
    """One diagram: curves, and labelled positions on both axes, in pixels."""

    title: str
    top: float
    curves: tuple[Curve, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]


def write_curves(folder: Path, records: Sequence[dict[str, Any]], *, title: str) -> list[Path]:
    """Write ``curves.svg`` and ``curves.png`` of a log's records.

    Returns
    -------
    The files; none if the log holds no two steps.
    """
    panels = _panels(records)
    if not panels:
        return []
    paths = [folder / "curves.svg", folder / "curves.png"]
    write_text(paths[0], _svg(panels, title))
    with weights_io.atomic_path(paths[1]) as temporary:
        _draw(panels, title, temporary)
    return paths


def _panels(records: Sequence[dict[str, Any]]) -> list[Panel]:
    steps = [r for r in records if r["event"] == "step"]
    tests = [r for r in records if r["event"] == "evaluation"]
    if len(steps) < 2:
        return []
    loss = {
        "training loss": [(r["step"], r["loss"]) for r in steps],
        "test loss": [(r["step"], r["trained"]["loss"]) for r in tests],
    }
    top1 = {
        "training top-1, %": [(r["step"], 100 * r["top1"]) for r in steps],
        "test top-1, %": [(r["step"], 100 * r["trained"]["top1"]) for r in tests],
        "fused": [(r["step"], 100 * r["fused"]["top1"]) for r in tests],
    }
    lr = {"learning rate": [(r["step"], r["lr"]) for r in steps]}
    last = steps[-1]["step"]
    return [
        _panel(name, curves, last, MARGIN + index * (HEIGHT + MARGIN))
        for index, (name, curves) in enumerate({"Loss": loss, "Top-1": top1, "Rate": lr}.items())
    ]


def _panel(title: str, curves: dict[str, Points], last: float, top: float) -> Panel:
    thinned = {label: _thinned(points) for label, points in curves.items() if points}
    values = [y for points in thinned.values() for _, y in points]
    low, high = min(values), max(values)
    step = _round_step((high - low) / _TICKS or abs(high) or 1.0)
    low, high = math.floor(low / step) * step, math.ceil(high / step) * step
    high = high if high > low else low + step

    def x(at: float) -> float:
        return round(MARGIN + (WIDTH - 2 * MARGIN) * at / last, 1)

    def y(value: float) -> float:
        return round(top + HEIGHT * (high - value) / (high - low), 1)

    every = _round_step(last / _TICKS)
    return Panel(
        title,
        top,
        tuple(
            Curve(label, colour, [(x(a), y(b)) for a, b in points])
            for (label, points), colour in zip(thinned.items(), _COLOURS, strict=False)
        ),
        tuple((x(every * n), f"{every * n:g}") for n in range(int(last / every) + 1)),
        tuple(
            (y(low + step * n), f"{low + step * n:.4g}")
            for n in range(round((high - low) / step) + 1)
        ),
    )


def _thinned(points: Points) -> Points:
    """At most `_POINTS` points, each the mean of a stretch."""
    stretch = math.ceil(len(points) / _POINTS)
    parts = (points[at : at + stretch] for at in range(0, len(points), stretch))
    return [(part[-1][0], sum(y for _, y in part) / len(part)) for part in parts]


def _round_step(least: float) -> float:
    """The smallest 1, 2 or 5 times a power of ten that is at least `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(digit * power for digit in (1, 2, 5, 10) if digit * power >= least * (1 - 1e-9))


def _svg(panels: Sequence[Panel], title: str) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("repvgg_ref.train"), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("curves.svg.j2").render(
        panels=panels, title=title, width=WIDTH, height=HEIGHT, margin=MARGIN, total=_total(panels)
    )


def _draw(panels: Sequence[Panel], title: str, path: Path) -> None:
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (WIDTH, int(_total(panels))), "white")
    pen = ImageDraw.Draw(image)
    pen.text((MARGIN, 8), title, fill="black")
    for panel in panels:
        bottom = panel.top + HEIGHT
        for y, label in panel.y_ticks:
            pen.line([(MARGIN, y), (WIDTH - MARGIN, y)], fill="#e5e5e5")
            pen.text((MARGIN - 6, y), label, fill="#555555", anchor="rm")
        for x, label in panel.x_ticks:
            pen.line([(x, panel.top), (x, bottom)], fill="#e5e5e5")
            pen.text((x, bottom + 8), label, fill="#555555", anchor="mt")
        for index, curve in enumerate(panel.curves):
            if len(curve.points) > 1:
                pen.line(curve.points, fill=curve.colour, width=2)
            pen.text((MARGIN + 150 * index, panel.top - 14), curve.label, fill=curve.colour)
    image.save(path)


def _total(panels: Sequence[Panel]) -> float:
    return MARGIN + len(panels) * (HEIGHT + MARGIN)
