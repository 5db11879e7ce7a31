"""An ``.onnx`` file, run in ONNX Runtime with every layer's output tapped."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.models.graph import Network
from repvgg_ref.oracle.candidates.base import Candidate, CandidateFailure, Outputs, Shape
from repvgg_ref.oracle.candidates.dumps import Dump, interpret
from repvgg_ref.oracle.candidates.names import listed
from repvgg_ref.oracle.candidates.onnx_chain import Chain, block_convolutions, chain_of
from repvgg_ref.oracle.candidates.onnx_import import first_line, require
from repvgg_ref.oracle.candidates.onnx_load import load_onnx, serialized
from repvgg_ref.oracle.candidates.onnx_taps import Perm, Taps, find_taps, has_pointwise
from repvgg_ref.oracle.candidates.onnx_widen import widened
from repvgg_ref.oracle.candidates.values import last_line

_THREADS = 2
_SILENT = 4  # only fatal messages: what fails is reported by us
_INPUT_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_NHWC_TO_NCHW: Perm = (0, 3, 1, 2)


@dataclass(frozen=True)
class _Loaded:
    model: Any
    taps: Taps
    entrance: Any
    precision: str | None
    notes: tuple[str, ...]


@dataclass
class OnnxCandidate(Candidate):
    """An ONNX model; layers are matched by their position in the graph (`onnx_taps`).

    ONNX Runtime runs it on the CPU with its graph optimisations on, as users do; no library of
    custom operators is ever loaded.
    """

    name: str
    path: Path
    arch: Network
    timeout: float
    is_called: ClassVar[bool] = True

    def run(self, x: Array | None) -> Outputs:
        """Run the model on `x`, in pieces if its batch is fixed and smaller."""
        x = self.batch(x)
        loaded = self._loaded
        self._require_shape(x)
        session, notes = self._session
        outputs = self._evaluate(session, loaded, x)
        arrays, declared, left_out = _arranged(outputs, loaded.taps)
        notes = [*loaded.notes, *notes, *loaded.taps.notes, *left_out]
        dump = Dump(arrays, declared, loaded.precision, tuple(notes))
        found = interpret(dump, self.arch, where=self.name, x=x, assume="NCHW", live=True)
        return Outputs(found.layers, None, found.precision, found.notes, loaded.taps.problem)

    def input_shape(self) -> Shape | None:
        """(N, C, H, W) with None where the model is flexible."""
        loaded = self._loaded
        kind = loaded.entrance.type.tensor_type
        if not kind.HasField("shape") or len(kind.shape.dim) != 4:
            return None
        dims = [d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim]
        perm = _entrance_perm(loaded, self.arch.in_channels)
        return tuple(dims[axis] for axis in perm)

    @cached_property
    def _loaded(self) -> _Loaded:
        require("onnxruntime")
        model = load_onnx(self.path)
        try:
            chain = chain_of(model.graph, self.arch.in_channels, self.name)
            taps = find_taps(chain, self.arch)
            precision, notes = _precision(chain, self.arch)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            # Nothing has checked this graph yet: nodes may lack what their operators require.
            raise CandidateFailure(
                f"{self.name}: the graph is malformed", got=last_line(error)
            ) from None
        if not taps.layers:
            raise CandidateFailure(f"{self.name}: no layer and no logits found in the graph")
        return _Loaded(model, taps, chain.entrance, precision, notes)

    def _require_shape(self, x: Array) -> None:
        wanted = self.input_shape()
        if wanted is None:
            return
        batch, *rest = wanted
        fits = batch is None or (batch > 0 and x.shape[0] % batch == 0)
        if not fits or any(w not in (None, g) for w, g in zip(rest, x.shape[1:], strict=True)):
            raise CandidateFailure(
                f"{self.name}: its input has a fixed shape",
                got=f"a batch of shape {tuple(x.shape)}",
                wanted="shape (" + ", ".join("any" if n is None else str(n) for n in wanted) + ")",
                advice="give inputs of that shape, or export the model with free extents",
            )

    @cached_property
    def _session(self) -> tuple[Any, list[str]]:
        """A session that returns every tapped tensor; bfloat16 and float64 rewritten if need be."""
        loaded = self._loaded
        try:
            return _open(_tapped(loaded.model, loaded.taps), self.name), []
        except CandidateFailure as failure:
            rewritten = widened(loaded.model, self.name)
            if rewritten is None:
                raise failure from None
        model, note = rewritten
        return _open(_tapped(model, loaded.taps), self.name), [note]

    def _evaluate(self, session: Any, loaded: _Loaded, x: Array) -> dict[str, Array]:
        """Tapped tensor -> array for the whole batch."""
        entrance = session.get_inputs()[0]
        if entrance.type not in _INPUT_TYPES:
            raise CandidateFailure(
                f"{self.name}: does not take normalised images",
                got=entrance.type,
                wanted="floating-point input; what happens to the image before is not known",
            )
        perm = _entrance_perm(loaded, self.arch.in_channels)
        images = x.transpose(np.argsort(perm)).astype(_INPUT_TYPES[entrance.type])
        wanted = list(dict.fromkeys(tap.tensor for tap in loaded.taps.layers.values()))
        batch = (self.input_shape() or (None,))[0] or len(x)
        parts = [
            self._call(session, wanted, {entrance.name: np.ascontiguousarray(piece)})
            for piece in np.split(images, max(1, len(x) // batch))
        ]
        return {
            name: np.concatenate([part[i] for part in parts]) if len(parts) > 1 else parts[0][i]
            for i, name in enumerate(wanted)
        }

    def _call(self, session: Any, wanted: Sequence[str], feed: Mapping[str, Array]) -> list[Array]:
        """One run, stopped between two nodes when the time is up."""
        options = require("onnxruntime").RunOptions()
        options.log_severity_level = _SILENT
        stop = threading.Timer(self.timeout, setattr, (options, "terminate", True))
        stop.daemon = True
        stop.start()
        try:
            outputs: list[Array] = session.run(list(wanted), dict(feed), options)
        except Exception as error:
            late = "it took too long and was stopped; " if options.terminate else ""
            raise CandidateFailure(
                f"{self.name}: ONNX Runtime failed",
                got=late + first_line(error),
                refused=not options.terminate,
            ) from None
        finally:
            stop.cancel()
        return outputs


def _open(model: Any, name: str) -> Any:
    runtime = require("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = _THREADS, 1
    options.log_severity_level = _SILENT
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    data = serialized(model, name)
    try:
        return runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise CandidateFailure(
            f"{name}: ONNX Runtime refuses the model", got=first_line(error)
        ) from None


def _tapped(model: Any, taps: Taps) -> Any:
    """The model itself, every tapped tensor among its outputs: a copy could take half a GiB."""
    onnx = require("onnx")
    present = {value.name for value in model.graph.output}
    for tensor in dict.fromkeys(tap.tensor for tap in taps.layers.values()):
        if tensor not in present:
            model.graph.output.append(onnx.ValueInfoProto(name=tensor))
    return model


def _entrance_perm(loaded: _Loaded, in_channels: int) -> Perm:
    """The transposition that makes the graph's input NCHW: as followed, else by its shape."""
    if loaded.taps.entrance is not None:
        return loaded.taps.entrance
    dims = [d.dim_value for d in loaded.entrance.type.tensor_type.shape.dim]
    last = len(dims) == 4 and dims[3] == in_channels and dims[1] != in_channels
    return _NHWC_TO_NCHW if last else (0, 1, 2, 3)


def _arranged(
    outputs: Mapping[str, Array], taps: Taps
) -> tuple[dict[str, Array], dict[str, str], list[str]]:
    """Layer -> array, transposed where the graph's own transpositions tell how, and notes."""
    arrays, declared = {}, {}
    whole = [layer for layer, tap in taps.layers.items() if outputs[tap.tensor].dtype.kind in "iu"]
    for layer, tap in taps.layers.items():
        array = outputs[tap.tensor]
        if layer in whole:  # their scale is the next operator's affair
            continue
        if tap.perm is not None and array.ndim == 4:
            array, declared[layer] = array.transpose(tap.perm), "NCHW"
        arrays[layer] = array
    notes = [f"kept in integers, not compared: {listed(whole)}"] if whole else []
    return arrays, declared, notes


def _precision(chain: Chain, arch: Network) -> tuple[str | None, tuple[str, ...]]:
    """The element type that all convolution weights share, casts on their way included."""
    names = {1: "fp32", 10: "fp16", 11: "fp64", 16: "bf16"}
    found = set()
    for mains in block_convolutions(chain, pointwise=has_pointwise(arch)):
        found |= {names.get(_weight_type(node, chain), "quantised") for node in mains}
    if "quantised" in found:
        return None, ("the weights are quantised",)
    if len(found) > 1:
        return None, ("convolutions in different precisions: " + ", ".join(sorted(found)),)
    only = found.pop() if found else None
    return ("fp32" if only == "fp64" else only), ()


def _weight_type(node: Any, chain: Chain) -> int:
    """ONNX's number for the element type that a convolution gets its weight in; 0 if quantised."""
    if node.op_type in ("QLinearConv", "ConvInteger"):
        return 0
    tensor, passed = chain.constants.origin(node.input[1])
    for step in passed:  # the nearest first
        if step.op_type == "Cast":
            return int(next((a.i for a in step.attribute if a.name == "to"), 0))
        if step.op_type in ("QuantizeLinear", "DequantizeLinear"):
            return 0
    return 0 if tensor is None else int(tensor.data_type)
