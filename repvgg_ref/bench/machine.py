"""What the figures were taken on, and how busy it was."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any

BUSY = 0.25  # of the processors, over the last minute, before we began


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
        "repvgg-ref": version("repvgg-ref"),
    }


def load() -> list[float] | None:
    """Load averages over 1, 5 and 15 minutes; None where the system has none."""
    try:
        return [round(each, 2) for each in os.getloadavg()]
    except (AttributeError, OSError):
        return None


def is_busy(before: list[float] | None) -> bool:
    """Whether something else was running: timings taken then are noisy."""
    return before is not None and before[0] > BUSY * (os.cpu_count() or 1)


def version(package: str) -> str | None:
    """The installed version of `package`, as pip calls it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


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
