"""Zip archives of other programs: what a system packs along, and what holds no weights at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from weights_io.errors import WeightsFileError
from weights_io.text import sanitize

_Member = TypeVar("_Member")

_MAC_FOLDER = "__MACOSX"
_LEFTOVERS = (".DS_Store", "Thumbs.db", "desktop.ini")

_TRAINED = "convert the training checkpoint it was exported from"
# the last part of a member's name, what such an archive is, what to do
_KNOWN: tuple[tuple[str, str, str], ...] = (
    ("archive_format", "a PyTorch export archive (.pt2)", _TRAINED),
    ("serialized_exported_program.json", "a PyTorch export archive (.pt2)", _TRAINED),
    ("model.weights.h5", "a Keras model (.keras)", _TRAINED),
    ("saved_model.pb", "a TensorFlow SavedModel", _TRAINED),
    ("Manifest.json", "a Core ML package (.mlpackage)", _TRAINED),
    ("constants.pkl", "a TorchScript archive", "save the weights alone: module.state_dict()"),
    ("AndroidManifest.xml", "an Android package", "give the weights file"),
    ("[Content_Types].xml", "an Office document", "give the weights file"),
)
_WEIGHTS = (".pth", ".pt", ".ckpt", ".tar", ".safetensors", ".npz", ".bin", ".pkl")


def without_leftovers(members: dict[str, _Member]) -> dict[str, _Member]:
    """Leave out what macOS and Windows put beside files when a folder is packed again."""
    return {name: member for name, member in members.items() if not _is_leftover(name)}


def _is_leftover(name: str) -> bool:
    first, last = name.partition("/")[0], name.rpartition("/")[2]
    return last in _LEFTOVERS or (first == _MAC_FOLDER and last.startswith("._"))


def unreadable_zip(file: str, members: Sequence[str]) -> WeightsFileError:
    """Return the error that says what a zip archive without weights is, as far as is known."""
    last = {name.rpartition("/")[2] for name in members}
    for name, kind, advice in _KNOWN:
        if name in last:
            return WeightsFileError(f"{file}: this is {kind}, no weights file", advice=advice)
    packed = next((name for name in members if name.lower().endswith(_WEIGHTS)), None)
    if packed is not None:
        return WeightsFileError(
            f"{file}: a zip archive that holds no weights itself, but a file of them",
            got=sanitize(packed),
            advice="unpack it first",
        )
    return WeightsFileError(
        f"{file}: a zip archive that holds no weights", wanted="a torch checkpoint or .npy arrays"
    )
