"""The library of training bugs, one file a family, the likelier first."""

from repvgg_ref.oracle.bugs.base import Bug, library
from repvgg_ref.oracle.training.bugs import (
    backward,
    dense,
    forward,
    operators,
    optimizer,
    pyramid,
    rates,
)
from repvgg_ref.oracle.training.run import Setup

TRAINING_BUGS: tuple[Bug[Setup], ...] = library(
    backward, forward, dense, pyramid, operators, optimizer, rates
)

__all__ = ["TRAINING_BUGS"]
