"""The child process of ``module:callable``: calls a stranger's function with every batch.

The port is imported once. It has neither of the two standard streams.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from repvgg_ref.models.graph import Network
from repvgg_ref.oracle.candidates.base import CandidateFailure
from repvgg_ref.oracle.candidates.callables import call
from repvgg_ref.oracle.candidates.names import LayerNames, ToldNames
from repvgg_ref.oracle.candidates.serving import TASK, ended, own_streams, serve
from repvgg_ref.oracle.candidates.values import last_line


def task_of(spec: str, arch: Network) -> dict[str, Any]:
    """What the child needs to know, as JSON."""
    return {"callable": spec, "names": LayerNames(arch).told}


class Port:
    """The port of a task: imported at the first call, so that what it says then is told."""

    def __init__(self, task: dict[str, Any]) -> None:
        self._spec, self._names = task["callable"], ToldNames(**task["names"])
        self._function: Callable[..., Any] | None = None

    def work(self, x: Any) -> tuple[Iterable[Any], dict[str, Any]]:
        """Call it; a failure is a result too."""
        try:
            if self._function is None:
                self._function = imported(self._spec)
            returned = call(self._function, x, self._names.module)
        except CandidateFailure as failure:
            said = [failure.what, _text(failure.got), _text(failure.wanted)]
            return [], {"failure": said, "refused": failure.refused}
        values = returned.values.values()
        return (value.array for value in values), {
            "names": list(returned.values),
            "precisions": [value.precision for value in values],
            "notes": list(returned.notes),
            "wrote_input": returned.wrote_input,
        }


def imported(spec: str) -> Callable[..., Any]:
    """The object that ``package.module:name`` or ``path/to/file.py:name`` means.

    Raises
    ------
    CandidateFailure
        If it cannot be imported, or is nothing to call.
    """
    module_name, _, attribute = spec.rpartition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = _module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:
        raise CandidateFailure("the candidate cannot be imported", got=last_line(error)) from None
    if not callable(found):
        raise CandidateFailure(
            "the candidate is nothing to call", got=type(found).__name__, wanted="a function"
        )
    function: Callable[..., Any] = found
    return function


def _module(name: str) -> Any:
    if not name.endswith(".py"):
        return importlib.import_module(name)
    path = Path(name)
    sys.path.insert(0, str(path.resolve().parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _text(detail: object) -> str | None:
    return None if detail is None else str(detail)


def work() -> None:
    """Do what the folder on the command line asks for."""
    folder = Path(sys.argv[1]).resolve()
    port = Port(json.loads((folder / TASK).read_text("utf-8")))
    serve(folder, *own_streams(), port.work)
    ended()
