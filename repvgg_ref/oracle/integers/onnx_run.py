"""Every layer's numbers of a quantised ONNX file, from ONNX Runtime in a child process."""

from __future__ import annotations

import json

from repvgg_ref.arrays import Array
from repvgg_ref.files.onnx_graph.packages import first_line_of, require, require_runtime
from repvgg_ref.oracle.candidates.base import CandidateFailure
from repvgg_ref.oracle.candidates.onnx_load import serialized
from repvgg_ref.oracle.candidates.onnx_worker import MODEL
from repvgg_ref.oracle.candidates.serving import TASK
from repvgg_ref.oracle.candidates.session import Session
from repvgg_ref.oracle.integers.onnx_reading import ReadNetwork


def run_numbers(read: ReadNetwork, name: str, x: Array, *, timeout: float) -> dict[str, Array]:
    """Layer (and "input") -> numbers, for real images `x`.

    Raises
    ------
    CandidateFailure
        If the runtime refuses the file, fails, or takes longer than `timeout` seconds.
    """
    require_runtime()
    onnx = require("onnx")
    model, wanted = read.model, list(read.tensors.values())
    present = {value.name for value in model.graph.output}
    for tensor in wanted:
        if tensor not in present:
            model.graph.output.append(onnx.ValueInfoProto(name=tensor))
    session = Session(f"{name} in ONNX Runtime", "onnx_worker", {}, light=True)
    try:
        task = json.dumps({"wanted": wanted}).encode()
        session.put({TASK: task, MODEL: serialized(model, name)})
        for batch in (None, x):
            arrays, told = session.ask(batch, timeout)
            if "failure" in told:
                raise CandidateFailure(
                    f"{name}: ONNX Runtime failed", got=first_line_of(told["failure"])
                )
    finally:
        session.end()
    if len(arrays) != len(wanted):
        raise CandidateFailure(f"{name}: ONNX Runtime ended with a damaged result")
    return dict(zip(read.tensors, arrays, strict=True))
