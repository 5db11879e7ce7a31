"""Contenders in turns: A B C, B C A, ..., each alone on the machine while it runs.

1. Each variant of a contender starts in a process of its own and computes once. If its outputs
   are not ours it is not timed. Of the variants that are right the fastest stays.
2. Each round gives everyone a turn, the first one moving on from round to round. A turn ends
   when the contender's threads have stopped spinning (`worker`), so nobody runs against a rival's
   idle threads, and everyone may spin during its own run as it does by default.
3. Ratios are taken within a round and their median over the rounds, since machines change speed.
"""

from __future__ import annotations

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

# Largest difference from our outputs over our largest. float32 with Winograd reaches 1e-5 in an
# inference; gradients through 22 batch norms over a small batch reached 8e-3. A bfloat16 network
# errs by 5e-3 or more in an inference, a wrong layer or gradient term by far more.
TOLERANCE: dict[Kind, float] = {"inference": 1e-3, "training": 5e-2}
TURN_SECONDS = 0.2  # short runs are repeated, since clocks and wake-ups have their own noise
MOST_REPEATS = 200
TRIALS = 2

Progress = Callable[[str, int, int], None]


def race(
    task: Task,
    names: Sequence[str],
    *,
    rounds: int,
    layers: bool = False,
    progress: Progress | None = None,
) -> Race:
    """Time ours and the contenders called `names` on `task`.

    Parameters
    ----------
    names : sequence of str
        Of `contenders.base.ENTRIES`, all installed. Ours comes first, in the list or not.
    rounds : int
    layers : bool
        Also time our layers one by one.
    progress : callable, optional
        ``progress(what, done, total)`` after every step.

    Raises
    ------
    ContenderError
        If ours fails. A peer that fails, or computes something else, is listed as skipped.
    """
    entries = [ENTRIES[name] for name in dict.fromkeys([OURS, *names])]
    steps = _steps(progress, len(entries) * (1 + rounds) + 1)
    skipped: list[Skipped] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        rivals: list[tuple[Rival, Measured]] = []
        wanted: dict[str, Array] | None = None
        for entry in entries:
            best, tried, wanted = _qualify(entry, task, folder, wanted, skipped, stack)
            steps(f"{entry.name} started")
            if best is not None:
                rivals.append((best, _measured(best, tried)))
        _rounds(rivals, rounds, steps)
        ours = rivals[0][0]
        for rival, measured in rivals:
            measured.memory = _memory(rival)
        found = ours.ask("layers", rounds=rounds) if layers else {}
        steps("done")
    return Race(task, [measured for _, measured in rivals], skipped, found or None)


def race_networks(
    tasks: Sequence[Task], *, rounds: int, progress: Progress | None = None
) -> list[Measured]:
    """Time our own contender on several networks in turns."""
    steps = _steps(progress, len(tasks) * (1 + rounds))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        rivals: list[tuple[Rival, Measured]] = []
        for task in tasks:
            best, tried, _ = _qualify(ENTRIES[OURS], task, folder, None, [], stack)
            assert best is not None  # ours raises when it fails
            measured = _measured(best, tried)
            measured.name = task.network
            rivals.append((best, measured))
            steps(f"{task.network} started")
        _rounds(rivals, rounds, steps)
    return [measured for _, measured in rivals]


def difference(got: dict[str, Array], wanted: dict[str, Array]) -> float:
    """The largest over all arrays of ``max |got - wanted| / max |wanted|``; NaN stays NaN."""
    errors = [
        np.abs(got[name] - array).max() / np.abs(array).max() for name, array in wanted.items()
    ]
    return float(np.max(errors))


def _qualify(
    entry: Entry,
    task: Task,
    folder: Path,
    wanted: dict[str, Array] | None,
    skipped: list[Skipped],
    stack: ExitStack,
) -> tuple[Rival | None, dict[str, float], dict[str, Array]]:
    """Start, check and try every variant; the fastest goes on, with the outputs that are right."""
    best: Rival | None = None
    tried: dict[str, float] = {}
    for variant in entry.variants(task):
        held = ExitStack()
        try:
            rival = held.enter_context(started(entry, variant, task, folder))
            outputs = _outputs(rival, folder)
            wanted = outputs if wanted is None else wanted
            rival.error = difference(outputs, wanted)
            if not rival.error <= TOLERANCE[task.kind]:
                raise ContenderError(
                    "it computes something else, so it is not timed",
                    got=f"a difference of {rival.error:.2g} of the largest output",
                    wanted=f"at most {TOLERANCE[task.kind]:.2g}",
                )
            rival.seconds = min(rival.ask("turn", repeats=1)["seconds"] for _ in range(TRIALS))
        except ReportedError as error:
            held.close()
            if entry.name == OURS:
                raise
            skipped.append(Skipped(f"{entry.name} ({variant})", str(error)))
            continue
        tried[variant] = rival.seconds
        if best is None or rival.seconds < best.seconds:
            if best is not None:
                best.stop()
            best = rival
            stack.push(held)
        else:
            held.close()
    return best, tried, wanted or {}


def _rounds(
    rivals: list[tuple[Rival, Measured]], rounds: int, steps: Callable[[str], None]
) -> None:
    for number in range(rounds):
        first = number % len(rivals)
        for rival, measured in rivals[first:] + rivals[:first]:
            turn = rival.ask("turn", repeats=measured.repeats)
            measured.seconds.append(turn["seconds"])
            measured.cpu_seconds.append(turn["cpu_seconds"])
            steps(f"round {number + 1} {measured.name}")


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


def _outputs(rival: Rival, folder: Path) -> dict[str, Array]:
    path = folder / "outputs.npz"
    rival.ask("outputs", path=str(path))
    with np.load(path) as arrays:
        return dict(arrays)


def _steps(progress: Progress | None, total: int) -> Callable[[str], None]:
    """Counts the steps for a progress bar."""
    done = 0

    def step(what: str) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(what, done, total)

    return step
