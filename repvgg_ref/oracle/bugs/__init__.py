"""The library of bugs, one file a family; `LIBRARY` is all of them, the likelier first."""

from repvgg_ref.oracle.bugs import batch_norm, geometry, inputs, rounding, structure
from repvgg_ref.oracle.bugs.base import Hypothesis, Site, Variant

LIBRARY: tuple[Hypothesis, ...] = (
    *structure.LIBRARY,
    *batch_norm.LIBRARY,
    *geometry.LIBRARY,
    *inputs.LIBRARY,
    *rounding.LIBRARY,
)

__all__ = ["LIBRARY", "Hypothesis", "Site", "Variant"]
