"""The library of training bugs, one file a family; `LIBRARY` is all of them, the likelier first."""

from repvgg_ref.oracle.training.bugs import backward, forward, operators, optimizer
from repvgg_ref.oracle.training.bugs.base import TrainingBug, Wrong, library

LIBRARY: tuple[TrainingBug, ...] = library(backward, forward, operators, optimizer)

__all__ = ["LIBRARY", "TrainingBug", "Wrong"]
