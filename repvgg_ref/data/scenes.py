"""A generated data set of labelled street-like scenes. It is what it says, and no photographs.

Sky, houses, trees, road, sidewalk, cars, people and signs, drawn from each picture's number; place,
size, colours, light and noise vary. It needs no download, and exists so that segmentation can be
trained and shown anywhere: a figure reached on it says that the training works, not how good the
network would be on real streets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFilter

from repvgg_ref.data.dense import IGNORED, Colour, DenseSource, labelled
from repvgg_ref.data.generated import PREFIX, Drawn
from repvgg_ref.data.order import stream

if TYPE_CHECKING:
    from PIL.Image import Image

SCENES = f"{PREFIX}scenes"
CLASSES = ("sky", "building", "vegetation", "road", "sidewalk", "car", "person", "traffic sign")
SKY, BUILDING, VEGETATION, ROAD, SIDEWALK, CAR, PERSON, SIGN = range(len(CLASSES))
SPLITS = {"train": (0, 1_000), "val": (1, 100)}  # number of the stream, pictures
_KEPT = 2**28  # bytes of pictures at most; larger sets are drawn anew in every epoch
_NOISE = 8.0  # standard deviation at most, of 255
_SHADES = 28.0  # of a colour about its class's, a band
# What each class looks like on the whole; a picture's own colours lie about these.
_LOOKS: tuple[Colour, ...] = (
    *((150, 190, 230), (150, 120, 105), (70, 110, 50), (85, 85, 90)),
    *((170, 160, 160), (160, 40, 50), (60, 60, 130), (225, 205, 60)),
)


class ScenesSource(Drawn, DenseSource):
    """``generated:scenes`` (129 x 129) or ``generated:scenes-SIZE``; 1,000 pictures and 100.

    A picture is drawn when it is first asked for.
    """

    what, sizes, splits = "scenes", (33, 129, 1025), SPLITS
    classes: tuple[str, ...] = CLASSES

    def __init__(self, name: str, *, split: str) -> None:
        super().__init__(name, split=split)
        self.labels = np.zeros(self._count, np.int64)
        self._keeps = 4 * self._count * self.size**2 <= _KEPT
        self._drawn: dict[int, Image] = {}

    def picture(self, index: int) -> Image:
        """Draw it, or give it again."""
        if (kept := self._drawn.get(index)) is not None:
            return kept.copy()
        picture = _Scene(self.size, stream(1, self._stream, index + 1)).drawn()
        if self._keeps:
            self._drawn[index] = picture.copy()
        return picture


class _Scene:
    """One street, drawn from the back to the front in colours and in labels alike."""

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self._size, self._rng = size, rng
        self._horizon = size * rng.uniform(0.35, 0.5)
        self._image = Pillow.new("RGB", (size, size), self._shade(SKY))
        self._labels = Pillow.new("L", (size, size), SKY)
        self._in_colour = ImageDraw.Draw(self._image)
        self._in_labels = ImageDraw.Draw(self._labels)

    def drawn(self) -> Image:
        """The scene, lit and noisy, with its labels; what no class has is ignored."""
        self._houses()
        self._ground()
        for _ in range(int(self._rng.integers(1, 4))):
            self._tree()
        for _ in range(int(self._rng.integers(1, 3))):
            self._sign()
        for depth in sorted(self._rng.uniform(0.25, 0.8, int(self._rng.integers(1, 4)))):
            self._car(float(depth))
        for depth in sorted(self._rng.uniform(0.3, 0.8, int(self._rng.integers(1, 4)))):
            self._person(float(depth))
        if self._rng.random() < 0.5:  # the bonnet of the car that the camera is in
            self._shape([(0.1, 1.0), (0.25, 0.93), (0.75, 0.93), (0.9, 1.0)], IGNORED, (40, 40, 45))
        return labelled(self._lit(), np.asarray(self._labels))

    def _lit(self) -> Image:
        blur = ImageFilter.GaussianBlur(self._rng.uniform(0, self._size / 200))
        pixels = np.asarray(self._image.filter(blur), np.float64)
        light = self._rng.uniform(0.75, 1.15) + self._rng.uniform(-0.1, 0.1, 3)
        noise = self._rng.normal(0, self._rng.uniform(1, _NOISE), pixels.shape)
        return Pillow.fromarray(np.clip(pixels * light + noise, 0, 255).astype(np.uint8))

    def _houses(self) -> None:
        left, ground = 0.0, self._horizon / self._size + 0.05
        while left < 1:
            width = self._rng.uniform(0.15, 0.35)
            if self._rng.random() < 0.8:
                top = self._rng.uniform(0.05, 0.28)
                self._box(left, top, left + width, ground, BUILDING)
                dark = self._shade(BUILDING, darker=60)
                for x in np.arange(left + 0.03, left + width - 0.04, 0.07):
                    for y in np.arange(top + 0.04, ground - 0.06, 0.09):
                        self._box(x, y, x + 0.03, y + 0.045, BUILDING, dark)
            left += width

    def _ground(self) -> None:
        horizon, away = self._horizon / self._size, self._rng.uniform(0.4, 0.6)
        self._box(0, horizon, 1, 1, SIDEWALK)
        near = self._rng.uniform(0.0, 0.15), self._rng.uniform(0.85, 1.0)
        road = [(away - 0.06, horizon), (away + 0.06, horizon), (near[1], 1.0), (near[0], 1.0)]
        self._road = road
        self._shape(road, ROAD, self._shade(ROAD))
        for part in (0.2, 0.5, 0.8):
            y = horizon + (1 - horizon) * part
            wide, middle = 0.012 + 0.02 * part, away + (0.5 - away) * part
            self._box(middle - wide, y, middle + wide, y + 0.07 * part, ROAD, (215, 215, 210))

    def _tree(self) -> None:
        x, radius = self._rng.uniform(0, 1), self._rng.uniform(0.08, 0.15)
        y = self._horizon / self._size - radius * self._rng.uniform(0.3, 0.9)
        colour = self._shade(VEGETATION)
        self._box(x - 0.02, y, x + 0.02, y + radius + 0.1, VEGETATION, (90, 70, 50))
        for _ in range(4):
            dx, dy = self._rng.uniform(-0.4, 0.4, 2) * radius
            self._disc(x + dx, y + dy, radius * 0.8, VEGETATION, colour)

    def _sign(self) -> None:
        x = self._rng.choice([self._rng.uniform(0.05, 0.3), self._rng.uniform(0.7, 0.95)])
        side, y = self._rng.uniform(0.05, 0.08), self._rng.uniform(0.2, 0.45)
        foot = self._horizon / self._size + 0.15
        self._box(x - 0.008, y, x + 0.008, foot, IGNORED, (110, 110, 110))  # a pole has no class
        self._shape(
            [
                (x - side, y + side),
                (x + side, y + side),
                (x + side, y - side),
                (x - side, y - side),
            ],
            SIGN,
            self._shade(SIGN),
        )

    def _car(self, depth: float) -> None:
        y, width = self._at(depth), 0.14 + 0.26 * depth
        x, height = self._rng.uniform(0.15, 0.85), 0.36 * width
        colour = tuple(int(c) for c in self._rng.permutation(self._shade(CAR)))
        self._box(x - width / 2, y - height, x + width / 2, y, CAR, colour)
        roof = [(-0.3, -1.0), (0.3, -1.0), (0.2, -1.8), (-0.2, -1.8)]
        self._shape([(x + dx * width, y + dy * height) for dx, dy in roof], CAR, colour)
        glass = [(-0.22, -1.05), (0.22, -1.05), (0.16, -1.65), (-0.16, -1.65)]
        self._shape([(x + dx * width, y + dy * height) for dx, dy in glass], CAR, (60, 75, 90))
        for side in (-0.3, 0.3):
            self._disc(x + side * width, y, height * 0.3, CAR, (25, 25, 25))

    def _person(self, depth: float) -> None:
        y, height = self._at(depth), 0.16 + 0.2 * depth
        x, half = self._rng.uniform(0.05, 0.95), 0.14 * height
        self._box(x - half, y - 0.8 * height, x + half, y - 0.35 * height, PERSON)
        self._box(x - half, y - 0.35 * height, x + half, y, PERSON, self._shade(PERSON, darker=25))
        self._disc(x, y - 0.88 * height, 0.11 * height, PERSON, (205, 160, 130))

    def _at(self, depth: float) -> float:
        horizon = self._horizon / self._size
        return horizon + (1 - horizon) * depth

    def _shade(self, kind: int, darker: float = 0.0) -> Colour:
        low = np.clip(self._rng.normal(_LOOKS[kind], _SHADES / 2) - darker, 0, 255)
        red, green, blue = (int(c) for c in low)
        return red, green, blue

    def _box(
        self, left: float, top: float, right: float, bottom: float, kind: int, colour: object = None
    ) -> None:
        corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
        self._shape(corners, kind, colour)

    def _shape(self, corners: list[tuple[float, float]], kind: int, colour: object) -> None:
        """A polygon, in parts of the picture's side."""
        points = [(float(x) * self._size, float(y) * self._size) for x, y in corners]
        fill: Colour = self._shade(kind) if colour is None else tuple(colour)  # type: ignore[arg-type, assignment]  # three numbers
        self._in_colour.polygon(points, fill=fill)
        self._in_labels.polygon(points, fill=kind)

    def _disc(self, x: float, y: float, radius: float, kind: int, colour: object) -> None:
        box = [(float(v) * self._size) for v in (x - radius, y - radius, x + radius, y + radius)]
        self._in_colour.ellipse(box, fill=tuple(colour))  # type: ignore[arg-type]  # as above
        self._in_labels.ellipse(box, fill=kind)
