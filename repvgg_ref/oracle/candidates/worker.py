"""The child process of `module:callable`: calls a stranger's function and writes down its arrays.

    python -m repvgg_ref.oracle.candidates.worker FOLDER

FOLDER holds task.json and x.npy; the child adds 0.npy, 1.npy, ... and, last of all, result.json.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.models.architectures import Architecture
from repvgg_ref.models.graph import Network
from repvgg_ref.oracle.candidates.base import CandidateFailure
from repvgg_ref.oracle.candidates.callables import call
from repvgg_ref.oracle.candidates.names import LayerNames
from repvgg_ref.oracle.candidates.values import last_line

TASK, INPUT, RESULT = "task.json", "x.npy", "result.json"


def task_of(spec: str, arch: Network) -> dict[str, Any]:
    """What the child needs to know, as JSON."""
    blocks = [asdict(block) for block in arch.blocks]
    return {"callable": spec, "blocks": blocks, "num_classes": arch.num_classes}


def main(folder: Path) -> None:
    """Do the task in `folder`; a failure is a result too."""
    task = json.loads((folder / TASK).read_text("utf-8"))
    blocks = tuple(BlockSpec(**block) for block in task["blocks"])
    names = LayerNames(Architecture("custom", blocks, task["num_classes"]))
    try:
        function = imported(task["callable"])
        values, notes = call(function, np.load(folder / INPUT, allow_pickle=False), names.layer)
    except CandidateFailure as failure:
        result: dict[str, Any] = {
            "failure": [failure.what, _text(failure.got), _text(failure.wanted)]
        }
    else:
        for i, value in enumerate(values.values()):
            np.save(folder / f"{i}.npy", value.array, allow_pickle=False)
        precisions = [value.precision for value in values.values()]
        result = {"names": list(values), "precisions": precisions, "notes": notes}
    unfinished = folder / "unfinished.json"
    unfinished.write_text(json.dumps(result), "utf-8")
    unfinished.rename(folder / RESULT)


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


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    sys.stderr.flush()
    os._exit(0)  # threads and atexit handlers of a stranger's library may hang; the result is there
