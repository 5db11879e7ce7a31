"""Pictures that every machine draws alike: integer arithmetic only."""

from __future__ import annotations

import numpy as np
from PIL import Image


def drawn(width: int, height: int, *, grey: bool = False, seed: int = 0) -> Image.Image:
    """A picture with gradients, edges and texture, whose colours do not fill the whole range."""
    y, x = np.mgrid[:height, :width]
    red = (x * 3 + y * 5 + seed * 17) % 200 + 20
    green = ((x // 7 + y // 5 + seed) % 2) * 140 + (x * y + seed) % 60 + 10
    blue = 230 - (x * x + 3 * y + seed * 29) % 190
    pixels = np.stack([red, green, blue], axis=2).astype(np.uint8)
    picture = Image.fromarray(pixels)
    return picture.convert("L") if grey else picture
