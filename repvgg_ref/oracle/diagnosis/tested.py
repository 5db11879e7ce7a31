"""What a verification tested, in words: arithmetic, the smallest errors that show, blind spots."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from repvgg_ref.oracle.candidates.names import listed
from repvgg_ref.oracle.estimates.port import PortEstimates
from repvgg_ref.oracle.programs.layers import Programs

# What `LayerReport.detects` holds, in the order and the words in which people are told.
_SEEN = {
    "scale": "all outputs",
    "part": "an image, a border",
    "channel": "a typical channel",
    "bias": "the bias",
    "taps": "all weights at random",
    "tap": "one weight of a typical channel",
}


def what_was_tested(
    estimates: PortEstimates, compared: Iterable[str], programs: Programs
) -> list[str]:
    """What the arithmetic is, how small an error would have shown, and what was not seen.

    `compared` are the layers that were, in the network's order.
    """
    said = [estimates.arithmetic.says]
    weakest: dict[str, tuple[float, str]] = {}
    for name in estimates.samples:
        for what, size in estimates.detects(name).items():
            weakest[what] = max(weakest.get(what, (0.0, "")), (size or np.inf, name))
    shown = [
        f"{words} {_size(weakest[what][0])} ({weakest[what][1]})"
        for what, words in _SEEN.items()
        if what in weakest
    ]
    if shown:
        said.append(
            "relative errors that would have been seen in any layer, and the least sensitive one: "
            + ", ".join(shown)
        )
    blind = [name for name in compared if name not in estimates.samples]
    blind.sort(key=lambda name: name not in programs)  # what has weights comes first
    if blind:
        said.append(f"{listed(blind)}: held to certified bounds alone")
    said.append("not tested: training, other inputs than those of the calls named here")
    return said


def _size(smallest: float) -> str:
    return f"{smallest:.1g}" if np.isfinite(smallest) else "only beyond its bound"
