"""Which peers take part: those asked for, or all that are installed."""

from __future__ import annotations

from collections.abc import Sequence

from repvgg_ref.bench.contenders.base import (
    BRANCHES,
    DIRECT,
    ENTRIES,
    OURS,
    PEERS,
    CannotTakePartError,
    Entry,
    install,
    require_installed,
)
from repvgg_ref.bench.result import Skipped
from repvgg_ref.bench.task import Task


def choose_entries(asked: Sequence[str] | None, task: Task) -> tuple[list[Entry], list[Skipped]]:
    """Ours first, then the peers asked for, else all that are installed and can do the task.

    Raises
    ------
    MissingExtraError
        If one was asked for and is not installed.
    CannotTakePartError
        If one was asked for and cannot do this kind of task.
    """
    able = [entry for entry in PEERS if task.kind in entry.kinds]
    if task.backend == "cupy":
        able = [ENTRIES["torch"]]  # the others are CPU runtimes here
    skipped: list[Skipped] = []
    if asked is None:
        chosen = [entry for entry in able if not entry.missing()]
        skipped += [
            Skipped(entry.name, "not installed", install(missing))
            for entry in able
            if (missing := entry.missing())
        ]
    else:
        chosen = [_asked(name, able, task) for name in dict.fromkeys(asked)]
    ours = [ENTRIES[name] for name in (OURS, DIRECT, BRANCHES) if _says_something(name, task)]
    return [*ours, *chosen], skipped


def _says_something(name: str, task: Task) -> bool:
    """Whether this form of ours can do the task, and is not one of the others again."""
    has_algorithms = task.backend == "numpy" and task.algorithm != "direct"
    return task.kind in ENTRIES[name].kinds and (name != DIRECT or has_algorithms)


def _asked(name: str, able: Sequence[Entry], task: Task) -> Entry:
    entry = next((entry for entry in able if entry.name == name), None)
    if entry is None:
        raise CannotTakePartError(
            f"{name} takes no part in this comparison",
            got=f"{task.kind} with backend {task.backend}",
            wanted=f"one of {', '.join(entry.name for entry in able)}",
        )
    require_installed(entry)
    return entry


def choose_converter(asked: Sequence[str] | None) -> tuple[bool, list[Skipped]]:
    """Whether the official script in torch takes part; errors as in `choose_entries`."""
    torch = ENTRIES["torch"]
    if asked is None and (missing := torch.missing()):
        return False, [Skipped("torch", "not installed", install(missing))]
    for name in asked or []:
        if name != "torch":
            raise CannotTakePartError(
                f"{name} does not convert checkpoints", got=name, wanted="torch"
            )
        require_installed(torch)
    return asked is None or bool(asked), []
