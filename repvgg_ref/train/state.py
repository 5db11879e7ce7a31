"""The states of a training in its folder: written whole, checked when read, two kept.

``state-<step>.safetensors`` holds the arrays. ``state-<step>.json`` says what they are, with their
SHA-256, and is written last: without it the state does not exist. So a process killed at any moment
leaves the last good state, and a damaged file is noticed and the one before it used.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import weights_io
from repvgg_ref.arrays import Array
from repvgg_ref.errors import ReportedError

FORMAT = 1
KEPT = 2
_NAME = re.compile(r"state-(\d{9})\.json")


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
        weights_io.write_weights(data, specs, values.values(), container="safetensors", check=flush)
        text = json.dumps({"format": FORMAT, "step": step, "sha256": digests[0], **facts}, indent=1)
        write_text(note, text + "\n")
    found = steps_in(folder)
    kept = [other for other in found if other <= step][:KEPT]
    for other in set(found) - set(kept):
        for path in reversed(_paths(folder, other)):
            path.unlink(missing_ok=True)
    return note


def read_newest(folder: Path) -> tuple[Stored | None, list[str]]:
    """The newest state that is whole, and what is wrong with each newer one."""
    damaged: list[str] = []
    for step in steps_in(folder):
        try:
            return _read(folder, step), damaged
        except (OSError, ValueError, KeyError, TypeError, ReportedError) as error:
            damaged.append(f"state-{step:09} is damaged: {error}")
    return None, damaged


def steps_in(folder: Path) -> list[int]:
    """The steps of which `folder` says it has a state, newest first."""
    if not folder.is_dir():
        return []
    found = (_NAME.fullmatch(path.name) for path in folder.iterdir())
    return sorted((int(match[1]) for match in found if match), reverse=True)


def last_good(path: Path) -> str:
    """What an error says about the state that is left."""
    steps = steps_in(path)
    return f"the last good state is step {steps[0]} in {path}" if steps else "no state was saved"


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with weights_io.atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _read(folder: Path, step: int) -> Stored:
    data, note = _paths(folder, step)
    facts = json.loads(note.read_text(encoding="utf-8"))
    if facts["format"] != FORMAT:
        raise StateError("another version's state", got=facts["format"], wanted=FORMAT)
    with data.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != facts["sha256"]:
        raise StateError("its arrays are not those that were written")
    with weights_io.open_weights(data) as archive:
        root: Any = archive.root  # a flat mapping: the digest says that it is what we wrote
        arrays = {name: lazy.read() for name, lazy in root.items()}
    return Stored(int(facts["step"]), arrays, facts)


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
