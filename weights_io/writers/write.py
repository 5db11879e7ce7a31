"""Writing weights: streaming, atomic, the same bytes for the same arrays."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from weights_io.errors import WeightsFileError
from weights_io.text import sanitize
from weights_io.writers.atomic import atomic_path, reported
from weights_io.writers.npz import write_npz
from weights_io.writers.safetensors import write_safetensors
from weights_io.writers.specs import ArraySpec, check_specs, encode_all
from weights_io.writers.torch_files import write_torch_legacy, write_torch_zip

Container = Literal["npz", "safetensors", "torch-zip", "torch-legacy"]

_Writer = Callable[[BinaryIO, Sequence[ArraySpec], Iterator[memoryview], Mapping[str, Any]], None]
_WRITERS: dict[str, _Writer] = {
    "npz": write_npz,
    "safetensors": write_safetensors,
    "torch-zip": write_torch_zip,
    "torch-legacy": write_torch_legacy,
}


def write_weights(
    path: str | os.PathLike[str],
    specs: Sequence[ArraySpec],
    arrays: Iterable[NDArray[Any]],
    *,
    container: Container,
    metadata: Mapping[str, Any] | None = None,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Write arrays, taken one at a time in the order of `specs`, and commit the file at the end.

    Parameters
    ----------
    path : path
        The final name; appears complete or not at all.
    specs : sequence of ArraySpec
        Name, shape and type of each array.
    arrays : iterable of ndarray
        Each as its spec says; may be a generator.
    container : {"npz", "safetensors", "torch-zip", "torch-legacy"}
        The file format.
    metadata : mapping of str to str, optional
        torch's older container has no place for it; npz takes values of any JSON type.
    check : callable, optional
        Called with the finished temporary file; if it raises, nothing is committed.

    Raises
    ------
    WeightsFileError
        When an array, a name or a type does not fit, or the file cannot be written.
    """
    if container not in get_args(Container):
        raise WeightsFileError(
            "unknown container", got=sanitize(container), wanted=", ".join(get_args(Container))
        )
    check_specs(specs)
    with atomic_path(path) as temporary:
        with reported(path), temporary.open("r+b") as file:
            _WRITERS[container](file, specs, encode_all(specs, arrays), metadata or {})
        if check is not None:
            check(temporary)


def save_weights(
    path: str | os.PathLike[str],
    arrays: Mapping[str, NDArray[Any]],
    *,
    container: Container,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write named arrays that are already in memory; see `write_weights`."""
    values = {name: np.asarray(array) for name, array in arrays.items()}
    specs = [ArraySpec(name, value.shape, value.dtype.name) for name, value in values.items()]
    write_weights(path, specs, values.values(), container=container, metadata=metadata)
