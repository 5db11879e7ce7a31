"""The library of training bugs, one file a family; `LIBRARY` is all of them, the likelier first."""

from repvgg_ref.oracle.training.bugs import backward, forward, operators, optimizer
from repvgg_ref.oracle.training.bugs.base import TrainingBug, Wrong

LIBRARY: tuple[TrainingBug, ...] = (
    *backward.LIBRARY,
    *forward.LIBRARY,
    *operators.LIBRARY,
    *optimizer.LIBRARY,
)

__all__ = ["LIBRARY", "TrainingBug", "Wrong"]
