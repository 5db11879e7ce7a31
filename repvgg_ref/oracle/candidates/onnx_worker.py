"""The child process of an ONNX file: opens it in ONNX Runtime, and runs it on every batch.

A file may take hours to open, or crash the runtime: this process may be stopped. The first request
has no batch and opens the file; it is answered by the name and the type of its input.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from repvgg_ref.oracle.candidates.serving import TASK, ended, own_streams, serve

MODEL = "model.onnx"
_THREADS = 2
_SILENT = 4  # only fatal messages: what fails is told by the answer


class Runtime:
    """A session of ONNX Runtime on the CPU, with its graph optimisations on, as users have it.

    No library of custom operators is ever loaded.
    """

    def __init__(self, folder: Path) -> None:
        import onnxruntime

        self._folder, self._runtime = folder, onnxruntime
        self._session: Any = None

    def work(self, x: Any) -> tuple[Iterable[Any], dict[str, Any]]:
        """Open the file, or run it; a failure is a result too."""
        try:
            return ([], self._opened()) if x is None else (self._run(x), {})
        except Exception as error:  # whatever the runtime raises: its classes are not public
            return [], {"failure": str(error) or type(error).__name__}

    def _opened(self) -> dict[str, Any]:
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = _THREADS, 1
        options.log_severity_level = _SILENT
        options.graph_optimization_level = self._runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        task = json.loads((self._folder / TASK).read_text("utf-8"))
        self._wanted = task["wanted"]
        for name, value in task.get("config", {}).items():
            options.add_session_config_entry(name, value)
        model = (self._folder / MODEL).read_bytes()  # by its path its messages would name it
        self._session = self._runtime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"]
        )
        self._entrance = self._session.get_inputs()[0]
        return {"type": self._entrance.type}

    def _run(self, x: Any) -> list[Any]:
        options = self._runtime.RunOptions()
        options.log_severity_level = _SILENT
        feed = {self._entrance.name: np.ascontiguousarray(x)}
        found = [np.asarray(each) for each in self._session.run(self._wanted, feed, options)]
        if odd := [each.dtype for each in found if each.dtype.kind not in "fiub"]:
            raise TypeError(f"an output of {odd[0]}, not of numbers")
        return found


def work() -> None:
    """Do what the folder on the command line asks for."""
    folder = Path(sys.argv[1])
    streams = own_streams()
    serve(folder, *streams, Runtime(folder).work)
    ended()
