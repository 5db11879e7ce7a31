"""The states of a training in its folder: written whole, checked when read, two kept.

``state-<step>.safetensors`` holds the arrays. ``state-<step>.json``, its note, says what they are,
and is written last: without it the state does not exist. It holds the SHA-256 of the arrays' file
and of itself, and is spelt in one way only, so that no bit of either file changes unnoticed. A
process killed at any moment leaves the last good state; a damaged one is told, and the one before
it is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import weights_io
from repvgg_ref.arrays import Array
from repvgg_ref.errors import ReportedError

FORMAT = 2
KEPT = 2
_NAME = re.compile(r"state-(\d{9})\.(json|safetensors)")
_MOST = 1 << 20  # bytes of a note
_NUMBER = (int, float)
_DIGEST = "note_sha256"
# What a note says, and of what type.
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "step": int,
    "sha256": str,
    "identity": dict,
    "version": str,
    "threads": int,
    "loss_scale": list,
}
# All that a note of 0.1.0 says, which has no digest of its own.
_OF_0_1_0 = {"format", *_FIELDS}


class StateError(ReportedError):
    """A folder whose states cannot be written, read, or continued."""


@dataclass(frozen=True)
class Stored:
    """A state as the file has it.

    Attributes
    ----------
    step : int
        Optimiser steps done.
    arrays : dict
        ``weights/<official name>``, ``velocity/...``, ``ema/...``.
    facts : dict
        The JSON file: recipe, seed, version, and what else must not change.
    """

    step: int
    arrays: dict[str, Array]
    facts: dict[str, Any]


def write_state(
    folder: Path, step: int, arrays: Mapping[str, Array], facts: Mapping[str, Any]
) -> Path:
    """Put a state into `folder`, then remove all but it and the `KEPT` - 1 before it.

    States of later steps go too: they are damaged, or of a course that was left.

    Raises
    ------
    StateError
        If it cannot be written (a full disk); the states before it are untouched.
    """
    data, note = _paths(folder, step)
    digests: list[str] = []

    def flush(temporary: Path) -> None:
        """Down to the disk before the name exists, so that a power cut leaves no empty file."""
        with temporary.open("r+b") as file:  # Windows flushes only what may be written to
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
            os.fsync(file.fileno())

    values = {name: np.asarray(array) for name, array in arrays.items()}
    specs = [weights_io.ArraySpec(n, v.shape, v.dtype.name) for n, v in values.items()]
    with _told(folder):
        # An older state of this step would be mixed of two while its files are replaced.
        note.unlink(missing_ok=True)
        data.unlink(missing_ok=True)  # a FIFO, or a link to another state's, would be written to
        weights_io.write_weights(data, specs, values.values(), container="safetensors", check=flush)
        about = {"format": FORMAT, "step": step, "sha256": digests[0], **facts}
        write_text(note, _spelt(about | {_DIGEST: _digest_of(about)}))
    with contextlib.suppress(OSError, StateError):  # the state is there; older ones go next time
        kept = [other for other in steps_in(folder) if other <= step][:KEPT]
        _remove_all_but(folder, kept)
    return note


def forget_older(folder: Path, step: int) -> None:
    """Remove all before the `KEPT` last up to `step`: a killed writer may have left one more."""
    with contextlib.suppress(OSError, StateError):
        steps = steps_in(folder)
        later = [other for other in steps if other > step]
        _remove_all_but(folder, later + [other for other in steps if other <= step][:KEPT])


def sweep(folder: Path) -> None:
    """Remove what a process that was killed has left: half a file, or arrays without a note."""
    with contextlib.suppress(OSError):
        weights_io.sweep(folder)
        _remove_all_but(folder, steps_in(folder))


def read_newest(folder: Path) -> tuple[Stored | None, list[str]]:
    """The newest state that is whole, and what is wrong with each newer one."""
    damaged: list[str] = []
    for step in steps_in(folder):
        try:
            return _read(folder, step), damaged
        except (OSError, ValueError, ReportedError) as error:
            damaged.append(f"state-{step:09} is damaged: {_reason(error)}")
    return None, damaged


def make_way(folder: Path, outputs: Iterable[str]) -> None:
    """See to it that states and files called `outputs` can be written, before any work is done.

    FIFOs, sockets and devices of these names go; those of states go when the state is written.

    Raises
    ------
    StateError
        If a folder is called so, or an output is a link to what is no file.
    """
    for path in [path for step, _ in _files_in(folder) for path in _paths(folder, step)]:
        if path.is_dir() and not path.is_symlink():
            raise _in_the_way(path, "a folder")
    for path in [folder / name for name in outputs]:
        if not path.exists() or path.is_file():  # or a link to nothing, which will be a file
            continue
        if path.is_symlink():
            raise _in_the_way(path, "a link to what is no file")
        if path.is_dir():
            raise _in_the_way(path, "a folder")
        path.unlink()


def _in_the_way(path: Path, kind: str) -> StateError:
    return StateError(
        f"{path} is in the way of a file of the training",
        got=kind,
        wanted="a file, or nothing",
        advice="move it away, or choose another --out",
    )


def _reason(error: Exception) -> str:
    """An error of the system without its number, which says nothing to anybody."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{Path(error.filename).name}: {error.strerror}"
    return str(error)


def steps_in(folder: Path) -> list[int]:
    """The steps of which `folder` says it has a state, newest first."""
    return sorted((step for step, kind in _files_in(folder) if kind == "json"), reverse=True)


def last_good(path: Path) -> str:
    """What an error says about the state that is left."""
    steps = steps_in(path)
    return f"the last good state is step {steps[0]} in {path}" if steps else "no state was saved"


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all, down to the disk."""
    with (
        weights_io.atomic_path(path, sync=True) as temporary,
        temporary.open("w", encoding="utf-8") as file,
    ):
        file.write(text)


def _read(folder: Path, step: int) -> Stored:
    data, note = _paths(folder, step)
    facts = _noted(note, step)
    with weights_io.open_regular(data) as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != facts["sha256"]:
            raise StateError("its arrays are not those that were written")
        file.seek(0)
        with weights_io.open_weights(file) as archive:
            root: Any = archive.root  # a flat mapping: the digest says that it is what we wrote
            arrays = {name: lazy.read() for name, lazy in root.items()}
    return Stored(step, arrays, facts)


def _noted(note: Path, step: int) -> dict[str, Any]:
    """What a note says, after it was found to be as it was written."""
    with weights_io.open_regular(note) as file:
        text = file.read(_MOST + 1).decode("utf-8")
    try:
        facts = json.loads(text)
    except RecursionError:
        raise StateError("its note is nested too deeply") from None
    if not isinstance(facts, dict):
        raise StateError("its note is no table", got=type(facts).__name__)
    _require_as_written(facts, text)
    for name, kind in _FIELDS.items():
        if not isinstance(facts.get(name), kind) or isinstance(facts[name], bool):
            raise StateError(f"its note does not say {name!r}", got=repr(facts.get(name))[:80])
    if facts["step"] != step:
        raise StateError("its note is another state's", got=facts["step"], wanted=step)
    scale = facts["loss_scale"]
    if len(scale) != 2 or not all(type(value) in _NUMBER for value in scale):
        raise StateError("its note has no loss scale", got=repr(scale)[:80])
    return facts


def _require_as_written(facts: Mapping[str, Any], text: str) -> None:
    """Hold a note to its digest; what says that it is of 0.1.0 may say no more than those did."""
    found = facts.get("format")
    if type(found) is not int or found not in (1, FORMAT):
        raise StateError("another version's state", got=repr(found)[:80], wanted=FORMAT)
    if found == 1 and facts.keys() <= _OF_0_1_0:
        return
    about = {name: value for name, value in facts.items() if name != _DIGEST}
    if found == 1 or facts.get(_DIGEST) != _digest_of(about) or text != _spelt(facts):
        raise StateError("its note is not the one that was written")


def _spelt(facts: Mapping[str, Any]) -> str:
    """The one way in which a note is written."""
    return json.dumps(facts, indent=1) + "\n"


def _digest_of(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(_spelt(facts).encode()).hexdigest()


def _files_in(folder: Path) -> Iterator[tuple[int, str]]:
    """Step and kind of every file of a state."""
    try:
        names = [path.name for path in folder.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise StateError(f"{folder} cannot be read", got=error.strerror) from None
    for name in names:
        if match := _NAME.fullmatch(name):
            yield int(match[1]), match[2]


def _remove_all_but(folder: Path, kept: list[int]) -> None:
    for step in {step for step, _ in _files_in(folder)} - set(kept):
        for path in reversed(_paths(folder, step)):  # the note first: it makes the state
            path.unlink(missing_ok=True)


def _paths(folder: Path, step: int) -> tuple[Path, Path]:
    return folder / f"state-{step:09}.safetensors", folder / f"state-{step:09}.json"


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Say which state is left when writing one fails."""
    try:
        yield
    except (OSError, ReportedError) as error:
        raise StateError(
            "the training's state cannot be written",
            got=error,
            advice=f"{last_good(folder)}: make room, then --resume",
        ) from None
