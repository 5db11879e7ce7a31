"""The child process of ``module:callable``: calls a stranger's operator and writes down its arrays.

Started as `work`, on a folder that holds task.json and call0.npz, call1.npz, ...; the child adds
answer0.npz, ... and, last of all, result.json.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from repvgg_ref.oracle.candidates.base import CandidateFailure
from repvgg_ref.oracle.candidates.worker import imported
from repvgg_ref.oracle.operators.catalogue import OPERATORS
from repvgg_ref.oracle.operators.operator import Answer, Call
from repvgg_ref.oracle.operators.ports import RESULT, TASK, ask


def main(folder: Path) -> None:
    """Do the task in `folder`; a failure is a result too."""
    task = json.loads((folder / TASK).read_text("utf-8"))
    result: dict[str, Any]
    try:
        function = imported(task["callable"])
        answers = [_one(folder, i, function, each) for i, each in enumerate(task["calls"])]
        notes = list(dict.fromkeys(note for answer in answers for note in answer.notes))
        result = {"precisions": [answer.precision for answer in answers], "notes": notes}
    except CandidateFailure as failure:
        details = [failure.what, failure.got, failure.wanted]
        result = {"failure": ["" if each is None else str(each) for each in details]}
    unfinished = folder / "unfinished.json"
    unfinished.write_text(json.dumps(result), "utf-8")
    unfinished.rename(folder / RESULT)


def _one(folder: Path, i: int, function: Any, task: dict[str, Any]) -> Answer:
    with np.load(folder / f"call{i}.npz", allow_pickle=False) as arrays:
        given = {name: arrays[name] for name in arrays.files}
    operator = OPERATORS[task["operator"]]
    answer = ask(function, Call(operator, given, task["settings"], task["label"]))
    np.savez(folder / f"answer{i}.npz", **answer.outputs)  # type: ignore[arg-type]
    return answer


def work() -> None:
    """Do what the folder on the command line asks for.

    Threads and atexit handlers of a stranger's library may hang; the result is there by then.
    """
    main(Path(sys.argv[1]))
    sys.stderr.flush()
    os._exit(0)
