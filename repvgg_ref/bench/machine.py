"""What the figures were taken on, and how busy it was."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

BUSY = 0.05  # of all processors, used by others while we measured


def machine() -> dict[str, Any]:
    """Processor, cores that we may use, memory, versions."""
    usable = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return {
        "processor": _field("/proc/cpuinfo", "model name") or platform.processor() or "unknown",
        "cores": usable,
        "memory": _field("/proc/meminfo", "MemTotal"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "blas": _blas(),
        "blas_pinned": os.environ.get("OPENBLAS_CORETYPE") or None,
        "repvgg-ref": version("repvgg-ref"),
    }


class Watch:
    """Counts, from now on, what the machine does that is not ours.

    The load average cannot tell: after a benchmark it is high from the benchmark itself.

    Attributes
    ----------
    load_before : list of float or None
        `load` at the start, for the record.
    """

    def __init__(self) -> None:
        self.load_before = load()
        self._began, self._all, self._ours = time.monotonic(), _busy_seconds(), _our_seconds()

    def others(self) -> float | None:
        """The share of all processors that others used, the hypervisor's included.

        Our child processes count as ours once they have ended. None where the system does not
        tell (anywhere but Linux).
        """
        now, wall = _busy_seconds(), time.monotonic() - self._began
        if now is None or self._all is None or wall <= 0:
            return None
        foreign = now - self._all - (_our_seconds() - self._ours)
        return round(max(0.0, foreign) / (wall * (os.cpu_count() or 1)), 3)


def is_busy(others: float | None) -> bool:
    """Whether so much else was running that the timings are noisy; unknown is not busy."""
    return others is not None and others > BUSY


def load() -> list[float] | None:
    """Load averages over 1, 5 and 15 minutes; None where the system has none."""
    try:
        return [round(each, 2) for each in os.getloadavg()]
    except (AttributeError, OSError):
        return None


def version(package: str) -> str | None:
    """The installed version of `package`, as pip calls it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _busy_seconds() -> float | None:
    """Processor seconds that were not idle since the machine started: the first line of /proc/stat.

    user, nice, system, idle, iowait, irq, softirq, steal; what comes after is in user and nice.
    """
    if sys.platform != "linux":
        return None
    try:
        ticks = list(
            map(int, Path("/proc/stat").read_text(encoding="ascii").split("\n")[0].split()[1:9])
        )
    except (OSError, ValueError):
        return None
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def _our_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _blas() -> str:
    import numpy.linalg  # noqa: F401  so that NumPy's BLAS is among those found
    from threadpoolctl import threadpool_info

    found = {
        f"{info['internal_api']} {info.get('version')} {info.get('architecture', '')}".strip()
        for info in threadpool_info()
        if info.get("user_api") == "blas"
    }
    return ", ".join(sorted(found)) or "unknown"


def _field(path: str, name: str) -> str | None:
    if sys.platform != "linux":
        return None
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), None)
