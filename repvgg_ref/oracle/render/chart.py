"""Error over bound of every layer on a logarithmic axis: where the marks go.

Positions are percentages of the width, so that the drawing fits a phone and a printed page with
its letters at one size; the template draws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from repvgg_ref.oracle.render.words import State, number, state, used, visible
from repvgg_ref.oracle.report import LayerReport, Report

TOP, ROW = 44, 22  # pixels
_LOWEST, _HIGHEST = -6, 6  # decades drawn at most; what lies outside gets an arrow
_LEAST_BELOW, _LEAST_ABOVE = -3, 1
_MOST_LABELS = 5
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Tick:
    """A vertical line at a power of ten; `label` is empty for most."""

    x: float
    label: str


@dataclass(frozen=True)
class Row:
    """One layer's marks; `x` and `likely_x` are None where there is nothing to draw."""

    name: str
    state: State
    y: float
    x: float | None
    beyond_axis: bool
    likely_x: float | None
    value: str
    title: str
    is_first_bad: bool


@dataclass(frozen=True)
class Chart:
    """The whole drawing; `bound_x` is where the ratio is 1."""

    rows: tuple[Row, ...]
    ticks: tuple[Tick, ...]
    bound_x: float
    height: int


@dataclass(frozen=True)
class _Axis:
    low: int
    high: int

    def at(self, ratio: float) -> float:
        """Percent of the width, within the axis."""
        if ratio <= 0:
            return 0.0
        decades = min(math.log10(ratio), float(self.high)) if math.isfinite(ratio) else self.high
        return round(100 * max(0.0, decades - self.low) / (self.high - self.low), 2)


def chart(report: Report) -> Chart:
    """Lay out the drawing of `report.layers`, in network order."""
    axis = _axis(report.layers)
    rows = tuple(
        _row(layer, index, axis, layer.name == report.first_bad_layer)
        for index, layer in enumerate(report.layers)
    )
    return Chart(rows, _ticks(axis), axis.at(1.0), TOP + ROW * len(rows))


def _axis(layers: tuple[LayerReport, ...]) -> _Axis:
    ratios = [r for layer in layers for r in (layer.ratio, layer.likely_ratio)]
    decades = [math.log10(r) for r in ratios if math.isfinite(r) and r > 0]
    low = math.floor(min([*decades, _LEAST_BELOW]))
    high = math.ceil(max([*decades, _LEAST_ABOVE]))
    return _Axis(max(low, _LOWEST), min(high, _HIGHEST))


def _ticks(axis: _Axis) -> tuple[Tick, ...]:
    """A line every decade; labels no denser than a phone can show, always one at the bound."""
    every = math.ceil((axis.high - axis.low) / _MOST_LABELS)
    return tuple(
        Tick(axis.at(10.0**decade), _label(decade) if decade % every == 0 else "")
        for decade in range(axis.low, axis.high + 1)
    )


def _label(decade: int) -> str:
    return "1" if decade == 0 else f"10{str(decade).translate(_SUPERSCRIPTS)}"


def _row(layer: LayerReport, index: int, axis: _Axis, is_first_bad: bool) -> Row:
    kind = state(layer)
    comparable = kind != "void"
    has_likely = comparable and math.isfinite(layer.likely_ratio) and layer.likely_ratio > 0
    return Row(
        name=visible(layer.name),
        state=kind,
        y=TOP + ROW * (index + 0.5),
        x=axis.at(layer.ratio) if comparable else None,
        beyond_axis=comparable and layer.ratio > 10.0**axis.high,
        likely_x=axis.at(layer.likely_ratio) if has_likely else None,
        value=used(layer),
        title=_title(layer),
        is_first_bad=is_first_bad,
    )


def _title(layer: LayerReport) -> str:
    """What a pointer that rests on the row is told."""
    lines = [
        f"{visible(layer.name)}: {'ok' if layer.ok else 'bad'}",
        f"largest error {number(layer.max_error)}, certified bound {number(layer.bound)}",
        f"error / bound {number(layer.ratio)}, error / likely bound {number(layer.likely_ratio)}",
    ]
    if layer.inherited is not None:
        lines.append(f"its input differs from the reference's by {number(layer.inherited)}")
    if layer.note:
        lines.append(visible(layer.note))
    return "\n".join(lines)
