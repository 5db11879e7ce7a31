"""Ports run outside this process: ``module:callable`` and ``exec:command {input} {output}``."""

from __future__ import annotations

import json
import re
import shlex
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.models.graph import Network
from repvgg_ref.oracle.candidates.base import Candidate, CandidateFailure, Outputs
from repvgg_ref.oracle.candidates.callables import Returned, from_values
from repvgg_ref.oracle.candidates.dumps import (
    PRECISIONS,
    Dump,
    interpret,
    read_npz,
    read_single,
)
from repvgg_ref.oracle.candidates.manifest import read_folder
from repvgg_ref.oracle.candidates.npy_files import opened
from repvgg_ref.oracle.candidates.processes import run_program
from repvgg_ref.oracle.candidates.serving import INPUT, TASK
from repvgg_ref.oracle.candidates.session import Session
from repvgg_ref.oracle.candidates.values import Value
from repvgg_ref.oracle.candidates.worker import task_of
from weights_io import sanitize

EXEC = "exec:"
# No letter alone in front of the colon: C:\model is a path.
_MODULE = re.compile(r"(?P<module>[\w./\\-]{2,}):(?P<name>[A-Za-z_]\w*(\.\w+)*)")


def is_module(text: str) -> bool:
    """Whether `text` reads ``module:callable``."""
    return _MODULE.fullmatch(text) is not None


@dataclass
class ModuleCandidate(Candidate):
    """``package.module:name`` or ``file.py:name``, called in a child process.

    The child may crash, exit, hang or print: it costs a verdict, never this process. It lives on
    from call to call, so that a port which depends on earlier calls shows it. `timeout` is for
    all calls together, loading included.
    """

    name: str
    spec: str
    arch: Network
    timeout: float
    is_called: ClassVar[bool] = True
    _session: Session | None = field(default=None, repr=False, compare=False)

    def run(self, x: Array | None) -> Outputs:
        """Call it with `x` as float32, NCHW."""
        return self._call(self.batch(x), self.timeout)

    def run_again(self, x: Array, seconds: float) -> Outputs:
        """Call it again, in the same child unless that has ended."""
        return self._call(x, min(seconds, self.timeout))

    def close(self) -> None:
        """End the child."""
        if self._session is not None:
            self._session.end()
            self._session = None

    def _call(self, x: Array, seconds: float) -> Outputs:
        batch = np.ascontiguousarray(x, np.float32)
        if self._session is None:
            task = json.dumps(task_of(self.spec, self.arch)).encode()
            self._session = Session(self.name, "worker", {TASK: task})
        started = time.monotonic()
        try:
            arrays, told = self._session.ask(batch, seconds)
        except CandidateFailure:
            if not self._session.lives:
                self.close()
            raise
        finally:
            self.timeout -= time.monotonic() - started
        returned = _returned(arrays, told, self.name)
        return from_values(returned, self.arch, where=self.name, x=batch)


@dataclass(frozen=True)
class CommandCandidate(Candidate):
    """Any program: it reads an .npy file and writes .npy (logits), .npz, or a folder of a dump."""

    name: str
    command: str
    arch: Network
    timeout: float
    is_called: ClassVar[bool] = True

    def run(self, x: Array | None) -> Outputs:
        """Run the program on `x`; no shell is involved."""
        return self.run_again(self.batch(x), self.timeout)

    def run_again(self, x: Array, seconds: float) -> Outputs:
        """Start the program anew."""
        batch = np.ascontiguousarray(x, np.float32)
        dump = run_command(self.name, self.command, batch, min(seconds, self.timeout))
        return interpret(dump, self.arch, where=self.name, x=batch, assume="NCHW", live=True)


def run_command(name: str, command: str, batch: Array, seconds: float) -> Dump:
    """What the program of ``exec:`` writes for `batch`, which it reads as it is from an .npy file.

    No shell is involved.

    Raises
    ------
    CandidateFailure
        If the command does not name its files, fails, writes nothing, or takes longer than
        `seconds`.
    """
    words = _words(name, command)
    with tempfile.TemporaryDirectory(prefix="repvgg-ref-", ignore_cleanup_errors=True) as folder:
        given, output = Path(folder) / INPUT, Path(folder) / "output"
        np.save(given, batch, allow_pickle=False)
        for place, path in {"{input}": given, "{output}": output}.items():
            words = [word.replace(place, str(path)) for word in words]
        run_program(words, name=name, timeout=seconds)
        return _written(output, name)


def _words(name: str, command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise CandidateFailure(f"{name}: no command", got=error) from None
    if not words or "{output}" not in command or "{input}" not in command:
        raise CandidateFailure(
            f"{name}: the command does not say where its files go",
            wanted="exec:./my_port {input} {output}",
        )
    return words


def _returned(arrays: list[Array], told: Mapping[str, Any], name: str) -> Returned:
    """What the worker tells of a call, if it is what a worker of ours would tell."""
    if "failure" in told:
        said = told["failure"] if isinstance(told["failure"], list) else []
        told_of = [None if each is None else sanitize(each) for each in said]
        what, got, wanted = (*told_of, None, None, None)[:3]
        refused = told.get("refused") is True
        raise CandidateFailure(f"{name}: {what}", got=got, wanted=wanted, refused=refused)
    names, precisions, notes = (told.get(key) for key in ("names", "precisions", "notes"))
    if not (
        isinstance(names, list)
        and isinstance(precisions, list)
        and isinstance(notes, list)
        and len(names) == len(precisions) == len(arrays)
    ):
        raise CandidateFailure(f"{name}: ended with a damaged result")
    kinds = [each if each in PRECISIONS else None for each in precisions]
    values = {str(n): Value(a, k) for n, a, k in zip(names, arrays, kinds, strict=True)}
    return Returned(values, [sanitize(note) for note in notes], told.get("wrote_input") is True)


def _written(output: Path, name: str) -> Dump:
    """What a program left at ``{output}``, with the suffix that its library likes to append."""
    if output.is_dir():
        return read_folder(output)
    for path in (output, output.with_suffix(".npz"), output.with_suffix(".npy")):
        if path.is_file():
            with opened(path) as file:
                single = file.read(6) == b"\x93NUMPY"
            return read_single(path) if single else read_npz(path)
    raise CandidateFailure(
        f"{name}: wrote nothing", wanted="an .npy or .npz file, or a folder, at {output}"
    )
