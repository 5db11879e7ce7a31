"""NCHW or NHWC: told by the channels that every layer must have, never guessed.

A layer's channel count stands at position 1 or 3 of its shape. Where it stands at both (C = H = W)
the shape says nothing, and the dump's other layers decide, for one port writes one layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.models.graph import INPUT, Network
from repvgg_ref.oracle.candidates.base import CandidateFailure
from repvgg_ref.oracle.candidates.names import listed

LAYOUTS = ("NCHW", "NHWC")
_LOGITS = "linear"


class Arranged(NamedTuple):
    """Arrays in NCHW order, and what had to be done to them."""

    arrays: dict[str, Array]
    notes: list[str]


def to_nchw(
    arrays: Mapping[str, Array],
    arch: Network,
    *,
    declared: Mapping[str, str] | None = None,
    assume: str | None = None,
) -> Arranged:
    """Bring every 4-d array to NCHW; logits to (N, classes).

    Parameters
    ----------
    arrays : mapping
        Layer name, or "input" -> array.
    arch : Architecture
        Says how many channels each layer has.
    declared : mapping, optional
        Layer name -> "NCHW" or "NHWC", where the candidate says so.
    assume : str, optional
        The layout of what neither shape nor neighbours decide; without it that is an error.

    Raises
    ------
    CandidateFailure
        If an array's layout can be either.
    """
    known = dict(declared or {})
    channels = {name: arch.channels[name] for name in (*arch.layer_names, INPUT) if name != _LOGITS}
    images = {name: a for name, a in arrays.items() if name in channels and a.ndim == 4}
    seen = {name: known.get(name) or by_shape(a, channels[name]) for name, a in images.items()}
    votes = {layout for layout in seen.values() if layout in LAYOUTS}
    common = votes.pop() if len(votes) == 1 else None
    undecided = [name for name, layout in seen.items() if layout == "either"]
    if undecided and common is None and assume is None:
        raise CandidateFailure(
            "the layout cannot be told: channels, height and width are equal",
            got=f"shape {images[undecided[0]].shape} for {listed(undecided)}",
            wanted='a manifest with "layout": "NCHW" or "NHWC"',
        )
    # A shape that fits neither layout is passed on as the others are: it is a finding, not ours.
    final = {name: seen[name] if seen[name] in LAYOUTS else common or assume for name in images}
    moved = [name for name, layout in final.items() if layout == "NHWC"]
    arranged = {
        name: np.moveaxis(a, 3, 1) if name in moved else _flat(name, a)
        for name, a in arrays.items()
    }
    notes = [f"NHWC transposed to NCHW: {listed(moved)}"] if moved else []
    if moved and len(moved) < len(images):
        notes.append("the layers come in both layouts")
    return Arranged(arranged, notes)


def by_shape(array: Array, channels: int) -> str:
    """One of "NCHW", "NHWC", "either" and "neither"."""
    first, last = array.shape[1] == channels, array.shape[3] == channels
    if first and last:
        return "either" if array.shape[2] != 1 or array.shape[1] != 1 else "NCHW"
    return "NCHW" if first else "NHWC" if last else "neither"


def _flat(name: str, array: Array) -> Array:
    """Logits of a 1x1 convolution, (N, classes, 1, 1), as (N, classes)."""
    if name == "linear" and array.ndim > 2 and array.size == array.shape[0] * max(array.shape):
        return array.reshape(array.shape[0], -1)
    return array
