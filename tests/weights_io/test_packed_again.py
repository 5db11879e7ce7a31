"""Checkpoints that have been unpacked, packed again or split: the same arrays, or a clear word."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weights_io
from tests.weights_io.forge import (
    OS_SYSTEM,
    Entry,
    npy,
    proto,
    state_dict,
    storage,
    tensor,
    text,
    zip_file,
)
from tests.weights_io.refusal import assert_refused

VALUES = {key: np.arange(4, dtype="<f4") + int(key) for key in ("0", "1")}
PICKLE = state_dict({"a": tensor(), "b": tensor(of=storage(key="1"))})
FILES = {
    "data.pkl": PICKLE,
    "byteorder": b"little",
    "data/0": VALUES["0"].tobytes(),
    "data/1": VALUES["1"].tobytes(),
    "version": b"3\n",
    ".data/serialization_id": b"1234",
}
FORK = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        "


def _assert_read(file: Any, container: str) -> None:
    with weights_io.open_weights(file) as archive:
        root: Any = archive.root
        assert archive.container == container
        assert list(root) == ["a", "b"]
        np.testing.assert_array_equal(root["a"].read(), VALUES["0"], strict=True)
        np.testing.assert_array_equal(root["b"].read(), VALUES["1"], strict=True)


def _packed(names: Mapping[str, bytes], **options: Any) -> bytes:
    return zip_file([Entry(name, data, **options) for name, data in names.items()])


PACKED: dict[str, dict[str, bytes]] = {
    "as torch does": {f"m/{name}": data for name, data in FILES.items()},
    "from inside the folder": FILES,
    "with folders of their own": {"m/": b"", "m/data/": b""}
    | {f"m/{name}": data for name, data in FILES.items()},
    "by Windows": {f"m\\{name}".replace("/", "\\"): data for name, data in FILES.items()},
    "by Windows from inside": {name.replace("/", "\\"): data for name, data in FILES.items()},
    "by macOS": {f"m/{name}": data for name, data in FILES.items()}
    | {
        "__MACOSX/": b"",
        "__MACOSX/._m": FORK,
        "__MACOSX/m/._data.pkl": FORK,
        "__MACOSX/m/data/._0": FORK,
        "m/.DS_Store": b"\x00\x00\x00\x01Bud1",
        "m/data/.DS_Store": b"\x00\x00\x00\x01Bud1",
    },
    "by Windows' Explorer": {f"m/{name}": data for name, data in FILES.items()}
    | {"m/Thumbs.db": b"\xd0\xcf\x11\xe0"},
}


@pytest.mark.parametrize("how", PACKED)
@pytest.mark.parametrize("deflate", [False, True])
def test_an_archive_packed_again_is_read(how: str, deflate: bool) -> None:
    _assert_read(BytesIO(_packed(PACKED[how], deflate=deflate)), "torch-zip")


WRONGLY: dict[str, tuple[dict[str, bytes], str]] = {
    "climbing with backslashes": (
        {"m\\data.pkl": PICKLE, "m\\..\\..\\x": b""},
        "leaves the archive",
    ),
    "an absolute name with backslashes": (
        {"m\\data.pkl": PICKLE, "\\x": b""},
        "leaves the archive",
    ),
    "both separators": ({"m/data.pkl": PICKLE, "m\\data\\0": b""}, "leaves the archive"),
    "one name in both spellings": (
        {"m/data.pkl": PICKLE, "m\\data.pkl": PICKLE},
        "leaves the archive",
    ),
    "a pickle beside it": ({**FILES, "other.pkl": PICKLE}, "no torch writes"),
    "a pickle where macOS puts its own": (
        {**PACKED["by macOS"], "__MACOSX/data.pkl": PICKLE},
        "more than one top-level folder",
    ),
    "a program": ({**FILES, "code/a.py": b"", "constants.pkl": b""}, "TorchScript"),
    "a checkpoint in a zip": (
        {"weights/RepVGG-A0.pth": b"PK\x03\x04"},
        r"weights/RepVGG-A0.pth ; unpack it",
    ),
    "an exported program": ({"a/archive_format": b"pt2", "a/models/model.json": b"{}"}, "pt2"),
    "an older exported program": ({"serialized_exported_program.json": b"{}"}, "pt2"),
    "Keras": ({"config.json": b"{}", "model.weights.h5": b"\x89HDF"}, r"\.keras"),
    "Core ML": ({"m.mlpackage/Manifest.json": b"{}"}, "Core ML"),
}


@pytest.mark.parametrize("case", WRONGLY)
def test_another_archive_is_refused_for_what_it_is(case: str) -> None:
    names, match = WRONGLY[case]
    assert_refused(_packed(names), match)


def test_a_message_about_an_archive_accuses_nobody() -> None:
    message = assert_refused(_packed({"m/data.pkl": PICKLE, "m/../x": b""}), "leaves the archive")
    assert "deceive" not in message


# ------------------------------------------------------------------------------ folders


def _unpacked(folder: Path, files: Mapping[str, bytes] = FILES) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def test_an_unpacked_folder_is_read(tmp_path: Path) -> None:
    folder = _unpacked(tmp_path / "outer" / "archive")
    _assert_read(folder, "torch-folder")
    _assert_read(str(folder), "torch-folder")
    (tmp_path / "outer" / "__MACOSX").mkdir()
    _assert_read(tmp_path / "outer", "torch-folder")


def test_a_folder_needs_no_open_file_for_each_array(tmp_path: Path) -> None:
    """One storage an array: a large network has more than a process may have open."""
    folder, before = _unpacked(tmp_path), _open_files()
    with weights_io.open_weights(folder) as archive:
        archive.root["a"].read()  # type: ignore[index]
        assert _open_files() == before


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _read_all(path: Path) -> None:
    with weights_io.open_weights(path) as archive:
        for array in archive.root.values():  # type: ignore[attr-defined]
            array.read()


def _message(path: Path) -> str:
    with pytest.raises(weights_io.WeightsFileError) as caught:
        _read_all(path)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 600
    return message


def test_a_folder_that_is_broken_or_hostile_is_refused(tmp_path: Path) -> None:
    lacking = {name: data for name, data in FILES.items() if name != "data/1"}
    assert "storage 1 is missing" in _message(_unpacked(tmp_path / "lacking", lacking))
    short = _unpacked(tmp_path / "short", FILES | {"data/1": bytes(12)})
    assert "wrong size" in _message(short)
    evil = _unpacked(tmp_path / "evil", FILES | {"data.pkl": proto(OS_SYSTEM + b")R")})
    assert "refused global os.system" in _message(evil)
    climbing = state_dict({"a": tensor(of=storage(key="../version"))})
    assert "missing" in _message(_unpacked(tmp_path / "key", FILES | {"data.pkl": climbing}))


@pytest.mark.parametrize("linked", ["data.pkl", "data/1", "data"])
def test_links_inside_a_folder_are_not_followed(tmp_path: Path, linked: str) -> None:
    folder = _unpacked(tmp_path / "m")
    (folder / linked).rename(tmp_path / "elsewhere")
    (folder / linked).symlink_to(tmp_path / "elsewhere")
    assert "missing" in _message(folder) or "no file of its own" in _message(folder)


def test_the_only_weights_in_a_folder_are_taken(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.pth").write_bytes(_packed(PACKED["as torch does"]))
    _assert_read(tmp_path, "torch-zip")
    (tmp_path / "other.pth").write_bytes(b"")
    assert "a folder with model.pth, other.pth" in _message(tmp_path)


def test_a_folder_without_weights_is_said_to_be_one(tmp_path: Path) -> None:
    assert "got a folder ;" in _message(tmp_path)
    (tmp_path / "model-00001-of-00002.safetensors").touch()
    assert "shards without their index" in _message(tmp_path)
    (tmp_path / "Manifest.json").touch()
    assert "Core ML" in _message(tmp_path)


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="no such flag here")
def test_a_file_of_a_folder_that_becomes_a_link_is_not_followed(tmp_path: Path) -> None:
    """It lies where others may write: what they link to is not theirs to have read."""
    _unpacked(tmp_path / "m", FILES)
    secret = tmp_path / "secret"
    secret.write_bytes(VALUES["1"].tobytes())
    with weights_io.open_weights(tmp_path / "m") as archive:
        array = archive.root["a"]  # type: ignore[index]
        (tmp_path / "m" / "data" / "0").unlink()
        (tmp_path / "m" / "data" / "0").symlink_to(secret)
        with pytest.raises(weights_io.WeightsFileError, match="cannot be opened"):
            array.read()


# ------------------------------------------------------------------------------- shards

SHARDS = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}


def _sharded(folder: Path, table: object = SHARDS, container: Any = "safetensors") -> Path:
    folder.mkdir(exist_ok=True)
    for (name, file), values in zip(SHARDS.items(), VALUES.values(), strict=True):
        weights_io.save_weights(folder / file, {name: values}, container=container)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 32.0}, "weight_map": table}, indent=2))
    return index


@pytest.mark.parametrize("container", ["safetensors", "torch-zip", "torch-legacy"])
def test_shards_are_read_by_their_index_or_folder(tmp_path: Path, container: str) -> None:
    index = _sharded(tmp_path, container=container)
    for path in (index, tmp_path, str(index)):
        _assert_read(path, f"{container}-shards")


def test_what_is_free_is_free_once_for_all_shards(tmp_path: Path) -> None:
    """Copies of one dear little file, each within what a file may ask for, are not all read."""
    dear = proto(b"}" + text("%d") + b"](" + b"(\x91" * 40_000 + b"es", 4)
    for count, is_read in ((1, True), (4, False)):
        folder = tmp_path / str(count)
        folder.mkdir()
        for number in range(count):
            (folder / f"{number}.bin").write_bytes(dear.replace(b"%d", b"%02d" % number, 1))
        table = {f"{number:02d}": f"{number}.bin" for number in range(count)}
        index = folder / "a.index.json"
        index.write_text(json.dumps({"weight_map": table}))
        if is_read:
            weights_io.open_weights(index).close()
        else:
            assert "too m" in _message(index)


def test_closing_closes_every_shard(tmp_path: Path) -> None:
    before = _open_files()
    with weights_io.open_weights(_sharded(tmp_path)):
        assert _open_files() == before + 2
    assert _open_files() == before


def test_of_an_array_in_two_shards_the_one_of_the_index_is_read(tmp_path: Path) -> None:
    index = _sharded(tmp_path)
    second = {"b": VALUES["1"], "a": VALUES["1"]}
    weights_io.save_weights(tmp_path / SHARDS["b"], second, container="safetensors")
    _assert_read(index, "safetensors-shards")


BROKEN: dict[str, tuple[object, str]] = {
    "an array that is nowhere": (SHARDS | {"c": SHARDS["a"]}, "1 missing, first c"),
    "a file that is nowhere": (SHARDS | {"c": "model-00003-of-00003.safetensors"}, "No such file"),
    "a file elsewhere": (SHARDS | {"a": "../model.safetensors"}, "without folders"),
    "a file elsewhere on Windows": (SHARDS | {"a": "..\\x"}, "without folders"),
    "an absolute file": (SHARDS | {"a": "/etc/passwd"}, "without folders"),
    "a drive": (SHARDS | {"a": "c:x"}, "without folders"),
    "the folder itself": (SHARDS | {"a": "."}, "without folders"),
    "a NUL": (SHARDS | {"a": "\0"}, "without folders"),
    "a number": (SHARDS | {"a": 3}, "without folders"),
    "an escape": ({"\x1b[2J": 3}, "without folders"),
    "no files": ({}, "this is JSON"),
    "a list": ([1, 2], "this is JSON"),
    "itself": ({"a": "model.safetensors.index.json"}, "names another index"),
    "too many files": ({str(i): f"{i}.safetensors" for i in range(1001)}, "too many files"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_index_is_refused(tmp_path: Path, case: str) -> None:
    table, match = BROKEN[case]
    before = _open_files()
    assert match in _message(_sharded(tmp_path / "m", table))
    assert _open_files() == before


JSON: dict[str, Callable[[], bytes]] = {
    "an error": lambda: b'{"error": "Repository not found"}',
    "nested": lambda: b'{"a": ' + b"[" * 100_000,
    "cut short": lambda: b'{"weight_map": {"a": "b"',
    "no UTF-8": lambda: b'{"weight_map\xff": {}}',
}


@pytest.mark.parametrize("case", JSON)
def test_other_json_is_told_as_such(case: str) -> None:
    assert_refused(JSON[case](), "this is JSON, no weights file")


def test_an_index_without_a_path_is_refused() -> None:
    index = json.dumps({"weight_map": SHARDS}).encode()
    assert_refused(index, "opened by its path only")


def test_an_npz_with_what_macos_packs_is_read() -> None:
    members = {"w.npy": npy(VALUES["1"].tobytes()), "__MACOSX/._w.npy": FORK, ".DS_Store": b"x"}
    with weights_io.open_weights(BytesIO(_packed(members))) as archive:
        assert archive.container == "npz"
        np.testing.assert_array_equal(archive.root["w"].read(), VALUES["1"])  # type: ignore[index]
