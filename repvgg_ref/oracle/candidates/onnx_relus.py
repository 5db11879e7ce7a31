"""An ``.onnx`` file of a network that is no chain: its wiring tells its layers, or its ReLUs.

Where it is not wired as the network is (`onnx_wiring`), ReLUs are taken in their order: every ReLU
of a residual network stands on the one way through it (a shortcut's projection has none), so the
k-th of the file is the k-th of the reference, an inner layer or a residual sum. What has no ReLU is
computed from these. Nothing of the file is trusted: ONNX Runtime runs it in a child process, as it
does files of chains (`onnx_model`).
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.files.onnx_graph.packages import first_line_of, require, require_runtime
from repvgg_ref.models.graph import Network
from repvgg_ref.models.layers import AddRelu, Block, Linear, Operation
from repvgg_ref.oracle.candidates.base import (
    Candidate,
    CandidateFailure,
    FileEvidence,
    Outputs,
    Shape,
)
from repvgg_ref.oracle.candidates.dumps import Dump, interpret
from repvgg_ref.oracle.candidates.onnx_load import load_onnx, serialized
from repvgg_ref.oracle.candidates.onnx_wiring import (
    Part,
    wired_evidence,
    wired_parts,
    wired_tensors,
)
from repvgg_ref.oracle.candidates.onnx_worker import MODEL
from repvgg_ref.oracle.candidates.serving import TASK
from repvgg_ref.oracle.candidates.session import Session

_TYPES: dict[Any, Any] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_ADVICE = "run it, and give what its layers give as an .npz"


@dataclass
class OnnxReluCandidate(Candidate):
    """An ONNX model wired as `arch` is, or with its ReLUs; `timeout` is for all calls together."""

    name: str
    path: Path
    arch: Network
    timeout: float
    is_called: ClassVar[bool] = True
    _session: Session | None = field(default=None, repr=False, compare=False)
    _kind: Any = field(default=None, repr=False, compare=False)

    def run(self, x: Array | None) -> Outputs:
        """Run the model on `x`."""
        return self.run_again(self.batch(x), self.timeout)

    def run_again(self, x: Array, seconds: float) -> Outputs:
        """The same, in the same child."""
        started = time.monotonic()
        until = started + min(seconds, self.timeout)
        try:
            kind = self._open(until)
            arrays = self._asked(np.ascontiguousarray(x, kind), until)
        finally:
            self.timeout -= time.monotonic() - started
        if len(arrays) != len(self._taps):
            raise CandidateFailure(f"{self.name}: ONNX Runtime ended with a damaged result")
        layers = dict(zip(self._taps, arrays, strict=True))
        note = f"its {len(arrays) - 1} ReLUs taken for the network's, in their order"
        precision = "fp16" if kind is np.float16 else None
        dump = Dump(layers, {"": "NCHW"}, precision, () if self._parts else (note,))
        seen = interpret(dump, self.arch, where=self.name, x=x, assume="NCHW", live=True)
        return replace(seen, evidence=self._evidence)

    def close(self) -> None:
        """End the child."""
        if self._session is not None:
            self._session.end()
        self._session = self._kind = None

    def input_shape(self) -> Shape | None:
        """(N, C, H, W) with None where the model is flexible."""
        kind = self._entrance.type.tensor_type
        if not kind.HasField("shape") or len(kind.shape.dim) != 4:
            return None
        return tuple(d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim)

    @cached_property
    def _model(self) -> Any:
        require_runtime()
        return load_onnx(self.path)

    @cached_property
    def _entrance(self) -> Any:
        constants = {tensor.name for tensor in self._model.graph.initializer}
        found = [value for value in self._model.graph.input if value.name not in constants]
        if len(found) != 1:
            raise CandidateFailure(f"{self.name}: not one input", got=f"{len(found)} inputs")
        return found[0]

    @cached_property
    def _parts(self) -> dict[str, Part]:
        """Layer -> its part of the graph, where the wiring tells them."""
        return wired_parts(self._model.graph, self.arch, self._entrance.name)

    @cached_property
    def _evidence(self) -> FileEvidence | None:
        graph = self._model.graph
        return (
            wired_evidence(graph, self.arch, self._parts, self._entrance) if self._parts else None
        )

    @cached_property
    def _taps(self) -> dict[str, str]:
        """Layer -> the tensor that holds its output."""
        graph = self._model.graph
        if len(graph.output) != 1:
            raise CandidateFailure(
                f"{self.name}: not one output", got=f"{len(graph.output)}", advice=_ADVICE
            )
        head = {self.arch.head.name: graph.output[0].name}
        return (wired_tensors(self.arch, self._parts) or self._by_relus()) | head

    def _by_relus(self) -> dict[str, str]:
        graph = self._model.graph
        relus = [node.output[0] for node in graph.node if node.op_type == "Relu" and node.output]
        layers = [node.name for node in self.arch.evaluated if _has_relu(node.op)]
        if len(relus) != len(layers):
            raise CandidateFailure(
                f"{self.name}: its layers are not told by its ReLUs",
                got=f"{len(relus)} of them",
                wanted=f"{len(layers)}, as in {self.arch.name}",
                advice=_ADVICE,
            )
        return dict(zip(layers, relus, strict=True))

    def _open(self, until: float) -> Any:
        """Have every tapped tensor returned; the element type of the input."""
        if self._kind is None:
            model, taps, onnx = self._model, self._taps, require("onnx")
            present = {value.name for value in model.graph.output}
            missing = [name for name in taps.values() if name not in present]
            model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in missing)
            title = f"{self.name} in ONNX Runtime"
            self._session = self._session or Session(title, "onnx_worker", {}, light=True)
            task = json.dumps({"wanted": list(taps.values())}).encode()
            self._session.put({TASK: task, MODEL: serialized(model, self.name)})
            _, told = self._session.ask(None, max(0.0, until - time.monotonic()))
            if "failure" in told:
                got = first_line_of(told["failure"])
                raise CandidateFailure(f"{self.name}: ONNX Runtime refuses the model", got=got)
            if told.get("type") not in _TYPES:
                raise CandidateFailure(
                    f"{self.name}: does not take normalised images",
                    got=str(told.get("type"))[:40],
                    wanted="floating-point input",
                )
            self._kind = _TYPES[told["type"]]
        return self._kind

    def _asked(self, x: Array, until: float) -> list[Array]:
        assert self._session is not None
        arrays, told = self._session.ask(x, max(0.0, until - time.monotonic()))
        if "failure" in told:
            got = first_line_of(told["failure"])
            raise CandidateFailure(f"{self.name}: ONNX Runtime failed", got=got, refused=True)
        return arrays


def _has_relu(op: Operation) -> bool:
    if isinstance(op, Block):
        return op.spec.activation == "relu"
    return isinstance(op, AddRelu) or (isinstance(op, Linear) and op.relu)
