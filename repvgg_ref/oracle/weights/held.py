"""What a weight file is held to: its own format, or the one that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.bounds.precision import are_stored_as, stored_format
from repvgg_ref.oracle.weights.arithmetic import DIRECTIONS, FORMAT_NAMES, UNITS, narrow
from repvgg_ref.oracle.weights.conversion import ROUNDINGS, Conversion, Unsettled
from repvgg_ref.oracle.weights.infer import Layer, infer

_STORED_ONCE = 3  # roundings, of a number that is asked to be held in 16 bits


def formats_of(weights: Mapping[str, Array], biases: Mapping[str, Array]) -> tuple[str, str]:
    """The narrowest formats that hold all kernels and all biases of a file."""
    kernels = stored_format(weights)
    # too few biases say nothing: then they are taken to be stored as the kernels are
    alike = kernels == "fp64" or are_stored_as(kernels, biases.values())
    return kernels, kernels if alike else stored_format(biases)


def conversion_of(
    layers: Callable[[], Iterable[Layer]], stored: tuple[str, str], precision: str = "auto"
) -> Conversion:
    """How a file was converted, held to `precision`.

    Parameters
    ----------
    layers : callable
        Gives (Terms, FusedConv) of every layer.
    stored : (str, str)
        As `formats_of` says.
    precision : str
        "auto": what the file is stored in. Else a coarser file than asked for is held to what was
        asked for, and one that no order of operations explains to its rounding.
    """
    if precision in ("auto", stored[0]):
        return infer(layers(), stored) or Unsettled(stored)
    if UNITS[precision] < UNITS[stored[0]]:
        wanted = precision, precision
        roundings = _STORED_ONCE if precision in ("fp16", "bf16") else ROUNDINGS
        return infer(layers(), wanted) or Unsettled(wanted, roundings)
    coarse = max(precision, stored[1], key=lambda name: UNITS[name])
    return infer(layers(), stored) or Unsettled((precision, coarse))


def is_copy(got: Array, want: Array, formats: Iterable[str]) -> bool:
    """Whether an array that fusion leaves alone is `want`, or that rounded to one of `formats`."""
    got, want = (np.asarray(array, np.float64) for array in (got, want))
    if bool((got == want).all()):
        return True
    return any(
        bool((got == narrow(want, name, direction)).all())
        for name in formats
        if name in FORMAT_NAMES
        for direction in DIRECTIONS
    )


def named(stored: tuple[str, str]) -> str:
    """The file's format in words, where it is not float32; else the empty string."""
    weight, bias = (FORMAT_NAMES[name] for name in stored)
    if weight == bias == "float32":
        return ""
    return f"the file's kernels hold {weight} numbers" + (
        f", its biases {bias}" if bias != weight else ""
    )
