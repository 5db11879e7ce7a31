"""Every layer's numbers of a quantised ONNX file, from ONNX Runtime in a child process."""

from __future__ import annotations

import json

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.files.onnx_graph.packages import first_line_of, require, require_runtime
from repvgg_ref.oracle.candidates.base import CandidateFailure
from repvgg_ref.oracle.candidates.onnx_load import serialized
from repvgg_ref.oracle.candidates.onnx_worker import MODEL
from repvgg_ref.oracle.candidates.serving import TASK
from repvgg_ref.oracle.candidates.session import Session
from repvgg_ref.oracle.integers.onnx_reading import ReadNetwork

# On x86 int8 activations between quantisers are computed in float unless this is said; with it they
# are integers as on other machines, and as uint8 always is.
_CONFIG = {"session.qdqisint8allowed": "1"}


def run_numbers(read: ReadNetwork, name: str, x: Array, *, timeout: float) -> dict[str, Array]:
    """Layer (and "input") -> numbers, for real images `x`, in pieces if the file fixes its batch.

    Raises
    ------
    CandidateFailure
        If the runtime refuses the file, fails, or takes longer than `timeout` seconds; or if `x` is
        of another shape than the file states.
    """
    _require_shape(read, name, x)
    require_runtime()
    onnx = require("onnx")
    model, wanted = read.model, list(read.tensors.values())
    present = {value.name for value in model.graph.output}
    for tensor in wanted:
        if tensor not in present:
            model.graph.output.append(onnx.ValueInfoProto(name=tensor))
    session = Session(f"{name} in ONNX Runtime", "onnx_worker", {}, light=True)
    try:
        task = json.dumps({"wanted": wanted, "config": _CONFIG}).encode()
        session.put({TASK: task, MODEL: serialized(model, name)})
        _asked(session, name, None, timeout)
        pieces = np.split(x, len(x) // read.shape[0]) if read.shape[0] else [x]
        parts = [_asked(session, name, piece, timeout) for piece in pieces]
    finally:
        session.end()
    if any(len(part) != len(wanted) for part in parts):
        raise CandidateFailure(f"{name}: ONNX Runtime ended with a damaged result")
    found = {
        layer: np.concatenate([part[i] for part in parts]) for i, layer in enumerate(read.tensors)
    }
    for layer in read.clipped:
        found[layer] = np.maximum(found[layer], read.network[layer].output.zero_point)
    return found


def _asked(session: Session, name: str, batch: Array | None, timeout: float) -> list[Array]:
    arrays, told = session.ask(batch, timeout)
    if "failure" in told:
        raise CandidateFailure(f"{name}: ONNX Runtime failed", got=first_line_of(told["failure"]))
    return arrays


def _require_shape(read: ReadNetwork, name: str, x: Array) -> None:
    batch, *rest = read.shape
    fits = not batch or (len(x) and len(x) % batch == 0)
    if not fits or any(w not in (None, g) for w, g in zip(rest, x.shape[1:], strict=True)):
        raise CandidateFailure(
            f"{name}: its input has a fixed shape",
            got=f"a batch of shape {x.shape}",
            wanted="shape (" + ", ".join("any" if n is None else str(n) for n in read.shape) + ")",
            advice="give inputs of that shape, or export the model with free extents",
        )
