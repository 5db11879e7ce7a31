"""States on disk: whole or not at all, two kept, the last good one used."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repvgg_ref.train.state import (
    StateError,
    forget_older,
    read_newest,
    steps_in,
    sweep,
    write_state,
)

ARRAYS = {"weights/a": np.arange(6.0).reshape(2, 3), "running/n": np.array(3, np.int64)}
FACTS = {
    "identity": {"lr": 0.1, "model": "digits"},
    "version": "0.2.0",
    "threads": 2,
    "loss_scale": [1024.0, 3],
}


def write(folder: Path, *steps: int) -> None:
    for step in steps:
        arrays = {name: array + step for name, array in ARRAYS.items()}
        write_state(folder, step, arrays, FACTS)


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    write(tmp_path, 5)
    stored, damaged = read_newest(tmp_path)
    assert stored is not None
    assert (stored.step, stored.facts["identity"], damaged) == (5, FACTS["identity"], [])
    for name, array in ARRAYS.items():
        assert np.array_equal(stored.arrays[name], array + 5)
        assert stored.arrays[name].dtype == array.dtype


def test_two_states_are_kept(tmp_path: Path) -> None:
    write(tmp_path, 1, 2, 3, 10)
    assert steps_in(tmp_path) == [10, 3]
    assert len(list(tmp_path.iterdir())) == 4


def test_a_third_that_a_killed_writer_left_goes_when_the_newest_is_known_to_be_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("repvgg_ref.train.state._remove_all_but", lambda *_: None)
        write(tmp_path, 1, 2, 3, 4)
    sweep(tmp_path)
    assert steps_in(tmp_path) == [4, 3, 2, 1]  # nobody has read yet whether the newest is whole
    forget_older(tmp_path, 3)
    assert steps_in(tmp_path) == [4, 3, 2]


def test_states_of_a_course_that_was_left_are_removed(tmp_path: Path) -> None:
    write(tmp_path, 1, 9, 10, 5)
    assert steps_in(tmp_path) == [5]
    write(tmp_path, 6)
    assert steps_in(tmp_path) == [6, 5]


def test_an_empty_or_missing_folder_has_no_state(tmp_path: Path) -> None:
    assert read_newest(tmp_path) == (None, [])
    assert read_newest(tmp_path / "none") == (None, [])


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _format(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))


def _other_json(path: Path) -> None:
    path.write_text("[]")


def _deep(path: Path) -> None:
    path.write_text("[" * 100_000)


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def _other_state(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name.replace("2", "1"))


def _says(**facts: Any) -> Callable[[Path], object]:
    """A note of version 0.1.0, which had no digest of its own, that says something else."""

    def damage(path: Path) -> None:
        about = json.loads(path.read_text()) | {"format": 1, "note_sha256": ...} | facts
        path.write_text(json.dumps({name: value for name, value in about.items() if value != ...}))

    return damage


def _called_old(path: Path) -> None:
    """A note that says of itself that it has no digest, which then nobody would look at."""
    said = path.read_text().replace('"format": 2', '"format": 1').replace('"lr": 0.1', '"lr": 0.5')
    path.write_text(said)


DAMAGES: list[tuple[str, Callable[[Path], object]]] = [
    (".safetensors", _cut),
    (".safetensors", _flip),
    (".safetensors", lambda path: path.write_bytes(b"")),
    (".safetensors", Path.unlink),
    (".json", _cut),
    (".json", lambda path: path.write_bytes(b"\xff")),
    (".json", _format),
    (".json", _other_json),
    (".json", _deep),
    (".json", _fifo),
    (".json", _loop),
    (".safetensors", _fifo),
    (".safetensors", _loop),
    (".safetensors", _device),
    (".json", _device),
    (".json", _other_state),
    (".safetensors", _other_state),
    (".json", _says(step=1)),
    (".json", _says(step=True)),
    (".json", _says(step=...)),
    (".json", _says(identity=[])),
    (".json", _says(threads="2")),
    (".json", _says(loss_scale=[1])),
    (".json", _says(loss_scale=[1.0, "0"])),
    (".json", _says(sha256=None)),
    (".json", _says(threads=False)),
    (".json", _says(format=2, note_sha256="")),
    (".json", _says(format=True)),
    (".json", _says(format=1.0)),
    (".json", _says(metadata={})),
    (".json", _called_old),
]


@pytest.mark.parametrize(("suffix", "damage"), DAMAGES)
def test_a_damaged_newest_state_is_named_and_the_one_before_it_used(
    suffix: str, damage: Callable[[Path], object], tmp_path: Path
) -> None:
    write(tmp_path, 1, 2)
    damage(tmp_path / f"state-000000002{suffix}")
    stored, damaged = read_newest(tmp_path)
    assert stored is not None
    assert stored.step == 1
    assert len(damaged) == 1
    assert "state-000000002" in damaged[0]
    assert "Errno" not in damaged[0]

    write(tmp_path, 2)  # the training goes on, and over what is there
    stored, damaged = read_newest(tmp_path)
    assert stored is not None
    assert (stored.step, damaged) == (2, [])
    assert all(path.is_file() and not path.is_symlink() for path in tmp_path.iterdir())
    assert np.array_equal(stored.arrays["weights/a"], ARRAYS["weights/a"] + 2)
    (tmp_path / "state-000000002.json").unlink()
    before, damaged = read_newest(tmp_path)
    assert before is not None
    assert (before.step, damaged) == (1, [])


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 13])
def test_every_bit_that_flips_is_noticed(every: int, tmp_path: Path) -> None:
    write(tmp_path, 1)
    unnoticed = []
    for path in list(tmp_path.iterdir()):
        whole = path.read_bytes()
        for bit in range(0, 8 * len(whole), every):
            flipped = bytearray(whole)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            if read_newest(tmp_path)[0] is not None:
                unnoticed.append((path.name, bit))
        path.write_bytes(whole)
    assert not unnoticed
    assert read_newest(tmp_path)[0] is not None


def test_a_state_of_version_0_1_is_read(tmp_path: Path) -> None:
    write(tmp_path, 2)
    _says()(tmp_path / "state-000000002.json")
    stored, damaged = read_newest(tmp_path)
    assert stored is not None
    assert (stored.step, damaged) == (2, [])


def test_arrays_whose_writer_was_killed_are_swept(tmp_path: Path) -> None:
    write(tmp_path, 1, 2)
    (tmp_path / "state-000000002.json").unlink()
    (tmp_path / "state-other.safetensors").touch()
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "state-000000001.json",
        "state-000000001.safetensors",
        "state-other.safetensors",
    ]


def test_arrays_without_their_json_are_no_state(tmp_path: Path) -> None:
    """What a process leaves that is killed between the two files."""
    write(tmp_path, 1, 2)
    (tmp_path / "state-000000002.json").unlink()
    stored, damaged = read_newest(tmp_path)
    assert stored is not None
    assert (stored.step, damaged) == (1, [])


@pytest.mark.parametrize("survives", [0, 1, 2, 3])
def test_a_full_disk_is_told_and_the_last_good_state_stays(
    survives: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills at each of the writes in turn: its flushes and its renames."""
    write(tmp_path, 1)
    calls = 0

    def full(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > survives:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return original(*arguments, **named)

        return call

    monkeypatch.setattr(os, "fsync", full(os.fsync))
    monkeypatch.setattr(Path, "replace", full(Path.replace))
    monkeypatch.setattr(os, "link", full(os.link))
    with pytest.raises(StateError, match=r"No space left.*step 1 "):
        write(tmp_path, 2)
    monkeypatch.undo()
    stored, _ = read_newest(tmp_path)
    assert stored is not None
    assert stored.step == 1
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
