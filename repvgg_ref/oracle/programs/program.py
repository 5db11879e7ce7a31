"""What a program is: one layer of a port, right or wrong, that can be run in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from repvgg_ref.arrays import Array

Pixels = tuple[Array, Array]


class Workspace:
    """What evaluations of many programs on one input share: patches and branches' responses.

    Keys are the identities of the arrays and functions that went in; they are kept alive here.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], tuple[Any, Any]] = {}

    def get(self, key: tuple[Any, ...], alive: Any, make: Callable[[], Any]) -> Any:
        """What is under `key`, made once; `alive` is what the key's identities belong to."""
        if key not in self._kept:
            self._kept[key] = make(), alive
        return self._kept[key][0]


class Program(Protocol):
    """One layer as somebody's port computes it: a block, or the head."""

    @property
    def name(self) -> str:
        """The layer's."""

    def output_size(self, height: int, width: int) -> tuple[int, ...]:
        """Height and width of the output, less than 1 if nothing is left; () for logits."""

    def evaluate(
        self, x: Array, pixels: Pixels | None = None, workspace: Workspace | None = None
    ) -> Array:
        """The output (N, O, P) for the input `x` (N, C, H, W), in float64.

        Parameters
        ----------
        pixels : (rows, columns), optional
            Output pixels wanted; default all of them. Logits have one.
        workspace : Workspace, optional
            For many programs on the same `x` and `pixels`.
        """


# Numbers of the input that are looked at together: their windows, in float64, take nine times that.
_TOGETHER = 1 << 17


def layer_output(program: Program, x: Array) -> Array:
    """The whole output of a right program, few images at a time to bound the memory."""
    most = max(1, _TOGETHER * len(x) // max(x.size, 1))
    return np.concatenate(
        [batch_output(program, x[first : first + most]) for first in range(0, len(x), most)]
    )


def plain(program: Any) -> Any:
    """A program with the same output and one convolution at most: several times as fast."""
    return program.as_one_convolution() if hasattr(program, "as_one_convolution") else program


def batch_output(program: Program, x: Array, workspace: Workspace | None = None) -> Array:
    """The whole output, (N, O, Ho, Wo) or (N, classes), of any program: a mutant may mix images."""
    y = program.evaluate(x, None, workspace)
    return y.reshape(len(x), -1, *program.output_size(*x.shape[2:]))


def all_pixels(height: int, width: int) -> Pixels:
    """Every output pixel, row by row."""
    rows, columns = np.divmod(np.arange(height * width), width)
    return rows, columns
