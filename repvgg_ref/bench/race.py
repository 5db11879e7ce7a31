"""Contenders in turns: A B C, B C A, ..., each alone on the machine while it runs.

1. Each variant of a contender starts in a process of its own and computes once. If its outputs
   are not ours it is not timed. Of the variants that are right the fastest stays.
2. Each round gives everyone a turn, the first one moving on from round to round. A turn ends
   when the contender's threads have stopped spinning (`worker`), so nobody runs against a rival's
   idle threads, and everyone may spin during its own run as it does by default.
3. Ratios are taken within a round and their median over the rounds, since machines change speed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.bench.contenders.base import ENTRIES, OURS, Entry
from repvgg_ref.bench.machine import version
from repvgg_ref.bench.result import Measured, Race, Skipped
from repvgg_ref.bench.rival import ContenderError, Rival, started
from repvgg_ref.bench.task import Kind, Task
from repvgg_ref.errors import ReportedError

# Largest difference over the largest output. In an inference float32 with Winograd reaches 1e-5, a
# bfloat16 network 5e-3. Gradients that came back through 22 batch norms are far from float64 for
# everyone, 0.7 % in torch and 2.5 % here: a ReLU on the other side of 0 moves all before it. This
# check keeps out what does other work; that all work is right is for the tests to show.
TOLERANCE: dict[Kind, float] = {"inference": 1e-3, "training": 0.1}
TURN_SECONDS = 0.2  # short runs are repeated, since clocks and wake-ups have their own noise
MOST_REPEATS = 200
TRIALS = 2

Progress = Callable[[str, int, int], None]
_Entrant = tuple[Rival, Measured]


def race(
    task: Task,
    entries: Sequence[Entry],
    *,
    rounds: int,
    layers: bool = False,
    progress: Progress | None = None,
) -> Race:
    """Time all `entries` on `task`; the first one is what the others are compared with.

    Parameters
    ----------
    entries : sequence of Entry
        All installed, such as `peers.choose_entries` gives.
    rounds : int
    layers : bool
        Also time the layers of the first one by one.
    progress : callable, optional
        ``progress(what, done, total)`` after every step.

    Raises
    ------
    ContenderError
        If the first one fails. Another that fails, or computes something else, is skipped.
    """
    steps = _steps(progress, len(entries) * (1 + rounds) + 1)
    with Heats() as heats:
        rivals: list[_Entrant] = []
        for entry in entries:
            if found := heats.run(entry, task):
                rivals.append(found)
            steps(f"{entry.name} started")
        rivals = _rounds(rivals, rounds, heats.skipped, steps)
        for rival, measured in rivals:
            measured.memory = _memory(rival)
        shown = rivals[0][0].ask("layers", rounds=rounds) if layers else {}
        steps("done")
    return Race(task, [measured for _, measured in rivals], heats.skipped, shown or None)


def race_networks(
    tasks: Sequence[Task], *, rounds: int, progress: Progress | None = None
) -> list[Measured]:
    """Time our own contender on several networks in turns, all of them in memory at once.

    Raises
    ------
    ContenderError
        If one of them fails: a network that is left out would leave its claims out in silence.
    """
    steps = _steps(progress, len(tasks) * (1 + rounds))
    with ExitStack() as stack:
        rivals: list[_Entrant] = []
        for task in tasks:
            found = stack.enter_context(Heats()).run(ENTRIES[OURS], task)
            assert found is not None  # the first of its heats: it raises when it fails
            found[1].name = task.network
            rivals.append(found)
            steps(f"{task.network} started")
        skipped: list[Skipped] = []
        _rounds(rivals, rounds, skipped, steps)
        for one in skipped:
            raise ContenderError(f"{one.name}: {one.reason}")
    return [measured for _, measured in rivals]


def difference(got: dict[str, Array], wanted: dict[str, Array]) -> float:
    """The largest over all arrays of ``max |got - wanted| / max |wanted|``; NaN stays NaN.

    Arrays that are missing, superfluous or of another shape differ infinitely.
    """
    shapes = [{name: array.shape for name, array in arrays.items()} for arrays in (got, wanted)]
    if shapes[0] != shapes[1]:
        return math.inf
    with np.errstate(invalid="ignore"):
        errors = [np.abs(got[k] - y).max() / np.abs(y).max() for k, y in wanted.items()]
    return float(np.max(errors))


class Heats:
    """Lets every variant show that it is right, and how fast; keeps the processes that go on.

    Attributes
    ----------
    skipped : list of Skipped
        Who did not go on, and why.
    """

    def __init__(self) -> None:
        self.skipped: list[Skipped] = []
        self._stack = ExitStack()
        self._wanted: dict[str, Array] | None = None

    def __enter__(self) -> Heats:
        self._folder = Path(self._stack.enter_context(TemporaryDirectory()))
        return self

    def __exit__(self, *failure: object) -> None:
        self._stack.close()

    def run(self, entry: Entry, task: Task) -> _Entrant | None:
        """The fastest right variant of `entry`, if there is one; the first entry must have one."""
        best: Rival | None = None
        tried: dict[str, float] = {}
        is_first = self._wanted is None
        for variant in entry.variants(task):
            process = self._stack.enter_context(ExitStack())
            try:
                rival = process.enter_context(started(entry, variant, task, self._folder))
                self._check(rival, task)
                rival.seconds = min(rival.ask("turn", repeats=1)["seconds"] for _ in range(TRIALS))
            except ReportedError as error:
                process.close()
                if is_first:
                    raise
                self.skipped.append(Skipped(f"{entry.name} ({variant})", str(error)))
                continue
            tried[variant] = rival.seconds
            if best is not None and best.seconds <= rival.seconds:
                rival.stop()
                continue
            if best is not None:
                best.stop()
            best = rival
        return None if best is None else (best, _measured(best, tried))

    def _check(self, rival: Rival, task: Task) -> None:
        """Compare outputs with those of the first; finite ones."""
        path = self._folder / "outputs.npz"
        rival.ask("outputs", path=str(path))
        with np.load(path) as arrays:
            outputs = dict(arrays)
        if self._wanted is None:
            self._wanted = outputs
        rival.error = difference(outputs, self._wanted)
        if not rival.error <= TOLERANCE[task.kind]:
            raise ContenderError(
                "it computes something else, so it is not timed",
                got=f"a difference of {rival.error:.2g} of the largest output",
                wanted=f"at most {TOLERANCE[task.kind]:.2g}",
            )


def _rounds(
    rivals: list[_Entrant], rounds: int, skipped: list[Skipped], steps: Callable[[str], None]
) -> list[_Entrant]:
    """Everyone's turns; who fails on the way is skipped, but not the first. Returns the others."""
    alive = list(rivals)
    for number in range(rounds):
        first = number % len(alive)
        for entrant in alive[first:] + alive[:first]:
            rival, measured = entrant
            steps(f"round {number + 1} {measured.name}")
            try:
                turn = rival.ask("turn", repeats=measured.repeats)
            except ReportedError as error:
                if entrant is rivals[0]:
                    raise
                alive.remove(entrant)
                skipped.append(Skipped(measured.name, str(error)))
                continue
            measured.seconds.append(turn["seconds"])
            measured.cpu_seconds.append(turn["cpu_seconds"])
    return alive


def _measured(rival: Rival, tried: dict[str, float]) -> Measured:
    repeats = min(MOST_REPEATS, max(1, round(TURN_SECONDS / rival.seconds)))
    package = next(iter(rival.entry.needs.values()), "repvgg-ref")
    return Measured(
        rival.entry.name, rival.variant, version(package), rival.error, tried, repeats=repeats
    )


def _memory(rival: Rival) -> dict[str, int]:
    """Bytes beyond the framework itself; the peak is that of running, not of preparing."""
    baseline, peak = rival.started["baseline"], rival.ask("peak")["peak"]
    found = {"loaded": rival.started["loaded"] - baseline, "peak": peak - baseline}
    return {**found, **rival.ask("count")}


def _steps(progress: Progress | None, total: int) -> Callable[[str], None]:
    """Counts the steps for a progress bar."""
    done = 0

    def step(what: str) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(what, done, total)

    return step
