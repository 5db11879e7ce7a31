"""What float32 does to the training steps, measured by taking them in float32.

The weights and the batch are moved by a few units in the last place, at random; the steps are taken
in float32 and in float64 from there; the difference is a sample of rounding errors. A few samples
give each array's yard: what a right port with ordinary sums differs by, give or take a factor that
`allowance` has calibrated. With `summation` it covers ports that add up in sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.training.noise import FLOAT32, LARGE, Yard, Yardstick, measure, yard_of
from repvgg_ref.oracle.training.run import Arrays, Setup, run
from repvgg_ref.oracle.training.summation import adding_in_sequence

_RUNS, _RUNS_OF_SUMS, _RUNS_OF_LARGE = 4, 3, 2
_MOST_ULPS = 8


def rounding_yards(setup: Setup, exact: Arrays, *, runs: int) -> dict[str, Yard]:
    """Errors of the steps in float32, by array."""
    samples = list(samples_of_rounding(setup, runs))
    return {name: yard_of([each[name] for each in samples], exact[name]) for name in exact}


def samples_of_rounding(
    setup: Setup, count: int, *, first_only: bool = False
) -> Iterator[dict[str, Array]]:
    """Errors of every array in `count` runs in float32."""
    for i in range(count):
        narrow = _moved(setup, np.random.default_rng(i))
        with np.errstate(all="ignore"):
            rounded = run(narrow, first_only=first_only)
            exact = run(_wide(narrow), first_only=first_only)
        yield {
            name: np.asarray(rounded[name], np.float64) - array
            for name, array in exact.items()
            if np.asarray(array).dtype.kind == "f"
        }


def sums_yards(setup: Setup, exact: Arrays, *, runs: int) -> dict[str, Yard]:
    """Deviations of the steps where sums over pixels are added in sequence, in float32."""
    found = [run(adding_in_sequence(setup, FLOAT32, np.random.default_rng(i))) for i in range(runs)]
    return {
        name: yard_of([np.asarray(each[name], np.float64) - array for each in found], array)
        for name, array in exact.items()
    }


def yardstick_of(
    setup: Setup,
    exact: Arrays,
    *,
    runs: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Yardstick:
    """All that is known of how far a right port may be from `exact`, for float32.

    Parameters
    ----------
    runs : int, optional
        How many of each kind; default: as many as usual.
    """
    noise = measure(setup, exact, runs=runs, progress=progress)
    is_large = sum(array.size for array in setup.params.values()) >= LARGE
    fewer = runs or (_RUNS_OF_LARGE if is_large else None)
    return replace(
        noise,
        rounding=rounding_yards(setup, exact, runs=fewer or _RUNS),
        sums=sums_yards(setup, exact, runs=fewer or _RUNS_OF_SUMS),
    )


def _moved(setup: Setup, rng: np.random.Generator) -> Setup:
    """The setup in float32, a few units in the last place from where it was."""

    def moved(array: Array) -> Array:
        if array.dtype.kind != "f":
            return array
        ulps = rng.integers(-_MOST_ULPS, _MOST_ULPS + 1, array.shape).astype(np.float32)
        return np.asarray(array.astype(np.float32) * (1 + ulps * np.float32(2**-23)))

    return replace(setup, params={n: moved(a) for n, a in setup.params.items()}, x=moved(setup.x))


def _wide(setup: Setup) -> Setup:
    params = {
        n: a.astype(np.float64) if a.dtype.kind == "f" else a for n, a in setup.params.items()
    }
    return replace(setup, params=params, x=setup.x.astype(np.float64))
