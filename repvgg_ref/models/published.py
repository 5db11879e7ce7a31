"""The accuracies that others reached with the official weights, to hold a measurement against.

Top-1 in per cent on ImageNet's 50,000 validation pictures. `paper`: arXiv 2101.03697, Table 4 (120
epochs) and, for B2g4, B3g4 and B3, Table 5 (200 epochs, the weights that were released).
`timm`: the released weights as timm measured them again (shorter side resized to size / 0.875).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Published(NamedTuple):
    """Top-1 in per cent, None where it was not stated; `size` of the crop."""

    paper: float | None
    timm: float | None
    size: int = 224


PUBLISHED: Mapping[str, Published] = {
    "RepVGG-A0": Published(72.41, 72.426),
    "RepVGG-A1": Published(74.46, 74.474),
    "RepVGG-A2": Published(76.48, 76.488),
    "RepVGG-B0": Published(75.14, 75.158),
    "RepVGG-B1": Published(78.37, 78.370),
    "RepVGG-B1g2": Published(77.78, None),
    "RepVGG-B1g4": Published(77.58, 77.608),
    "RepVGG-B2": Published(78.78, 78.788),
    "RepVGG-B2g4": Published(79.38, 79.396),
    "RepVGG-B3": Published(80.52, 80.528),
    "RepVGG-B3g4": Published(80.21, 80.224),
    "RepVGG-D2se": Published(None, 83.550, 320),
}
