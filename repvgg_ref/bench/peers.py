"""Which peers take part: those asked for, or all that are installed."""

from __future__ import annotations

from collections.abc import Sequence

from repvgg_ref.bench.contenders.base import (
    BRANCHES,
    ENTRIES,
    PEERS,
    CannotTakePartError,
    install,
    require_installed,
)
from repvgg_ref.bench.result import Skipped
from repvgg_ref.bench.task import Task


def choose_peers(asked: Sequence[str] | None, task: Task) -> tuple[list[str], list[Skipped]]:
    """The contenders besides ours: those asked for, else all that are installed and can do it.

    Raises
    ------
    MissingExtraError
        If one was asked for and is not installed.
    CannotTakePartError
        If one was asked for and cannot do this kind of task.
    """
    able = [name for name in PEERS if task.kind in ENTRIES[name].kinds]
    if task.backend == "cupy":
        able = ["torch"]  # the others are CPU runtimes here
    if asked is not None:
        for name in asked:
            if name not in able:
                raise CannotTakePartError(
                    f"{name} takes no part in this comparison",
                    got=f"{task.kind} with backend {task.backend}",
                    wanted=f"one of {', '.join(able)}",
                )
            require_installed(ENTRIES[name])
        chosen, skipped = list(asked), []
    else:
        chosen = [name for name in able if not ENTRIES[name].missing()]
        skipped = [
            Skipped(name, "not installed", install(ENTRIES[name].missing()))
            for name in able
            if name not in chosen
        ]
    return ([BRANCHES, *chosen] if task.kind == "inference" else chosen), skipped


def choose_converter(asked: Sequence[str] | None) -> tuple[bool, list[Skipped]]:
    """Whether the official script in torch takes part; errors as in `choose_peers`."""
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
