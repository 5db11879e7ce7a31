"""Ranges of activations, from images that pass through the network once or twice.

"min-max" covers everything that was seen; "percentile" leaves out the rarest 0.01 % on either side;
"least-squares" takes the range whose rounding and clipping together cost least (as TensorRT's and
ONNX Runtime's calibrators by mean squared error do).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.errors import ReportedError

Method = Literal["min-max", "percentile", "least-squares"]
METHODS: tuple[str, ...] = get_args(Method)
LEVELS = 256
_BINS = 4096
_TAIL = 1e-4  # the share that "percentile" leaves out on either side
_SHARES = np.linspace(0.3, 1.0, 71)  # of the whole range, that "least-squares" tries


@dataclass
class Range:
    """What a tensor's numbers were: ends, and how many lay where between them."""

    low: float = 0.0  # zero is always in: padding and ReLU need it to be a number
    high: float = 0.0
    counts: Array = field(default_factory=lambda: np.zeros(_BINS, np.int64))

    def see(self, x: Array) -> None:
        """Widen the ends by `x`."""
        if x.size:
            low, high = float(x.min()), float(x.max())
            if not np.isfinite((low, high)).all():
                raise ReportedError(
                    "calibration met a number that is none",
                    got=f"{low} to {high}",
                    wanted="finite activations; are the images normalised as in training?",
                )
            self.low, self.high = min(self.low, low), max(self.high, high)

    def count(self, x: Array) -> None:
        """Count `x` into the bins between the ends, which are known by now."""
        if self.high > self.low:
            self.counts += np.histogram(x, _BINS, (self.low, self.high))[0]

    def ends(self, method: str) -> tuple[float, float]:
        """The range to quantise, by `method`."""
        if method == "min-max" or not self.counts.any():
            return self.low, self.high
        return self._percentile() if method == "percentile" else self._least_squares()

    def _edges(self) -> Array:
        return np.linspace(self.low, self.high, _BINS + 1)

    def _percentile(self) -> tuple[float, float]:
        share = np.cumsum(self.counts) / self.counts.sum()
        edges = self._edges()
        low = edges[np.searchsorted(share, _TAIL, "right")] if self.low < 0 else 0.0
        high = edges[np.searchsorted(share, 1 - _TAIL, "left") + 1] if self.high > 0 else 0.0
        return min(float(low), 0.0), max(float(high), 0.0)

    def _least_squares(self) -> tuple[float, float]:
        edges = self._edges()
        centres = (edges[1:] + edges[:-1]) / 2
        errors = []
        for share in _SHARES:
            low, high = share * self.low, share * self.high
            step = (high - low) / (LEVELS - 1)
            clipped = np.clip(centres, low, high)
            rounded = low + np.rint((clipped - low) / step) * step
            errors.append(float(self.counts @ (rounded - centres) ** 2))
        best = float(_SHARES[int(np.argmin(errors))])
        return best * self.low, best * self.high


def observe(
    batches: Iterable[Mapping[str, Array]], method: str, *, ranges: dict[str, Range] | None = None
) -> dict[str, Range]:
    """Look at every tensor of every batch; a second time, with `ranges`, to count."""
    require_method(method)
    found: dict[str, Range] = {} if ranges is None else ranges
    for tensors in batches:
        for name, x in tensors.items():
            if ranges is None:
                found.setdefault(name, Range()).see(x)
            else:
                found[name].count(x)
    return found


def require_method(method: str) -> None:
    """Raise `ReportedError` if there is no such method of calibration."""
    if method not in METHODS:
        raise ReportedError(
            "unknown method of calibration", got=repr(method), wanted=", ".join(METHODS)
        )
