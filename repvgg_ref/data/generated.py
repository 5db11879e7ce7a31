"""A generated data set: drawn shapes. It is what it says, and no photographs.

Ten shapes stand in ten classes; place, size, angle, colours, ground, distracting lines, blur and
noise vary and say nothing of the class. It is harder than the bundled digits, needs no download,
and exists so that training in colour at any size can be shown and timed. A figure reached on it
says that the training works, not how good the network would be on real pictures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.data.order import stream
from repvgg_ref.data.source import LUMA, DataError, Standardise

if TYPE_CHECKING:
    from PIL.Image import Image

PREFIX = "generated:"
SPLITS = {"train": (0, 10_000), "val": (1, 2_000)}  # number of the stream, pictures
_FINER = 3  # drawn so many times larger, then averaged
_DISTRACTIONS = 3  # lines at most
_NOISE = 10  # standard deviation at most, of 255
_CONTRAST = 60  # of brightness at least, of 255

Points = list[tuple[float, float]]


def _regular(corners: int, inner: float = 1.0) -> Points:
    """A regular polygon of radius 1, or a star if every other corner lies at `inner`."""
    return [
        (
            (inner if i % 2 else 1.0) * math.sin(2 * math.pi * i / corners),
            (inner if i % 2 else 1.0) * -math.cos(2 * math.pi * i / corners),
        )
        for i in range(corners)
    ]


def _arc(start: float, end: float, radius: float = 1.0) -> Points:
    """Points of a circle's arc, angles in turns."""
    turns = np.linspace(start, end, 24)
    return [(radius * math.cos(2 * math.pi * t), radius * math.sin(2 * math.pi * t)) for t in turns]


_SHAPES: dict[str, Points] = {
    "disc": _arc(0, 1),
    "triangle": _regular(3),
    "square": _regular(4),
    "pentagon": _regular(5),
    "star": _regular(10, 0.4),
    "cross": [
        *((-0.3, -1.0), (0.3, -1.0), (0.3, -0.3), (1.0, -0.3), (1.0, 0.3), (0.3, 0.3)),
        *((0.3, 1.0), (-0.3, 1.0), (-0.3, 0.3), (-1.0, 0.3), (-1.0, -0.3), (-0.3, -0.3)),
    ],
    "bar": [(-1.0, -0.25), (1.0, -0.25), (1.0, 0.25), (-1.0, 0.25)],
    "half": _arc(0, 0.5),
    "ring": [*_arc(0, 1), *_arc(1, 0, 0.55)],
    "moon": [*_arc(0.12, 0.88), *((0.5 * x + 0.42, 0.72 * y) for x, y in _arc(0.78, 0.22))],
}
CLASSES = tuple(_SHAPES)


class Drawn:
    """What generated data sets share: a size in their name, and pictures that are stored nowhere.

    ``generated:WHAT`` or ``generated:WHAT-SIZE``; every picture follows from its index.

    Attributes
    ----------
    what : str
    sizes : least, usual and largest one, in pixels
    splits : split -> number of the stream, pictures

    Raises
    ------
    DataError
        If the name is another one, or the size impossible.
    """

    what: str
    sizes: tuple[int, int, int]
    splits: Mapping[str, tuple[int, int]]

    def __init__(self, name: str, *, split: str) -> None:
        what, _, size = name.removeprefix(PREFIX).partition("-")
        if what != self.what or not (size.isdecimal() or not size) or len(size) > 4:
            raise DataError(
                "there is no such generated data set",
                got=repr(name),
                wanted="generated:shapes, generated:scenes, or either with -SIZE",
            )
        least, usual, most = self.sizes
        self.size, self._split = int(size or usual), split
        if not least <= self.size <= most:
            raise DataError(
                f"no {what} of this size", got=self.size, wanted=f"{least} ... {most} pixels"
            )
        self.side: int | None = self.size
        self._stream, self._count = self.splits[split]

    def __len__(self) -> int:
        return self._count

    def name(self, index: int) -> str:
        """``generated:WHAT/split[index]``."""
        return f"{PREFIX}{self.what}/{self._split}[{index}]"

    def key(self, index: int) -> str:
        """The index."""
        return str(index)

    def stored_size(self, index: int) -> int:
        """It is drawn, not stored."""
        return 0

    def stored(self, index: int) -> bytes:
        """Nothing."""
        return b""


class ShapesSource(Drawn):
    """``generated:shapes`` (32 x 32) or ``generated:shapes-SIZE``; 10,000 pictures and 2,000."""

    what, sizes, splits = "shapes", (16, 32, 1024), SPLITS
    channels = 3
    classes = CLASSES
    standardise = Standardise(1 / 255, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))

    def __init__(self, name: str, *, split: str) -> None:
        super().__init__(name, split=split)
        self.labels = np.arange(self._count, dtype=np.int64) % len(CLASSES)

    def picture(self, index: int) -> Image:
        """Draw it."""
        rng = stream(0, self._stream, index + 1)
        return draw(CLASSES[self.labels[index]], self.size, rng)


def draw(shape: str, size: int, rng: np.random.Generator) -> Image:
    """A picture of `shape` in RGB, everything but the shape drawn from `rng`."""
    from PIL import Image as Pillow
    from PIL import ImageDraw, ImageFilter

    side = size * _FINER
    ground, ink = _colours(rng)
    picture = Pillow.fromarray(_gradient(ground, side, rng))
    canvas = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(_DISTRACTIONS + 1))):
        ends = tuple(float(end) for end in rng.uniform(0, side, 4))
        canvas.line(ends, fill=_colour(rng), width=max(1, side // 32))
    canvas.polygon(_placed(_SHAPES[shape], side, rng), fill=ink)
    picture = picture.resize((size, size), Pillow.Resampling.BOX)
    picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, size / 64)))
    noise = rng.normal(0, rng.uniform(0, _NOISE), (size, size, 3))
    return Pillow.fromarray(np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8))


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = rng.integers(0, 256, 3)
    return int(red), int(green), int(blue)


def _colours(rng: np.random.Generator) -> tuple[Array, tuple[int, int, int]]:
    """Two colours that the ground runs between, and one of another brightness for the shape."""
    ground = rng.uniform(0, 255, (2, 3))
    brightness = float(ground.mean(axis=0) @ LUMA)
    ink = _colour(rng)
    while abs(float(np.dot(ink, LUMA)) - brightness) < _CONTRAST:
        ink = _colour(rng)
    return ground, ink


def _gradient(colours: Array, side: int, rng: np.random.Generator) -> Array:
    """(side, side, 3) uint8, running from one colour to the other in a random direction."""
    angle = rng.uniform(0, 2 * math.pi)
    y, x = np.mgrid[-0.5 : 0.5 : side * 1j, -0.5 : 0.5 : side * 1j]
    part = np.clip(0.5 + (math.cos(angle) * x + math.sin(angle) * y), 0, 1)[..., None]
    mixed: Array = (1 - part) * colours[0] + part * colours[1]
    return mixed.astype(np.uint8)


def _placed(points: Points, side: int, rng: np.random.Generator) -> Points:
    """The shape turned, stretched a little and moved to somewhere within the picture."""
    angle, radius = rng.uniform(0, 2 * math.pi), side * rng.uniform(0.25, 0.42)
    stretch = np.array([1.0, rng.uniform(0.8, 1.0)])
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    centre = rng.uniform(radius, side - radius, 2)
    placed = (np.array(points) * stretch) @ turn.T * radius + centre
    return [(float(x), float(y)) for x, y in placed]
