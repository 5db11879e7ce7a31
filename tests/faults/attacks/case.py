"""An attack on the helpers of a caller, and how it is started."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.faults.helped import Caller

Act = Callable[[Caller], None]


@dataclass(frozen=True)
class Case:
    """One attack."""

    act: Act
    flags: tuple[str, ...] = ()
    unset: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    closed: tuple[int, ...] = ()
    limits: dict[int, int] = field(default_factory=dict)
    gone: bool = False  # the folder it is started in
    waits: bool = False  # until patience is at its end
    warns: bool | None = None  # whether a warning is due; None: it may come


CASES: dict[str, Case] = {}


def case(**how: Any) -> Callable[[Act], Act]:
    """Register what a function does to a caller, under its name."""

    def register(act: Act) -> Act:
        CASES[act.__name__.replace("_", " ")] = Case(act, **how)
        return act

    return register


def plain(caller: Caller) -> None:
    """Two calls, and one of another shape."""
    caller.call()
    caller.call()
    caller.call(3)
