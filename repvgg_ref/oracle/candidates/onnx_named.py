"""An ``.onnx`` file of a network that is no chain: its layers are told by the names of its tensors.

Files of ours call a tensor what the layer is called; torch's exporter calls it after the module in
which it was computed (``/features.1/token_mixer/token_mixer.0/Conv_output_0``), whose last tensor
is then the layer's output.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.fusion import FusedConv
from repvgg_ref.files.onnx_graph.constants import Constants, setting
from repvgg_ref.files.onnx_graph.packages import first_line_of, require, require_runtime
from repvgg_ref.models.graph import Network
from repvgg_ref.oracle.candidates.base import (
    Candidate,
    CandidateFailure,
    FileEvidence,
    Outputs,
    Shape,
)
from repvgg_ref.oracle.candidates.dumps import Dump, interpret
from repvgg_ref.oracle.candidates.names import LayerNames, listed
from repvgg_ref.oracle.candidates.onnx_left_out import POOLED, left_out
from repvgg_ref.oracle.candidates.onnx_load import load_onnx, serialized
from repvgg_ref.oracle.candidates.onnx_worker import MODEL
from repvgg_ref.oracle.candidates.serving import TASK
from repvgg_ref.oracle.candidates.session import Session
from weights_io import sanitize

_TYPES: Mapping[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
}


class _Loaded(NamedTuple):
    model: Any
    entrance: Any
    tensors: dict[str, str]  # layer -> tensor
    evidence: FileEvidence
    notes: tuple[str, ...] = ()


@dataclass
class NamedOnnxCandidate(Candidate):
    """An ONNX model run in ONNX Runtime, in a child process; see `OnnxCandidate`.

    `timeout` is for all calls together, opening included.
    """

    name: str
    path: Path
    arch: Network
    timeout: float
    is_called: ClassVar[bool] = True
    _session: Session | None = field(default=None, repr=False, compare=False)
    _type: str = field(default="", repr=False, compare=False)

    def run(self, x: Array | None) -> Outputs:
        """Run the model on `x`."""
        return self.run_again(self.batch(x), self.timeout)

    def run_again(self, x: Array, seconds: float) -> Outputs:
        """The same, in the same child unless that has ended."""
        loaded = self._loaded
        started = time.monotonic()
        until = started + min(seconds, self.timeout)
        try:
            found = self._evaluated(x, until)
        finally:
            self.timeout -= time.monotonic() - started
            if self._session is not None and not self._session.lives:
                self.close()
        arrays = dict(zip(loaded.tensors, found, strict=True))
        seen = interpret(Dump(arrays), self.arch, where=self.name, x=x, assume="NCHW", live=True)
        return replace(seen, evidence=loaded.evidence, notes=(*seen.notes, *loaded.notes))

    def close(self) -> None:
        """End the child."""
        if self._session is not None:
            self._session.end()
        self._session, self._type = None, ""

    def input_shape(self) -> Shape | None:
        """(N, C, H, W) with None where the model is flexible."""
        kind = self._loaded.entrance.type.tensor_type
        if not kind.HasField("shape") or len(kind.shape.dim) != 4:
            return None
        return tuple(d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim)

    @cached_property
    def _loaded(self) -> _Loaded:
        require_runtime()
        model = load_onnx(self.path)
        graph = model.graph
        held = {tensor.name for tensor in graph.initializer}
        inputs = [value for value in graph.input if value.name not in held]
        if len(inputs) != 1 or not graph.output:
            raise CandidateFailure(
                f"{self.name}: needs one input, a batch of images, and an output",
                got=f"{len(inputs)} inputs and {len(graph.output)} outputs",
            )
        tensors = layer_tensors(model, self.arch)
        if set(tensors) <= {"linear"}:
            known = next(iter(self.arch.modules.values()), self.arch.layer_names[0])
            raise CandidateFailure(
                f"{self.name}: no tensor of the graph is called like a layer of this network",
                got=listed(output for node in graph.node for output in node.output),
                wanted=f"{listed(self.arch.layer_names)}, or torch's modules ({sanitize(known)})",
                advice="export it with torch.onnx.export, or dump its layers' outputs",
            )
        constants = Constants(graph)
        evidence = stored_kernels(constants, tensors, self.arch)
        if lacking := left_out(constants, tensors, self.arch):
            found = tensors | lacking
            tensors = {layer: found[layer] for layer in self.arch.layer_names if layer in found}
            note = f"left out of the graph, by what is read in their place: {listed(lacking)}"
            return _Loaded(model, inputs[0], tensors, evidence, (note,))
        return _Loaded(model, inputs[0], tensors, evidence)

    def _evaluated(self, x: Array, until: float) -> list[Array]:
        if self._session is None:
            self._session = Session(f"{self.name} in ONNX Runtime", "onnx_worker", {}, light=True)
            self._type = self._opened(self._session, until)
        if self._type not in _TYPES:
            raise CandidateFailure(
                f"{self.name}: does not take normalised images",
                got=self._type,
                wanted="floating-point input; what happens to the image before is not known",
            )
        images = np.ascontiguousarray(x, _TYPES[self._type])
        arrays, told = self._session.ask(images, max(0.0, until - time.monotonic()))
        if "failure" in told:
            got = first_line_of(told["failure"])
            raise CandidateFailure(f"{self.name}: ONNX Runtime failed", got=got, refused=True)
        if len(arrays) != len(self._loaded.tensors):
            raise CandidateFailure(f"{self.name}: ONNX Runtime ended with a damaged result")
        return arrays

    def _opened(self, session: Session, until: float) -> str:
        """The type of the input, once every layer's tensor is among the model's outputs."""
        onnx, loaded = require("onnx"), self._loaded
        present = {value.name for value in loaded.model.graph.output}
        for tensor in loaded.tensors.values():
            if tensor not in present:
                loaded.model.graph.output.append(onnx.ValueInfoProto(name=tensor))
                present.add(tensor)
        task = json.dumps({"wanted": list(loaded.tensors.values())}).encode()
        session.put({TASK: task, MODEL: serialized(loaded.model, self.name)})
        _, told = session.ask(None, max(0.0, until - time.monotonic()))
        if "failure" in told:
            got = first_line_of(told["failure"])
            raise CandidateFailure(f"{self.name}: ONNX Runtime refuses the model", got=got)
        return sanitize(told.get("type"))


def layer_tensors(model: Any, arch: Network) -> dict[str, str]:
    """Layer -> the tensor that is its output, in the network's order; the last one so called."""
    names, modules = LayerNames(arch), {m: layer for layer, m in arch.modules.items()}
    found: dict[str, str] = {}
    for node in model.graph.node:
        for tensor in filter(None, node.output):
            layer = names.layer(tensor) or next(
                (modules[each] for each in _enclosing(tensor) if each in modules), None
            )
            if layer is not None:
                found[layer] = tensor
    found["linear"] = model.graph.output[0].name
    return {layer: found[layer] for layer in arch.layer_names if layer in found}


def stored_kernels(constants: Constants, tensors: Mapping[str, str], arch: Network) -> FileEvidence:
    """The kernels of layers that are one convolution in the file, or one matrix at the end.

    Others are held to the values that they give.
    """
    shapes = {node.name: node.op.shapes("deploy") for node in arch.evaluated}
    kernels: dict[str, FusedConv] = {}
    for layer, tensor in tensors.items():
        node = constants.producers.get(tensor)
        if node is None or node.op_type not in ("Conv", "Gemm") or len(node.input) != 3:
            continue
        before = constants.producers.get(node.input[0])
        if node.op_type == "Gemm" and (before is None or before.op_type not in POOLED):
            continue  # something else is done to the features first: a batch norm apart
        weight, bias = (constants.value(name) for name in node.input[1:])
        if weight is None or bias is None:
            continue
        if node.op_type == "Gemm":
            weight = (weight if setting(node, "transB", 0) else weight.T)[:, :, None, None]
        wanted = next(iter(shapes[layer].values()), ())
        if weight.shape == (*wanted, 1, 1)[:4]:
            kernels[layer] = FusedConv(weight, bias)
    return FileEvidence(kernels)


def _enclosing(tensor: str) -> Iterator[str]:
    """The modules that a tensor of torch's exporter was computed in, the innermost first.

    A scope repeats what holds it: ``/features.0/features.0.1/Mul`` is in ``features.0.1``.
    """
    path: list[str] = []
    for scope in tensor.strip("/").split("/")[:-1]:
        if path and scope.startswith(f"{path[-1]}."):
            path[-1] = scope
        else:
            path.append(scope)
    parts = ".".join(path).split(".")
    for length in range(len(parts), 0, -1):
        yield ".".join(parts[:length])
