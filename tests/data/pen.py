"""Digits written with a pen: strokes of our own, in two hands, with slant, size and trembling."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

Stroke = list[tuple[float, float]]  # points, x to the right and y down, both in 0 ... 1


def _arc(x: float, y: float, rx: float, ry: float, start: float, end: float) -> Stroke:
    """Around (x, y), in degrees from the right, clockwise as y goes down."""
    turns = np.radians(np.linspace(start, end, 24))
    return [(x + rx * float(np.cos(t)), y + ry * float(np.sin(t))) for t in turns]


_ROUND = {
    0: [_arc(0.5, 0.5, 0.3, 0.5, -90, 270)],
    1: [[(0.3, 0.22), (0.55, 0.0), (0.55, 1.0)]],
    2: [[*_arc(0.5, 0.28, 0.3, 0.28, 190, 385), (0.2, 1.0), (0.82, 1.0)]],
    3: [[*_arc(0.47, 0.25, 0.28, 0.25, 210, 450), *_arc(0.47, 0.74, 0.32, 0.26, -90, 150)]],
    4: [[(0.62, 0.0), (0.15, 0.66), (0.85, 0.66)], [(0.62, 0.3), (0.62, 1.0)]],
    5: [[(0.75, 0.0), (0.3, 0.0), (0.26, 0.44), *_arc(0.46, 0.69, 0.32, 0.31, 230, 510)]],
    6: [[(0.66, 0.0), (0.36, 0.35), *_arc(0.5, 0.7, 0.29, 0.3, 190, 560)]],
    7: [[(0.18, 0.0), (0.82, 0.0), (0.42, 1.0)]],
    8: [_arc(0.5, 0.25, 0.25, 0.25, 90, 450), _arc(0.5, 0.75, 0.31, 0.25, -90, 270)],
    9: [[*_arc(0.5, 0.3, 0.28, 0.3, 0, -360), (0.76, 0.4), (0.6, 1.0)]],
}
_OTHER = {
    1: [[(0.5, 0.0), (0.5, 1.0)]],
    2: [[(0.22, 0.12), (0.5, 0.0), (0.76, 0.2), (0.6, 0.55), (0.2, 1.0), (0.85, 0.96)]],
    4: [[(0.25, 0.0), (0.2, 0.55), (0.85, 0.55)], [(0.68, 0.1), (0.66, 1.0)]],
    7: [[(0.18, 0.02), (0.8, 0.0), (0.45, 1.0)], [(0.35, 0.5), (0.78, 0.5)]],
    9: [[*_arc(0.48, 0.28, 0.28, 0.28, 0, -360), (0.76, 0.3), (0.76, 1.0)]],
}
HANDS = {"round": _ROUND, "other": _ROUND | _OTHER}


def written(
    digit: int, *, hand: str, pen: float, rng: np.random.Generator, side: int = 300
) -> Image.Image:
    """White on black, in a square of `side` pixels; `pen` is its width over the digit's height."""
    height = rng.uniform(0.45, 0.7) * side
    width = height * rng.uniform(0.75, 1.05)
    slant, turn = rng.uniform(-0.1, 0.3), rng.normal(0, 0.015, 2)
    image = Image.new("L", (2 * side, 2 * side))  # twice, for smooth edges
    draw = ImageDraw.Draw(image)
    thick = max(2, round(2 * pen * height))
    for stroke in HANDS[hand][digit]:
        points = []
        for x, y in stroke:
            px = side / 2 + width * (x - 0.5) + slant * height * (0.5 - y)
            py = side / 2 + height * (y - 0.5)
            tremble = rng.normal(0, 0.004 * height, 2) + turn * height * np.sin(6 * y)
            points.append((2 * (px + tremble[0]), 2 * (py + tremble[1])))
        draw.line(points, fill=255, width=thick, joint="curve")
        for x, y in (points[0], points[-1]):
            half = thick / 2
            draw.ellipse((x - half, y - half, x + half, y + half), fill=255)
    return image.resize((side, side), Image.Resampling.BILINEAR)
