"""One child process, and the folder it is spoken to through (`serving` is the child's end)."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.interpreter import running
from repvgg_ref.oracle.candidates.base import CandidateFailure
from repvgg_ref.oracle.candidates.npy_files import read_json, read_npy, read_text
from repvgg_ref.oracle.candidates.processes import Child
from repvgg_ref.oracle.candidates.serving import INPUT, RESULT

_MOST_ARRAYS = 4096


class Session:
    """A child that runs ``work`` of `worker`, a module of this package, until it is ended.

    `files` lie in the folder from the beginning; what the child opens at its first request may
    be put there later. `light` is for a worker that needs nothing of the oracle's.
    """

    def __init__(
        self, name: str, worker: str, files: Mapping[str, bytes], *, light: bool = False
    ) -> None:
        self._name, self._calls = name, 0
        self._folder = Path(tempfile.mkdtemp(prefix="repvgg-ref-"))
        self._remove = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self.put(files)
        module = f"{__package__}.{worker}"
        self._child = Child(running(module, "work", str(self._folder), light=light), name=name)

    @property
    def lives(self) -> bool:
        """Whether it can be asked again."""
        return self._child.lives

    def put(self, files: Mapping[str, bytes]) -> None:
        """Write files into the folder, or others in their place."""
        for name, content in files.items():
            (self._folder / name).write_bytes(content)

    def ask(self, batch: Array | None, seconds: float) -> tuple[list[Array], dict[str, Any]]:
        """What the child answers: its arrays, and what it tells besides.

        What is worked for ran in it, so nothing in there is trusted.

        Raises
        ------
        CandidateFailure
            If it ends before it answers, takes longer than `seconds`, or answers nonsense.
        """
        self._calls += 1
        place = self._folder / str(self._calls)
        place.mkdir()
        if batch is not None:
            np.save(place / INPUT, batch, allow_pickle=False)
        self._child.ask(place.name, seconds)
        if not (place / RESULT).is_file():
            raise CandidateFailure(f"{self._name}: ended without a result", got="exit code 0")
        told = read_json(read_text(place / RESULT), self._name)
        if not isinstance(told, dict):
            raise CandidateFailure(f"{self._name}: ended with a damaged result")
        arrays: list[Array] = []
        while len(arrays) < _MOST_ARRAYS and (file := place / f"{len(arrays)}.npy").exists():
            arrays.append(read_npy(file))
        shutil.rmtree(place, ignore_errors=True)
        return arrays, told

    def end(self) -> None:
        """Stop the child and remove the folder."""
        self._child.end()
        self._remove()
