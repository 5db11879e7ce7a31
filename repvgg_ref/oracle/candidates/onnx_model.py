"""An ``.onnx`` file, run in ONNX Runtime with every layer's output tapped."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.files.onnx_graph.constants import setting
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
from repvgg_ref.oracle.candidates.names import listed
from repvgg_ref.oracle.candidates.onnx_blocked import in_order
from repvgg_ref.oracle.candidates.onnx_chain import Chain, block_convolutions, chains_of
from repvgg_ref.oracle.candidates.onnx_entrance import Entrance
from repvgg_ref.oracle.candidates.onnx_evidence import file_evidence, output_altered
from repvgg_ref.oracle.candidates.onnx_head import customary
from repvgg_ref.oracle.candidates.onnx_load import load_onnx, serialized
from repvgg_ref.oracle.candidates.onnx_taps import (
    FLOATS,
    Taps,
    find_taps,
    has_pointwise,
    judged_chain,
    named_outputs,
)
from repvgg_ref.oracle.candidates.onnx_walk import NHWC_TO_NCHW, STRAIGHT, Perm, Tap, inverse
from repvgg_ref.oracle.candidates.onnx_widen import widened
from repvgg_ref.oracle.candidates.onnx_worker import MODEL
from repvgg_ref.oracle.candidates.serving import TASK
from repvgg_ref.oracle.candidates.session import Session
from repvgg_ref.oracle.candidates.values import last_line
from repvgg_ref.oracle.report import Finding
from weights_io import sanitize

_INPUT_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_BYTE = 255  # what an image of integers goes up to
_INTEGER_TYPES: dict[str, Any] = {
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
}
_UNITS = {"fp32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8}


@dataclass(frozen=True)
class Loaded:
    """A graph that was read: what to tap, and how many channels each tapped tensor has."""

    model: Any
    chain: Chain
    taps: Taps
    channels: Mapping[str, int]
    evidence: FileEvidence
    precision: str | None
    notes: tuple[str, ...]


@dataclass
class OnnxCandidate(Candidate):
    """An ONNX model; layers are matched by their position in the graph (`onnx_taps`).

    ONNX Runtime opens and runs it in a child process (`onnx_worker`): a file that takes hours, or
    crashes it, costs a verdict and never this process. `timeout` is for all calls together, opening
    included.
    """

    name: str
    path: Path
    arch: Network
    timeout: float
    is_called: ClassVar[bool] = True
    _session: Session | None = field(default=None, repr=False, compare=False)
    _opened: tuple[str, tuple[str, ...]] | None = field(default=None, repr=False, compare=False)

    def run(self, x: Array | None) -> Outputs:
        """Run the model on `x`, in pieces if its batch is fixed and smaller."""
        return self.run_again(self.batch(x), self.timeout)

    def run_again(self, x: Array, seconds: float) -> Outputs:
        """The same, in the same child unless that has ended."""
        loaded = self._loaded
        self._require_shape(x)
        started = time.monotonic()
        try:
            kind, rewritten = self._open(started + min(seconds, self.timeout))
            found = self._evaluate(kind, loaded, x, started + min(seconds, self.timeout))
        finally:
            self.timeout -= time.monotonic() - started
            if self._session is not None and not self._session.lives:
                self.close()
        loaded = self._placed(loaded, found)
        ending, altered, ends = _logits(loaded, found)
        arrays, declared, left_out = _arranged(found, loaded.taps, ending)
        entrance = loaded.taps.entrance
        notes = [*loaded.notes, *rewritten, *loaded.taps.notes, *entrance.notes, *ends, *left_out]
        dump = Dump(arrays, declared, loaded.precision, tuple(notes))
        seen = interpret(dump, self.arch, where=self.name, x=x, assume="NCHW", live=True)
        evidence = replace(loaded.evidence, findings=(*loaded.evidence.findings, *altered))
        judged = _judged_input(found, entrance)
        problem = loaded.taps.problem
        return Outputs(seen.layers, judged, seen.precision, seen.notes, problem, evidence=evidence)

    def close(self) -> None:
        """End the child."""
        if self._session is not None:
            self._session.end()
        self._session = self._opened = None

    def images(self, x: Array) -> Array:
        """What to feed so that `x` comes out of the graph's own normalisation; bytes are filled."""
        normalisation = self._loaded.taps.entrance.normalisation
        if normalisation is None:
            return x
        if not self.takes_integers:
            return normalisation.images(x)
        return np.asarray(np.rint((x - x.min()) * (_BYTE / (np.ptp(x) or 1.0))))

    @property
    def takes_integers(self) -> bool:
        """Whether the graph's input is of an integer type."""
        return self._loaded.chain.entrance.type.tensor_type.elem_type not in FLOATS

    def input_shape(self) -> Shape | None:
        """(N, C, H, W) with None where the model is flexible."""
        loaded = self._loaded
        kind = loaded.chain.entrance.type.tensor_type
        if not kind.HasField("shape") or len(kind.shape.dim) != 4:
            return None
        dims = [d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim]
        perm = _entrance_perm(loaded, self.arch.in_channels)
        return tuple(dims[axis] for axis in perm)

    @cached_property
    def _loaded(self) -> Loaded:
        require_runtime()
        model = load_onnx(self.path)
        self._start()  # it is ready by the time that the graph is read
        try:
            chains = chains_of(model.graph, self.arch.in_channels, self.name, _opset(model))
            loaded = self._found(model, chains)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            # Nothing has checked this graph yet: nodes may lack what their operators require.
            raise CandidateFailure(
                f"{self.name}: the graph is malformed", got=last_line(error)
            ) from None
        if not loaded.taps.blocks and loaded.taps.ending is None:
            raise CandidateFailure(f"{self.name}: no layer and no logits found in the graph")
        outputs = [value.name for value in model.graph.output]
        said = named_outputs(loaded.chain, loaded.taps, outputs)
        return replace(loaded, notes=(*loaded.notes, *said))

    def _found(self, model: Any, chains: Sequence[Chain]) -> Loaded:
        """The graph's layers, and what its file says of them."""
        chain = judged_chain(chains, self.arch)
        taps = find_taps(chain, self.arch)
        precision, notes = precision_of(chain, self.arch)
        evidence = file_evidence(chain, taps, self.arch)
        widths = {t.tensor: self.arch.block(n).out_channels for n, t in taps.blocks.items()}
        return Loaded(model, chain, taps, widths, evidence, precision, notes)

    def _placed(self, loaded: Loaded, found: Mapping[str, Array]) -> Loaded:
        """The same with layers named that only what was computed tells; a chain has none."""
        return loaded

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

    def _start(self) -> Session:
        if self._session is None:
            name = f"{self.name} in ONNX Runtime"
            self._session = Session(name, "onnx_worker", {}, light=True)
        return self._session

    def _open(self, until: float) -> tuple[str, tuple[str, ...]]:
        """Have every tapped tensor returned; the type of the input, and what was rewritten."""
        if self._opened is None:
            loaded, notes = self._loaded, tuple[str, ...]()
            kind, refused = self._offered(_tapped(loaded.model, loaded, self.arch), until)
            if refused and (rewritten := widened(loaded.model, self.name)) is not None:
                model, note = rewritten
                kind, refused = self._offered(_tapped(model, loaded, self.arch), until)
                notes = (note,)
            if refused:
                raise CandidateFailure(f"{self.name}: ONNX Runtime refuses the model", got=refused)
            self._opened = kind, notes
        return self._opened

    def _offered(self, model: Any, until: float) -> tuple[str, str]:
        """The type of the input of `model`, or why the runtime refuses it."""
        loaded, session = self._loaded, self._start()
        wanted = [_read_as(tensor, loaded.chain) for tensor in loaded.taps.tensors]
        task = json.dumps({"wanted": wanted}).encode()
        session.put({TASK: task, MODEL: serialized(model, self.name)})
        _, told = session.ask(None, max(0.0, until - time.monotonic()))
        if "failure" in told:
            return "", first_line_of(told["failure"])
        return sanitize(told.get("type")), ""

    def _evaluate(self, kind: str, loaded: Loaded, x: Array, until: float) -> dict[str, Array]:
        """Tapped tensor -> array for the whole batch."""
        images = self._fed(kind, loaded, x)
        wanted = loaded.taps.tensors
        batch = (self.input_shape() or (None,))[0] or len(x)
        pieces = np.split(images, max(1, len(x) // batch))
        parts = [self._call(piece, len(wanted), until) for piece in pieces]
        return {
            tensor: np.concatenate([part[i] for part in parts]) if len(parts) > 1 else parts[0][i]
            for i, tensor in enumerate(wanted)
        }

    def _fed(self, kind: str, loaded: Loaded, x: Array) -> Array:
        """`x` in the layout and the type that the graph takes; rounded if that is an integer."""
        normalises = loaded.taps.entrance.normalisation is not None
        if kind not in _INPUT_TYPES and not (normalises and kind in _INTEGER_TYPES):
            raise CandidateFailure(
                f"{self.name}: does not take normalised images",
                got=kind,
                wanted="floating-point input; what happens to the image before is not known",
            )
        images = x.transpose(inverse(_entrance_perm(loaded, self.arch.in_channels)))
        if kind in _INPUT_TYPES:
            return images.astype(_INPUT_TYPES[kind])
        range_ = np.iinfo(_INTEGER_TYPES[kind])
        return np.clip(np.rint(images), range_.min, range_.max).astype(range_.dtype)

    def _call(self, piece: Array, count: int, until: float) -> list[Array]:
        arrays, told = self._start().ask(
            np.ascontiguousarray(piece), max(0.0, until - time.monotonic())
        )
        if "failure" in told:
            got = first_line_of(told["failure"])
            raise CandidateFailure(f"{self.name}: ONNX Runtime failed", got=got, refused=True)
        if len(arrays) != count:
            raise CandidateFailure(f"{self.name}: ONNX Runtime ended with a damaged result")
        return arrays


def _tapped(model: Any, loaded: Loaded, arch: Network) -> Any:
    """The model itself, every tapped tensor among its outputs: a copy could take half a GiB."""
    onnx = require("onnx")
    present = {value.name for value in model.graph.output}
    for tensor in loaded.taps.tensors:
        name = _read_as(tensor, loaded.chain)
        if name in present:
            continue
        if name != tensor:
            count = loaded.channels.get(tensor, arch.num_classes)
            model.graph.node.append(in_order(tensor, name, count))
        model.graph.output.append(onnx.ValueInfoProto(name=name))
    return model


def _read_as(tensor: str, chain: Chain) -> str:
    """Under which name a tensor is read: another, if it must be put in order first."""
    return f"{tensor}/nchw" if tensor in chain.blocked else tensor


def _opset(model: Any) -> int:
    """The version of ONNX's own operators."""
    return next((int(o.version) for o in model.opset_import if o.domain in ("", "ai.onnx")), 17)


def _entrance_perm(loaded: Loaded, in_channels: int) -> Perm:
    """The transposition that makes the graph's input NCHW: as followed, else by its shape."""
    if loaded.taps.entrance.perm is not None:
        return loaded.taps.entrance.perm
    dims = [d.dim_value for d in loaded.chain.entrance.type.tensor_type.shape.dim]
    last = len(dims) == 4 and dims[3] == in_channels and dims[1] != in_channels
    return NHWC_TO_NCHW if last else STRAIGHT


def _judged_input(found: Mapping[str, Array], entrance: Entrance) -> Array | None:
    """The batch that enters the first block, where that is not the graph's own input."""
    normalisation = entrance.normalisation
    if normalisation is None:
        return None
    y = found[normalisation.tap.tensor]
    return normalisation.judged(y.transpose(normalisation.tap.perm))


def _logits(
    loaded: Loaded, found: Mapping[str, Array]
) -> tuple[str | None, tuple[Finding, ...], list[str]]:
    """The tensor to judge as logits, what follows it and should not, and what may be left out."""
    ending = loaded.taps.ending
    if ending is None:
        return None, (), []
    logits, others = ending.logits.tensor, ending.others
    if not others:
        return logits, (), []
    if ending.is_guarded(found[logits], found[ending.output]):
        note = f"left out at the end: {listed(others)} (it changes none of these logits)"
        return logits, (), [note]
    unit = _UNITS.get(loaded.precision or "", _UNITS["bf16"])
    if usual := customary(found[logits], found[ending.output], unit):
        note = f"not part of the network, left out at the end: {listed(others)} ({usual})"
        return logits, (), [note]
    return ending.output, (output_altered(others),), []


def _arranged(
    found: Mapping[str, Array], taps: Taps, logits: str | None
) -> tuple[dict[str, Array], dict[str, str], list[str]]:
    """Layer -> array, transposed where the graph's own transpositions tell how, and notes."""
    arrays, declared = {}, {}
    read = taps.blocks | ({} if logits is None else {"linear": Tap(logits)})
    whole = [layer for layer, tap in read.items() if found[tap.tensor].dtype.kind in "iu"]
    for layer, tap in read.items():
        array = found[tap.tensor]
        if layer in whole:  # their scale is the next operator's affair
            continue
        if tap.perm is not None and array.ndim == 4:
            array, declared[layer] = array.transpose(tap.perm), "NCHW"
        arrays[layer] = array
    notes = [f"kept in integers, not compared: {listed(whole)}"] if whole else []
    return arrays, declared, notes


def precision_of(chain: Chain, arch: Network) -> tuple[str | None, tuple[str, ...]]:
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
            return int(setting(step, "to", 0))
        if step.op_type in ("QuantizeLinear", "DequantizeLinear"):
            return 0
    return 0 if tensor is None else int(tensor.data_type)
