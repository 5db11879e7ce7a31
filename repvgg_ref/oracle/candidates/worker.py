"""The child process of `module:callable`: calls a stranger's function and writes down its arrays.

Started as `work`, on a folder that holds task.json. The port is imported once; then the child reads
the names of folders, one a line, on its standard input. Each holds x.npy; the child adds 0.npy,
1.npy, ... and, last of all, result.json, and says so by a line on its standard output. The port has
neither of the two streams.
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
from typing import IO, Any

import numpy as np

from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.models.architectures import Architecture
from repvgg_ref.models.graph import Network
from repvgg_ref.oracle.candidates.base import CandidateFailure
from repvgg_ref.oracle.candidates.callables import Returned, call
from repvgg_ref.oracle.candidates.names import LayerNames
from repvgg_ref.oracle.candidates.values import last_line

TASK, INPUT, RESULT = "task.json", "x.npy", "result.json"


def task_of(spec: str, arch: Network) -> dict[str, Any]:
    """What the child needs to know, as JSON."""
    blocks = [asdict(block) for block in arch.blocks]
    return {"callable": spec, "blocks": blocks, "num_classes": arch.num_classes}


def main(folder: Path, requests: IO[str], answers: IO[str]) -> None:
    """Import the port and call it for every request; a failure is a result too."""
    task = json.loads((folder / TASK).read_text("utf-8"))
    blocks = tuple(BlockSpec(**block) for block in task["blocks"])
    names = LayerNames(Architecture("custom", blocks, task["num_classes"]))
    function: Callable[..., Any] | None = None
    for line in requests:
        place = folder / line.strip()
        try:
            if function is None:
                function = imported(task["callable"])
            x = np.load(place / INPUT, allow_pickle=False)
            result = _written(place, call(function, x, names.layer))
        except CandidateFailure as failure:
            said = [failure.what, _text(failure.got), _text(failure.wanted)]
            result = {"failure": said, "refused": failure.refused}
        (place / RESULT).write_text(json.dumps(result), "utf-8")
        answers.write(line)
        answers.flush()


def _written(place: Path, returned: Returned) -> dict[str, Any]:
    """Write the arrays; the rest as JSON."""
    for i, value in enumerate(returned.values.values()):
        np.save(place / f"{i}.npy", value.array, allow_pickle=False)
    return {
        "names": list(returned.values),
        "precisions": [value.precision for value in returned.values.values()],
        "notes": list(returned.notes),
        "wrote_input": returned.wrote_input,
    }


def own_streams() -> tuple[IO[str], IO[str]]:
    """Standard input and output for ourselves alone; the port gets the null device for both."""
    mine = os.fdopen(os.dup(0), "r"), os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):
        os.dup2(null, descriptor)
    os.close(null)
    return mine


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
    """Do what the folder on the command line asks for.

    Threads and atexit handlers of a stranger's library may hang; the results are there by then.
    """
    main(Path(sys.argv[1]).resolve(), *own_streams())
    sys.stderr.flush()
    os._exit(0)
