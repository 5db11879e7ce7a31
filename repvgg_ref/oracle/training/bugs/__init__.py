"""The library of training bugs, one file a family, the likelier first."""

from repvgg_ref.oracle.bugs.base import Bug, library
from repvgg_ref.oracle.training.bugs import backward, forward, operators, optimizer
from repvgg_ref.oracle.training.run import Setup

TRAINING_BUGS: tuple[Bug[Setup], ...] = library(backward, forward, operators, optimizer)

__all__ = ["TRAINING_BUGS"]
