"""What is said of a symmetry that was solved for."""

from __future__ import annotations

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.report import Equivalence, Finding
from repvgg_ref.oracle.symmetry.match import Change


def equivalences(layer: str, change: Change, after: str, doubt: str = "") -> list[Equivalence]:
    """One entry for the order, one for the factors; `doubt` is added to what is said."""
    found = []
    moved = change.moved
    if len(moved):
        shown = ", ".join(f"{c} holds {change.order[c]}" for c in moved[:4])
        says = (
            f"{len(moved)} of {len(change.order)} channels of {layer} are in another order"
            f" ({shown}{', ...' if len(moved) > 4 else ''}), and {after} takes them so{doubt}"
        )
        found.append(Equivalence(layer, "permutation", says))
    scaled = change.factor[change.factor != 1]
    if len(scaled):
        says = (
            f"{len(scaled)} of {len(change.factor)} channels of {layer} are scaled by"
            f" {scaled.min():.6g} to {scaled.max():.6g}, and {after} divides by that{doubt}"
        )
        found.append(Equivalence(layer, "scaling", says))
    return found


def hidden(factor: Array, after: str) -> str:
    """Why a layer cannot be judged whose factors may be taken back or not."""
    off = float(np.abs(factor - 1).max())
    return (
        f"{len(factor)} of its channels are scaled by factors within {off:.2g} of 1, and rounding"
        f" hides whether {after} divides by them"
    )


def refused(factor: Array, after: str) -> str:
    """Why a layer that is not estimated cannot be judged, in which factors are no symmetry."""
    off = float(np.abs(factor - 1).max())
    return (
        f"{len(factor)} of its channels seem to be scaled by factors within {off:.2g} of 1 that"
        f" {after} does not divide by, and its input is known too roughly to be sure"
    )


def not_taken_back(layer: str, change: Change, after: str) -> Finding:
    """A reordering that the next layer does not know of."""
    shown = ", ".join(f"{c} holds {change.order[c]}" for c in change.moved[:4])
    return Finding(
        "channels-permuted",
        layer,
        float(len(change.moved)),
        1.0,
        1.0,
        f"the output channels come in another order ({shown}"
        f"{', ...' if len(change.moved) > 4 else ''}), and {after} does not take them so",
        "check the channel order that the layout conversion or the concatenation gives",
    )
