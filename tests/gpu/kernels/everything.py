"""All cases on the emulator, with kernels as they are or sabotaged: for tests and for a child.

``python -m tests.gpu.kernels.everything DTYPE... [--step N] [--plant FILE OLD NEW]`` prints what is
wrong, of every Nth case only if so wished.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from tests.gpu import emulator, fake_cupy
from tests.gpu.kernels import branch_cases, other_cases, training_cases
from tests.gpu.kernels.cases import Case

CASES: dict[str, Case] = branch_cases.CASES | other_cases.CASES | training_cases.CASES

GRID_STRIDE = {"im2col", "col2im"}


class Plant(NamedTuple):
    """A bug: in `file`, `old`, which is there exactly `times` times, becomes `new`."""

    file: str
    old: str
    new: str
    times: int = 1


class Outcome(NamedTuple):
    """What was wrong, and the bits of every result."""

    wrong: list[str]
    bits: list[bytes]


@contextmanager
def installed(plant: Plant | None = None) -> Iterator[Any]:
    """The fake CuPy, its kernels sabotaged if so wished."""
    with fake_cupy.installed() as cupy:
        if plant is not None:
            _sabotage(plant)
        yield cupy


def run(
    cupy: Any, dtype: Any, cases: Mapping[str, Case], *, order: int = 0, until_wrong: bool = False
) -> Outcome:
    """Run `cases` with threads in that order; all of them, or until something is wrong."""
    outcome = Outcome([], [])
    with emulator.thread_order(order):
        for name, case in cases.items():
            for check in case(cupy, np.dtype(dtype)):
                why = check.why_wrong()
                outcome.wrong.extend([] if why is None else [f"{name}: {why}"])
                outcome.bits.append(check.got.tobytes())
                if until_wrong and outcome.wrong:
                    return outcome
    return outcome


@contextmanager
def small_grids() -> Iterator[None]:
    """Launch kernels that stride over the grid with two blocks, as if there were ever so much."""
    from repvgg_ref.gpu.kernels import launch

    honest = launch._kernel

    def smaller(file: str, name: str, settings: tuple[str, ...]) -> Any:
        kernel = honest(file, name, settings)
        if name not in GRID_STRIDE:
            return kernel
        return lambda grid, block, arguments: kernel((2, *grid[1:]), block, arguments)

    launch._kernel = smaller  # type: ignore[assignment]
    try:
        yield
    finally:
        launch._kernel = honest


def dtype_of(name: str) -> Any:
    """A dtype by its name; bfloat16 is ml_dtypes'."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def _sabotage(plant: Plant) -> None:
    from repvgg_ref.gpu.kernels import launch

    honest = launch.read

    def read(name: str) -> str:
        text = honest(name)
        if name != plant.file:
            return text
        assert text.count(plant.old) == plant.times, f"{plant} does not fit {name} any more"
        return text.replace(plant.old, plant.new)

    launch.read = read


def main(arguments: list[str]) -> int:
    """Run everything; 1 if something was wrong."""
    plant = None
    if "--plant" in arguments:
        place = arguments.index("--plant")
        file, old, new = arguments[place + 1 : place + 4]
        plant = Plant(file, old, new)
        arguments = arguments[:place]
    step = 1
    if "--step" in arguments:
        place = arguments.index("--step")
        step = int(arguments[place + 1])
        arguments = arguments[:place]
    cases = dict(list(CASES.items())[::step])
    with installed(plant) as cupy:
        wrong = [why for name in arguments for why in run(cupy, dtype_of(name), cases).wrong]
    print("\n".join(wrong or ["all as it should be"]))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
