"""Asking a port: a callable here, ``module:callable`` in a child process, or a dump."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.interpreter import running
from repvgg_ref.oracle.candidates.base import CandidateFailure
from repvgg_ref.oracle.candidates.processes import run_program
from repvgg_ref.oracle.candidates.values import last_line, to_value
from repvgg_ref.oracle.operators.operator import Answer, Call, Operator
from weights_io import open_regular, read_regular, sanitize

TASK, RESULT = "task.json", "result.json"


class Port(Protocol):
    """Somebody's implementation of one operator."""

    @property
    def name(self) -> str:
        """What messages call it; safe to print."""

    def answers(self, calls: Sequence[Call]) -> list[Answer]:
        """What it gives for each call; `CandidateFailure` if it fails."""


@dataclass(frozen=True)
class FunctionPort:
    """A function of this process, called with NumPy arrays, or with torch tensors if it wants."""

    function: Callable[..., Any]
    name: str

    def answers(self, calls: Sequence[Call]) -> list[Answer]:
        """Call it."""
        return [ask(self.function, call) for call in calls]


@dataclass(frozen=True)
class ModulePort:
    """``package.module:name`` or ``file.py:name``, asked in a child process."""

    spec: str
    timeout: float

    @property
    def name(self) -> str:
        """The text it was given by."""
        return sanitize(self.spec)

    def answers(self, calls: Sequence[Call]) -> list[Answer]:
        """Start one child for all calls."""
        with tempfile.TemporaryDirectory(prefix="repvgg-ref-", ignore_cleanup_errors=True) as name:
            folder = Path(name)
            tasks = [
                {"operator": c.operator.name, "settings": c.settings, "label": c.label}
                for c in calls
            ]
            task = {"callable": self.spec, "calls": tasks}
            (folder / TASK).write_text(json.dumps(task), "utf-8")
            for i, call in enumerate(calls):
                np.savez(folder / f"call{i}.npz", **call.arrays)  # type: ignore[arg-type]
            worker = running(f"{__package__}.worker", "work", str(folder))
            run_program(worker, name=self.name, timeout=self.timeout)
            return [_written(folder, i, self.name) for i in range(len(calls))]


def _written(folder: Path, i: int, name: str) -> Answer:
    """What the child wrote of one call; the port ran in it, so nothing in there is trusted."""
    try:
        result = json.loads(read_regular(folder / RESULT))
    except (OSError, RecursionError, ValueError):
        raise CandidateFailure(f"{name}: ended without a result", got="exit code 0") from None
    try:
        if "failure" in result:
            what, got, wanted = (*map(sanitize, result["failure"]), "", "", "")[:3]
            raise CandidateFailure(f"{name}: {what}", got=got or None, wanted=wanted or None)
        kind, notes = result["precisions"][i], tuple(map(sanitize, result["notes"]))
    except (LookupError, TypeError):
        raise CandidateFailure(f"{name}: ended with a damaged result") from None
    outputs = _read(folder / f"answer{i}.npz", f"{name}: its answer")
    return Answer(outputs, None if kind is None else str(kind), notes)


def ask(function: Callable[..., Any], call: Call) -> Answer:
    """Call a port once and make arrays of what it returns.

    Raises
    ------
    CandidateFailure
        If it raises, exits, or returns what are no arrays.
    """
    given = call.operator.positional(call.arrays)
    notes: list[str] = []
    try:
        with np.errstate(all="ignore"):
            result = _called(function, given, call, notes)
    except CandidateFailure:
        raise
    except (Exception, SystemExit) as error:
        where = f" on {call.label}" if call.label else ""
        raise CandidateFailure(f"it failed{where}", got=last_line(error)) from None
    return _answer(_with_updates(result, given, call), notes)


def _called(function: Callable[..., Any], given: list[Any], call: Call, notes: list[str]) -> Any:
    try:
        return function(*given, **call.settings)
    except (TypeError, AttributeError):
        torch: Any = sys.modules.get("torch")
        if torch is None:
            raise
        notes.append("called with torch tensors")
        with torch.no_grad():
            return function(*(_tensors(torch, each) for each in given), **call.settings)


def _tensors(torch: Any, given: Any) -> Any:
    if isinstance(given, Mapping):
        return {name: _tensors(torch, array) for name, array in given.items()}
    return given if given is None else torch.from_numpy(given)


def _with_updates(result: Any, given: list[Any], call: Call) -> dict[str, Any]:
    """The outputs by name; running statistics may have been updated in place instead."""
    named = _named(result, call.operator)
    updated = dict(zip(call.operator.arrays, given, strict=False))
    for name in call.operator.outputs[len(named) :]:
        before = call.arrays.get(name)
        if before is not None and not np.array_equal(updated[name], before):
            named[name] = updated[name]
    return named


def _named(result: Any, operator: Operator) -> dict[str, Any]:
    if result is None:
        raise CandidateFailure("it returned nothing", wanted=", ".join(operator.outputs))
    if hasattr(result, "_asdict"):
        result = result._asdict()
    if isinstance(result, Mapping):
        return {str(name): value for name, value in result.items() if value is not None}
    if not isinstance(result, tuple | list):
        return {operator.outputs[0]: result}
    if len(result) > len(operator.outputs):
        raise CandidateFailure(
            "it returned too many arrays", got=len(result), wanted=", ".join(operator.outputs)
        )
    pairs = zip(operator.outputs, result, strict=False)
    return {name: value for name, value in pairs if value is not None}


def _answer(named: Mapping[str, Any], notes: Sequence[str]) -> Answer:
    values = {name: to_value(value, name) for name, value in named.items()}
    arrays: dict[str, Array] = {name: value.array for name, value in values.items()}
    first = next(iter(values.values()), None)  # statistics may be kept in more bits
    return Answer(arrays, None if first is None else first.precision, tuple(notes))


def dumped(
    operator: Operator, dump: Any, given: Mapping[str, Array], settings: Mapping[str, Any]
) -> tuple[Call, Answer, str]:
    """A call and its answer from arrays that were dumped: a mapping, or an npz file.

    Settings are arrays of their names, (2,) for a pair; those given by the caller go first.

    Raises
    ------
    CandidateFailure
        If it cannot be read, or holds no output or not all arrays.
    """
    name = "dump" if isinstance(dump, Mapping) else sanitize(Path(str(dump)).name)
    arrays = dict(dump) if isinstance(dump, Mapping) else _read(Path(str(dump)), name)
    found = {key: np.asarray(value) for key, value in arrays.items()}
    told = {k: _setting(found.pop(k)) for k in operator.settings if k in found}
    outputs = {key: found.pop(key) for key in list(found) if _is_output(key, operator, found)}
    inputs = {**found, **given}
    absent = [
        key
        for key in operator.arrays
        if key not in inputs and key not in (operator.bundle, *operator.optional)
    ]
    if absent or not outputs:
        wanted = [*absent, *(() if outputs else operator.outputs)]
        raise CandidateFailure(
            f"{name}: arrays are missing", got=", ".join(arrays), wanted=", ".join(wanted)
        )
    call = Call(operator, inputs, {**operator.settings, **told, **settings}, "")
    return call, _answer(outputs, ()), name


def _is_output(name: str, operator: Operator, arrays: Mapping[str, Array]) -> bool:
    """``running_mean`` is an argument; what training mode makes of it is ``new_running_mean``."""
    if name in operator.arrays:
        return False
    return name in operator.outputs or (operator.is_backward and name.startswith("grad_"))


def _setting(value: Array) -> Any:
    return value.item() if value.ndim == 0 else tuple(value.tolist())


def _read(path: Path, name: str) -> dict[str, Array]:
    try:
        with open_regular(path) as file, np.load(file, allow_pickle=False) as arrays:
            return {str(key): np.asarray(arrays[key]) for key in arrays.files}
    except Exception:  # whatever zipfile, zlib and NumPy raise for what is no such file
        raise CandidateFailure(
            f"{name}: is no file that can be read", wanted="an npz file of named arrays"
        ) from None
