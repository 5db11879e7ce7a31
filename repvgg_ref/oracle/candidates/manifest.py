"""A folder of dumped layer outputs: .npy files, or raw bytes that a manifest.json describes.

    {"layout": "NHWC", "dtype": "float32", "endianness": "little", "precision": "fp16",
     "arrays": {"input":  {"file": "x.bin", "shape": [1, 32, 32, 3]},
                "stage0": {"file": "s0.bin", "shape": [1, 16, 16, 48], "layout": "NHWC"},
                "linear": "logits.npy"}}

What stands at the top holds for every array that does not say otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.candidates.base import CandidateFailure
from repvgg_ref.oracle.candidates.dumps import (
    Dump,
    checked_layout,
    checked_precision,
    read_npz,
)
from repvgg_ref.oracle.candidates.names import listed
from repvgg_ref.oracle.candidates.npy_files import (
    MOST_BYTES,
    read_json,
    read_npy,
    read_raw,
    read_text,
)
from repvgg_ref.oracle.candidates.values import SHORT
from weights_io import sanitize

MANIFEST = "manifest.json"
_TABLES = ("arrays", "layers", "tensors", "outputs")
_MOST_FILES = 4096


def read_folder(folder: Path) -> Dump:
    """Every array of the folder.

    Raises
    ------
    CandidateFailure
        If there is none, if the manifest does not describe what is there, or if it points
        outside the folder.
    """
    path = folder / MANIFEST
    manifest = _manifest(path) if path.is_file() else {}
    table = next((manifest[key] for key in _TABLES if key in manifest), None)
    if table is not None:
        return _described(folder, manifest, _entries(table))
    return _bare(folder, manifest)


def _bare(folder: Path, manifest: Mapping[str, Any]) -> Dump:
    """A folder whose files name their layers: .npy files, or one .npz."""
    files = sorted(path for path in folder.iterdir() if path.is_file())[:_MOST_FILES]
    plain = [path for path in files if path.suffix == ".npy"]
    archives = [path for path in files if path.suffix == ".npz"]
    layouts = _common_layout(manifest)
    if plain:
        _require_moderate(plain)
        arrays = {path.stem: read_npy(_inside(folder, path.name)) for path in plain}
        return Dump(arrays, layouts, _precision(manifest))
    if len(archives) == 1:
        dump = read_npz(_inside(folder, archives[0].name))
        return Dump(dump.arrays, layouts or dump.layouts, _precision(manifest) or dump.precision)
    raise CandidateFailure(
        f"{sanitize(folder.name)}: no dump in this folder",
        got=listed(path.name for path in files) or "no files",
        wanted=f".npy files named after the layers, one .npz, or raw files with a {MANIFEST}",
        advice='a manifest reads {"layout": "NCHW", "arrays": {"stage0": '
        '{"file": "s0.bin", "shape": [1, 48, 16, 16], "dtype": "float32"}}}',
    )


def _described(folder: Path, manifest: Mapping[str, Any], entries: Mapping[str, Any]) -> Dump:
    """A folder whose manifest names every array."""
    arrays: dict[str, Array] = {}
    layouts = _common_layout(manifest)
    kinds = set()
    _require_moderate([_inside(folder, _file(entry, n)) for n, entry in entries.items()])
    for name, entry in entries.items():
        said = {**manifest, **(entry if isinstance(entry, dict) else {})}
        arrays[name], kind = _array(_inside(folder, _file(entry, name)), said, name)
        kinds.add(SHORT.get(kind))
        if "layout" in said:
            layouts[name] = checked_layout(said["layout"], sanitize(name))
    precision = _precision(manifest) or (kinds.pop() if len(kinds) == 1 else None)
    return Dump(arrays, layouts, precision)


def _array(path: Path, said: Mapping[str, Any], name: str) -> tuple[Array, str]:
    """One array, checked against the shape and type that the manifest states."""
    shape = said.get("shape")
    if shape is not None and not (
        isinstance(shape, list) and 0 < len(shape) <= 8 and all(type(n) is int for n in shape)
    ):
        raise CandidateFailure(
            f"{sanitize(name)}: no shape", got=sanitize(shape), wanted="[N, C, H, W]"
        )
    if path.suffix == ".npy":
        array = read_npy(path, None if shape is None else tuple(shape))
        return array, array.dtype.name
    if shape is None or "dtype" not in said:
        raise CandidateFailure(
            f"{sanitize(name)}: raw bytes need a description",
            got=f"{sanitize(path.name)} without {'shape' if shape is None else 'dtype'}",
            wanted='"shape" and "dtype" in the manifest',
        )
    offset = said.get("offset", 0)
    if type(offset) is not int:
        raise CandidateFailure(
            f"{sanitize(name)}: no offset", got=sanitize(offset), wanted="a number"
        )
    order = str(said.get("endianness", "little"))
    return read_raw(path, tuple(shape), str(said["dtype"]), order, offset)


def _manifest(path: Path) -> dict[str, Any]:
    found = read_json(read_text(path), MANIFEST)
    if not isinstance(found, dict):
        raise CandidateFailure(f"{MANIFEST}: no object", got=type(found).__name__, wanted="{...}")
    return found


def _entries(table: Any) -> dict[str, Any]:
    """Name -> entry, from an object or from a list of objects with a name."""
    if isinstance(table, list) and all(isinstance(e, dict) and "name" in e for e in table):
        table = {str(entry["name"]): entry for entry in table}
    if not isinstance(table, dict) or not table or len(table) > _MOST_FILES:
        raise CandidateFailure(
            f"{MANIFEST}: lists no arrays",
            got=sanitize(table),
            wanted='"arrays": {"stage0": {"file": "s0.npy"}, ...}',
        )
    return table


def _file(entry: Any, name: str) -> str:
    file = entry.get("file") if isinstance(entry, dict) else entry
    if not isinstance(file, str) or not file:
        raise CandidateFailure(
            f"{sanitize(name)}: the manifest names no file",
            got=sanitize(entry),
            wanted='"file": "..."',
        )
    return file


def _inside(folder: Path, file: str) -> Path:
    """The path of a file in the folder; anything that leads outside is refused."""
    root = folder.resolve()
    try:
        path = (root / file).resolve()
    except (OSError, ValueError, RuntimeError):  # a NUL, a loop of links
        path = root.parent
    if Path(file).is_absolute() or not path.is_relative_to(root) or path == root:
        raise CandidateFailure(
            f"{MANIFEST}: a file outside the dump's folder",
            got=sanitize(file),
            wanted="a file name relative to the folder, inside it",
        )
    return path


def _require_moderate(paths: list[Path]) -> None:
    """Before anything is read; a file that is named nine times will be read nine times."""
    total = sum(path.stat().st_size for path in paths if path.is_file())
    if total > MOST_BYTES:
        raise CandidateFailure("the dump is too large", got=total, wanted=f"at most {MOST_BYTES}")


def _common_layout(manifest: Mapping[str, Any]) -> dict[str, str]:
    said = manifest.get("layout")
    return {} if said is None else {"": checked_layout(said, MANIFEST)}


def _precision(manifest: Mapping[str, Any]) -> str | None:
    said = manifest.get("precision")
    return None if said is None else checked_precision(said, MANIFEST)
