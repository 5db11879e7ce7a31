"""Advice as one HTML page: no script, no external resource; channel ranges drawn layer by layer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from repvgg_ref.arrays import Array
from repvgg_ref.integer.advise import Advice, LayerAdvice
from repvgg_ref.version import __version__

WIDTH, HEIGHT = 560, 64
_DECADES = 3.0  # below the widest channel that are drawn
_MOST_BARS = 280


class Bar(NamedTuple):
    """A channel: where its bar stands, and how tall it is."""

    x: float
    width: float
    height: float


def render_page(advice: Advice) -> str:
    """The page; every text is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("repvgg_ref.integer"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("advice.html.j2").render(
        advice=advice,
        layers=[(layer, list(bars(layer)), _median_line(layer)) for layer in advice.layers],
        width=WIDTH,
        height=HEIGHT,
        version=__version__,
    )


def bars(layer: LayerAdvice) -> Iterator[Bar]:
    """Channels from the widest to the narrowest, heights on a logarithmic scale."""
    ranges = sorted(map(float, layer.ranges), reverse=True)
    step = max(1, -(-len(ranges) // _MOST_BARS))
    shown = ranges[::step]
    width = WIDTH / len(shown)
    for place, value in enumerate(shown):
        yield Bar(place * width, max(width - 0.5, 0.5), HEIGHT * _share(value, ranges[0]))


def spark(ranges: Array, columns: int) -> str:
    """The same in one line of text, for terminals."""
    ordered = sorted(map(float, ranges), reverse=True)
    picked = [ordered[int(i * len(ordered) / columns)] for i in range(min(columns, len(ordered)))]
    return "".join("▁▂▃▄▅▆▇█"[round(7 * _share(value, ordered[0]))] for value in picked)


def _median_line(layer: LayerAdvice) -> float:
    ordered = sorted(map(float, layer.ranges), reverse=True)
    return HEIGHT * (1 - _share(ordered[len(ordered) // 2], ordered[0]))


def _share(value: float, largest: float) -> float:
    """0 for what is `_DECADES` below the largest, 1 for the largest."""
    if value <= 0 or largest <= 0:
        return 0.0
    return max(0.0, 1 + math.log10(value / largest) / _DECADES)
