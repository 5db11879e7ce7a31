"""What is said of an integer port: how many numbers differ, by how much, and which scheme it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from repvgg_ref.oracle.report import LayerReport, Report

PRECISION = "int8"


@dataclass(frozen=True)
class IntegerLayerReport(LayerReport):
    """A layer's numbers beside those that its own input must give.

    Attributes
    ----------
    mismatches, numbers : int
        How many differ, of how many.
    max_lsb : int
        The largest difference.
    schemes : tuple of str
        Those that explain every number of the layer.
    """

    mismatches: int = 0
    numbers: int = 0
    max_lsb: int = 0
    schemes: tuple[str, ...] = ()


@dataclass(frozen=True)
class IntegerReport(Report):
    """A `Report` on numbers; `schemes` are those that explain every layer."""

    schemes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The object that ``repvgg-ref verify --json`` prints."""
        found = super().to_json()
        for layer, shown in zip(self.layers, found["layers"], strict=True):
            if isinstance(layer, IntegerLayerReport):
                shown |= {
                    "mismatches": layer.mismatches,
                    "numbers": layer.numbers,
                    "max_lsb": layer.max_lsb,
                    "scheme": layer.schemes[0] if layer.schemes else None,
                    "schemes": list(layer.schemes),
                }
        layers = [each for each in self.layers if isinstance(each, IntegerLayerReport)]
        return found | {
            "scheme": self.schemes[0] if self.schemes else None,
            "schemes": list(self.schemes),
            "mismatches": sum(layer.mismatches for layer in layers),
            "max_lsb": max((layer.max_lsb for layer in layers), default=0),
        }
