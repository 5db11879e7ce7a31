"""The batch given with ``--inputs``: arrays in a file, or a picture. Told by content."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from repvgg_ref.errors import ReportedError

if TYPE_CHECKING:
    from repvgg_ref.arrays import Array
    from repvgg_ref.models.network import Model

_NPY, _ZIP = b"\x93NUMPY", b"PK\x03\x04"
_INPUT_NAMES = ("input", "inputs", "x", "images")


def read_batch(path: Path, model: Model) -> Array:
    """The images in `path`, (N, C, H, W), as the network is to see them.

    A picture is prepared as for validation (or as the bundled digits are); an array is taken as
    it is.

    Raises
    ------
    ReportedError
        If it is neither, or integers: nobody can tell how those are to be scaled.
    """
    from weights_io import open_regular

    with open_regular(path) as file:
        head = file.read(len(_NPY))
    if head == _NPY:
        from repvgg_ref.oracle.candidates.npy_files import read_npy

        return _floating(read_npy(path), path)
    if head.startswith(_ZIP):
        return _floating(_only_array(path), path)
    if head.lstrip()[:1] in (b"{", b"["):
        from repvgg_ref.oracle.candidates.polygraphy import read_inputs

        return _floating(read_inputs(path, model.arch.in_channels), path)
    from repvgg_ref.data.images import network_input

    return network_input(path, model.arch, about=model.about)


def _only_array(path: Path) -> Array:
    """The single array of an archive, or the one that is called input."""
    from repvgg_ref.oracle.candidates.dumps import read_npz
    from weights_io import sanitize

    arrays = read_npz(path).arrays
    named = [name for name in arrays if name.lower() in _INPUT_NAMES]
    chosen = list(arrays) if len(arrays) == 1 else named
    if len(chosen) != 1:
        raise ReportedError(
            f"{sanitize(path.name)}: which array is the batch?",
            got=", ".join(map(sanitize, list(arrays)[:8])) or "no array",
            wanted="one array, or one called input",
        )
    array: Array = arrays[chosen[0]]
    return array


def _floating(array: Array, path: Path) -> Array:
    from weights_io import sanitize

    if array.dtype.kind != "f":
        raise ReportedError(
            f"{sanitize(path.name)}: the batch is not of floating-point numbers",
            got=array.dtype,
            wanted="images as the network sees them, scaled and standardised",
        )
    return array
