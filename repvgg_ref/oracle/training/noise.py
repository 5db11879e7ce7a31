"""How far a right port may be from the float64 training steps: measured by perturbation.

There is no useful certified bound through a whole backward pass. Instead the steps are run again
with every operator's every operand and result disturbed as a port's rounding would: each element by
a normal error of `_SPREAD` u times (its own size + the array's root mean square), u the unit
roundoff. What such runs differ by is the yardstick; ReLUs whose input is within rounding of zero
switch in some of them, so the jumps that causes are in it too. It is a statistical yardstick, not a
proof.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.ops import Ops
from repvgg_ref.oracle.training.run import Setup, Update, run
from repvgg_ref.train.sgd import SgdStep

# The reference computes in float64 itself, so a float64 port meets its rounding errors as well.
FLOAT32, FLOAT64 = 2.0**-24, 2.0**-51
# What a correct port may exceed the runs' spread by. A port that sums n terms one after the other
# loses some sqrt(n / 3) u of the sum; `_SPREAD` times `ALLOWED` covers n = 3000. The smallest known
# bug is far beyond.
ALLOWED = 8.0
_SPREAD = 4.0
_RUNS, _RUNS_OF_LARGE = 6, 3
LARGE = 3_000_000  # parameters; their many elements make up for fewer runs


class Yard(NamedTuple):
    """Root mean square and largest deviation of one array over some runs, and its scale's.

    `scale` is the root mean square of ``<error, exact> / <exact, exact>``: what rounding does to
    the array's size as a whole, which is less than what it does to each number.
    """

    rms: float
    largest: float
    scale: float = 0.0

    def times(self, factor: float) -> Yard:
        """All of it larger."""
        return Yard(*(factor * part for part in self))


@dataclass(frozen=True)
class Yardstick:
    """Array name -> what rounding does to it, for the unit roundoff `u`.

    Attributes
    ----------
    of : mapping
        Deviations of runs with exaggerated noise (`measure`): the backstop.
    rounding : mapping
        Errors of runs in float32 itself (`training.rounding`); empty in bundles of version 0.1.
    sums : mapping
        Deviations of runs whose long sums are added in sequence (`training.summation`).
    """

    u: float
    of: Mapping[str, Yard]
    rounding: Mapping[str, Yard] = field(default_factory=dict)
    sums: Mapping[str, Yard] = field(default_factory=dict)

    def scaled(self, u: float) -> Yardstick:
        """For another unit roundoff: errors of first order are proportional to it."""
        factor = u / self.u
        parts = (
            {name: yard.times(factor) for name, yard in part.items()}
            for part in (self.of, self.rounding, self.sums)
        )
        return Yardstick(u, *parts)


def yard_of(errors: Iterable[Array], exact: Array) -> Yard:
    """The yard of one array from its errors in some runs."""
    square, largest, scale, count = 0.0, 0.0, 0.0, 0
    for error in errors:
        square += float(np.mean(error**2))
        largest = max(largest, float(np.abs(error).max()))
        scale += scale_error(error, exact) ** 2
        count += 1
    return Yard(float(np.sqrt(square / count)), largest, float(np.sqrt(scale / count)))


def scale_error(error: Array, exact: Array) -> float:
    """By what fraction the array as a whole is too large."""
    energy = float((exact * exact).sum())
    return float((error * exact).sum()) / energy if energy > 0 else 0.0


def measure(
    setup: Setup,
    exact: Mapping[str, Array],
    *,
    u: float = FLOAT32,
    runs: int | None = None,
    first_only: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Yardstick:
    """Run `setup` a few times with noise and compare with its `exact` numbers."""
    runs = runs or noisy_runs(sum(array.size for array in setup.params.values()))
    errors: dict[str, list[Array]] = {name: [] for name in exact}
    for i in range(runs):
        noisy = run(_noisy(setup, u, np.random.default_rng(i)), first_only=first_only)
        for name, array in exact.items():
            errors[name].append(np.asarray(noisy[name], np.float64) - array)
        if progress is not None:
            progress("rounding, by perturbation", i + 1, runs)
    return Yardstick(
        u,
        {
            name: _floored(yard_of(found, exact[name]), exact[name], u)
            for name, found in errors.items()
        },
    )


def noisy_runs(parameters: int) -> int:
    """How many runs `measure` makes."""
    return _RUNS if parameters < LARGE else _RUNS_OF_LARGE


def _floored(yard: Yard, exact: Array, u: float) -> Yard:
    """A few runs of one number may agree by luck: storing it costs u at least."""
    values = np.asarray(exact, np.float64)
    size = float(np.sqrt(np.mean(values**2))) if values.size else 0.0
    rms = max(yard.rms, u * size, 1e-300)
    return Yard(rms, max(yard.largest, rms), yard.scale)


def relu_margin(setup: Setup) -> float:
    """How near to zero a ReLU's input comes in the steps, relative to its channel's mean square.

    Where it is less than rounding errors are, a right port's ReLU may switch the other way. The
    root mean square is that of one channel of one image, so that a gate in front cancels out.
    """
    nearest = [np.inf]

    def forward(x: Array) -> tuple[Array, Any]:
        size = np.sqrt(np.mean(x**2, axis=(2, 3), keepdims=True))
        ratio = np.abs(x) / np.where(size > 0, size, np.inf)
        if (size > 0).any():
            nearest[0] = min(nearest[0], float(ratio[np.broadcast_to(size > 0, x.shape)].min()))
        return setup.ops.relu_forward(x)

    run(replace(setup, ops=replace(setup.ops, relu_forward=forward)))
    return float(nearest[0])


# What an operator is not, or is made of other operators: the optional fields of a table.
_PRIMITIVES = frozenset(f.name for f in fields(Ops) if f.default is MISSING) - {"name", "layout"}


def _noisy(setup: Setup, u: float, rng: np.random.Generator) -> Setup:
    """The setup on a machine that rounds."""

    def disturbed(value: Any) -> Any:
        if isinstance(value, np.ndarray | np.floating) and value.dtype.kind == "f":
            size = np.abs(value) + np.sqrt(np.mean(np.square(value)))
            return value + _SPREAD * u * size * rng.standard_normal(np.shape(value))
        return value

    def noisy(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            return _results(function(*map(disturbed, args), **kwargs), disturbed)

        return wrapped

    def all_noisy(ops: Ops) -> Ops:
        changes: dict[str, Any] = {name: noisy(getattr(ops, name)) for name in sorted(_PRIMITIVES)}
        return replace(ops, **changes)

    def update(step: Update) -> SgdStep:
        taken = setup.update(step)
        return SgdStep(*({n: disturbed(a) for n, a in d.items()} for d in taken))

    return replace(setup, base=all_noisy(setup.base), ops=all_noisy(setup.ops), update=update)


def _results(value: Any, disturbed: Callable[[Any], Any]) -> Any:
    """Disturb what an operator returns: y of (y, cache), each field of gradients, an array.

    Of a cache, batch norm's statistics and the gate's sigmoid change: they are results too.
    """
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(disturbed(part) for part in value))
    if isinstance(value, tuple) and all(isinstance(part, np.ndarray) for part in value):
        return tuple(map(disturbed, value))  # of concatenation, a gradient a part
    if isinstance(value, tuple):
        y, cache = value
        if hasattr(cache, "inv_std") and hasattr(cache, "mean"):
            cache = cache._replace(mean=disturbed(cache.mean), var=disturbed(cache.var))
        if hasattr(cache, "sigmoid"):  # s (1 - s) of a saturated gate is all rounding
            cache = cache._replace(sigmoid=type(cache.sigmoid)(*map(disturbed, cache.sigmoid)))
        return disturbed(y), cache
    return disturbed(value)
