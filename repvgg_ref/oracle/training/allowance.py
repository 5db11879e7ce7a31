"""How far a right port may be: three times what right ports used, and never beyond the backstop.

What a port's rounding does to an array is told by three yards (`noise.Yardstick`), put together as
independent errors are, and by the port's own level: how much larger its errors are, in three arrays
out of four, than those of float32 with ordinary sums. A port that adds up in sequence has a higher
level everywhere; one wrong array stands out from all others of its port.

The factors were calibrated so that the ordinary ports of `tests/studies/peers/training_right.py`
use at most 1.3 and those that add in sequence at most 2.4 on 15 networks and seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.training.noise import ALLOWED, Yard, Yardstick, scale_error
from repvgg_ref.oracle.training.order import phase

ROOM = 3.0  # times what right ports use
# Largest error of a right port in units of `rounding`, by phase. Running statistics are averages of
# what the forward pass gave, trained weights are rounded once more than their gradients.
_USED = {"forward": 6.0, "backward": 5.5, "after": 2.0, "statistics": 5.0}
# Exaggerated noise is usually at most so much larger than rounding. Where it is more, ReLUs have
# switched in a run of it, which a right port's may do as well; sooner once the weights have moved.
_SMOOTH = {"forward": 60.0, "backward": 60.0, "after": 20.0, "statistics": 20.0}
_NOISE_USED = {"forward": 0.05, "backward": 0.05, "after": 0.2, "statistics": 0.1}
_SCALE_USED = 2.0  # the scale is one number: it varies more than a root mean square does
_HIGHEST_LEVEL = 16.0  # ports that add in sequence reach it
_SEQUENTIAL = 27.0  # times `sums`: three deviations of errors that are all of one sign
# Storing an array in float32 costs so much of its root mean square, at least.
_STORING = 0.3


@dataclass(frozen=True)
class Allowance:
    """What the arrays of one port may differ by.

    Attributes
    ----------
    exact : mapping
        Array name -> the right numbers.
    level : mapping
        Phase -> the port's level, 1 for ordinary sums.
    """

    yardstick: Yardstick
    exact: Mapping[str, Array]
    level: Mapping[str, float]

    def of(self, name: str) -> Yard:
        """The largest error allowed in an array."""
        yards, level = self.yardstick, self.level.get(phase(name), 1.0)
        most = self.backstop(name)
        if name not in yards.rounding:
            return Yard(most.rms, most.largest, np.inf)
        once = _rounded(yards, name, self.exact[name])
        rounding = once.times(_USED[phase(name)])
        rounding = rounding._replace(scale=_SCALE_USED * rounding.scale)
        noise = yards.of[name]
        share = max(1 - _SMOOTH[phase(name)] * once.rms / noise.rms, _NOISE_USED[phase(name)])
        jumps = noise._replace(scale=_SCALE_USED * noise.scale).times(share)
        parts = np.array([rounding, yards.sums[name], jumps])
        rms, largest, scale = ROOM * level * np.hypot.reduce(parts)
        return Yard(min(rms, most.rms), min(largest, most.largest), scale)

    def backstop(self, name: str) -> Yard:
        """What no right port exceeds, whatever its level."""
        noise = self.yardstick.of[name].times(ALLOWED)
        if name not in self.yardstick.sums:
            return noise
        return Yard(*np.hypot(noise, self.yardstick.sums[name].times(_SEQUENTIAL)))

    def used(self, name: str, error: Array) -> float:
        """The share of the allowance that an error uses; above 1 it is wrong."""
        allowed = self.of(name)
        size = float(np.sqrt(np.mean(error**2)))
        shares = [size / allowed.rms, float(np.abs(error).max()) / allowed.largest]
        if np.isfinite(allowed.scale) and allowed.scale > 0:
            shares.append(abs(scale_error(error, self.exact[name])) / allowed.scale)
        return float(max(shares))


def allowance(
    yardstick: Yardstick, exact: Mapping[str, Array], errors: Mapping[str, Array]
) -> Allowance:
    """The allowance of a port with these errors; arrays that are not compared are left out."""
    found: dict[str, list[float]] = {}
    for name, error in errors.items():
        if name in yardstick.rounding and np.isfinite(error).all():
            ratio = float(np.sqrt(np.mean(error**2))) / _rounded(yardstick, name, exact[name]).rms
            found.setdefault(phase(name), []).append(ratio)
    levels = {kind: float(np.quantile(ratios, 0.75)) for kind, ratios in found.items()}
    port = next((levels[kind] for kind in ("forward", "backward") if kind in levels), 1.0)
    late = min(levels.get("after", 1.0), levels.get("backward", np.inf))
    level = {kind: _between(port) for kind in _USED} | {"after": _between(max(port, late))}
    return Allowance(yardstick, exact, level)


def _between(level: float) -> float:
    return float(min(max(level, 1.0), _HIGHEST_LEVEL))


def _rounded(yardstick: Yardstick, name: str, exact: Array) -> Yard:
    """The yard of rounding, which a few runs may have missed by luck."""
    values = np.asarray(exact, np.float64)
    stored = max(_STORING * yardstick.u * float(np.sqrt(np.mean(values**2))), 1e-300)
    once = _STORING * yardstick.u / np.sqrt(max(1, values.size))
    few, noise = yardstick.rounding[name], yardstick.of[name].times(0.02)
    floor = Yard(stored, stored, once)
    return Yard(*np.maximum(np.maximum(few, noise), floor))
