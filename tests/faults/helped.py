"""A caller whose helper processes are attacked, and what became of it; see `attacks`.

    python -m tests.faults.helped CASE REPORT

Writes one JSON object to the file REPORT, for a case may have closed every stream: what was wrong,
how long the slowest call took, what was warned of, and what was open or alive afterwards.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.cpu import engine as engines
from repvgg_ref.cpu.engine import Engine
from repvgg_ref.cpu.workers import crew as crews
from repvgg_ref.cpu.workers.process import HelperProcess
from repvgg_ref.models.architectures import plain_architecture
from repvgg_ref.models.network import fuse
from tests.random_networks import random_model

MOST_SECONDS = 5.0  # of a call, beyond what an idle machine takes for it
MODEL = fuse(
    random_model(plain_architecture(depths=(1, 1), channels=(4, 4, 6), groups=1, num_classes=3), 0)
)


def pictures(count: int = 2) -> Array:
    """Noise of as many shapes as there are counts."""
    rng = np.random.default_rng(count)
    return rng.normal(size=(count, 3, 24, 24)).astype(np.float32)


class Caller:
    """Engines with a crew each call of which is checked and timed."""

    def __init__(self, threads: int = 2) -> None:
        self.threads = threads
        self.engine = self.another()
        self.wrong: list[str] = []
        self.slowest = 0.0
        self.calls = 0
        self._known: dict[int, Array] = {}

    def another(self) -> Engine:
        """One more engine of the same network."""
        blocks, params = MODEL.arch.blocks, MODEL.params
        return Engine(blocks, params, dtype=np.float32, threads=self.threads)

    def call(self, count: int = 2, engine: Engine | None = None) -> None:
        """Run the network, and note what is wrong with the result."""
        x = pictures(count)
        began = time.monotonic()
        got = (engine or self.engine).forward(x)
        self.slowest = max(self.slowest, time.monotonic() - began)
        self.calls += 1
        if count not in self._known:
            self._known[count] = MODEL.forward(x, backend="reference")
        wanted = self._known[count]
        if not np.abs(got - wanted).max() <= 2e-5 * np.abs(wanted).max():
            self.wrong.append(f"call {self.calls}: another result")

    def helpers(self) -> list[int]:
        """The processes of this one's crews."""
        mine = [crew for (pid, _), crew in crews._crews.items() if pid == os.getpid()]
        return [helper.pid for crew in mine if not crew.closed for helper in crew._helpers]


def during(act: Callable[[], None], caller: Caller, seconds: float = 1.0) -> None:
    """Call again and again, and let another thread act in the middle."""
    done = threading.Event()

    def wait_and_act() -> None:
        time.sleep(seconds / 2)
        act()
        done.set()

    threading.Thread(target=wait_and_act).start()
    until = time.monotonic() + seconds
    while time.monotonic() < until or not done.is_set():
        caller.call()


def descriptors() -> set[str]:
    """What is open, by number and name."""
    gc.collect()
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(f"{entry.name} {entry.readlink()}")
    return {each for each in found if "/proc/" not in each}


def alive(pids: list[int]) -> list[int]:
    """Those of the processes that run, a moment later."""
    for _ in range(100):
        if not (left := [pid for pid in pids if _is_running(pid)]):
            return []
        time.sleep(0.05)
    return left


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextlib.contextmanager
def ended() -> Iterator[list[int]]:
    """Close all crews at the end; yields the helpers that there were, once there are any."""
    pids: list[int] = []

    class Seen(HelperProcess):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            pids.append(self.pid)

    vars(crews)["HelperProcess"] = Seen
    try:
        yield pids
    finally:
        for each in list(crews._crews.values()):
            each.close()
        crews._crews.clear()


def report(act: Callable[[Caller], None]) -> dict[str, Any]:
    """Do it, and say what it did to the caller."""
    engines.CREW_MACS = engines.STAND_IN_BYTES = 0
    caller: Caller | None = Caller()
    assert caller is not None
    before = descriptors()
    with warnings.catch_warnings(record=True) as told, ended() as pids:
        warnings.simplefilter("always")
        try:
            act(caller)
        except Exception as error:
            caller.wrong.append(f"raised {type(error).__name__}: {error}")
        helped = bool(pids)
    seconds, wrong, calls, caller = caller.slowest, caller.wrong, caller.calls, None
    said = [str(each.message) for each in told if issubclass(each.category, RuntimeWarning)]
    if seconds > MOST_SECONDS + 3:  # three for a busy machine
        wrong.append(f"a call took {seconds:.1f} s")
    if lost := sorted(descriptors() - before):
        wrong.append(f"lost {lost}")
    if left := alive(pids):
        wrong.append(f"helpers {left} go on")
    return {
        "wrong": wrong,
        "seconds": round(seconds, 2),
        "calls": calls,
        "helped": helped,
        "warnings": said,
    }


def main(name: str, path: str) -> None:
    """Attack, and report."""
    from tests.faults.attacks import CASES

    found = report(CASES[name].act)
    Path(path).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
