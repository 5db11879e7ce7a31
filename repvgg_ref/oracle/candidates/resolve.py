"""From what the user names or hands over to a candidate: told by content, not by suffix."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.errors import CheckpointError
from repvgg_ref.files.checkpoint import load, open_checkpoint
from repvgg_ref.files.lazy_params import is_counter
from repvgg_ref.models.gated import is_gated
from repvgg_ref.models.graph import Network
from repvgg_ref.models.names import official_names
from repvgg_ref.models.network import Model
from repvgg_ref.oracle.candidates.base import Candidate, CandidateFailure, WeightsCandidate
from repvgg_ref.oracle.candidates.callables import CallableCandidate
from repvgg_ref.oracle.candidates.dumps import (
    Dump,
    DumpCandidate,
    array_names,
    count_parameters,
    dump_candidate,
    holds_layers,
    read_npz,
    read_single,
)
from repvgg_ref.oracle.candidates.manifest import read_folder
from repvgg_ref.oracle.candidates.names import listed
from repvgg_ref.oracle.candidates.npy_files import opened
from repvgg_ref.oracle.candidates.onnx_data_set import data_set_folder, read_data_set
from repvgg_ref.oracle.candidates.outside import (
    EXEC,
    CommandCandidate,
    ModuleCandidate,
    is_module,
)
from repvgg_ref.oracle.candidates.polygraphy import read_outputs
from weights_io import WeightsFileError, sanitize

Given = Model | str | Path | Callable[..., Any] | Mapping[str, Array] | Array

DEFAULT_TIMEOUT = 300.0


def resolve(
    candidate: Given, arch: Network, *, timeout: float = DEFAULT_TIMEOUT
) -> Candidate | WeightsCandidate:
    """Find out what a candidate is.

    Parameters
    ----------
    candidate : path, ``module:callable``, ``exec:command``, callable, mapping or array
        A callable is run in this process; a mapping is a dump; an array is logits. Of a
        Polygraphy file, ``outputs.json#runner`` takes another runner than the first.
    arch : Architecture
        The reference's.
    timeout : float
        Seconds that a candidate which is run may take.

    Returns
    -------
    Candidate, or WeightsCandidate for a file of weights

    Raises
    ------
    CandidateFailure
        If it cannot be read or is of no kind we know.
    MissingExtraError
        If it needs a package that is not installed.
    """
    if isinstance(candidate, Model):
        model = candidate
        return CallableCandidate(lambda x: model.forward(x, layers=True), arch, model.name)
    if isinstance(candidate, Mapping):
        return dump_candidate("dump", arch, Dump(candidate), assume="NCHW")
    if isinstance(candidate, np.ndarray):
        return dump_candidate("logits", arch, Dump({"linear": candidate}))
    if not isinstance(candidate, str | Path):
        if hasattr(candidate, "__array__") and hasattr(candidate, "shape"):  # another library's
            return dump_candidate("logits", arch, Dump({"linear": candidate}))
        if not callable(candidate):
            raise CandidateFailure(
                "this is no candidate",
                got=type(candidate).__name__,
                wanted="a path, module:callable, a callable, a dict of arrays or an array",
            )
        name = getattr(candidate, "__name__", type(candidate).__name__)
        return CallableCandidate(candidate, arch, sanitize(name))
    return _resolve_text(candidate, arch, timeout)


def computing(port: WeightsCandidate, model: Model) -> Candidate:
    """A file of weights as a port that computes with them, here.

    Raises
    ------
    CandidateFailure
        If it is no network.
    """
    try:
        weights = load(port.path, eps=model.eps)
    except CheckpointError as error:
        raise _no_such_network(port.path, model.arch) or CandidateFailure(
            error.what, got=error.got, wanted=error.wanted
        ) from None
    name = sanitize(port.path.name)
    return CallableCandidate(lambda x: weights.forward(x, layers=True), model.arch, name)


def _no_such_network(path: Path, arch: Network) -> CandidateFailure | None:
    """How the names in a file of weights differ from those of either form; None if they do not."""
    held = {name for name in array_names(path) if not is_counter(name)}
    forms = [official_names(arch, form).values() for form in ("train", "deploy")]
    names = [{name for name in form if not is_counter(name)} for form in forms]
    nearest = min(names, key=lambda form: len(form ^ held))
    missing, unexpected = sorted(nearest - held), sorted(held - nearest)
    if not (missing or unexpected):
        return None
    return CandidateFailure(
        f"{sanitize(path.name)} is not exactly a {arch.name}",
        got=f"{len(missing)} missing: {listed(missing) or 'none'}"
        f" ; {len(unexpected)} unexpected: {listed(unexpected) or 'none'}",
    )


def _resolve_text(
    candidate: str | Path, arch: Network, timeout: float
) -> Candidate | WeightsCandidate:
    text = str(candidate)
    path = Path(candidate)
    if path.is_dir():
        return _resolve_folder(path, arch)
    if path.is_file():
        return _resolve_file(path, arch, timeout)
    file, _, runner = text.rpartition("#")
    if file and Path(file).is_file():
        name = sanitize(Path(text).name)
        return dump_candidate(name, arch, read_outputs(Path(file), arch, runner))
    if text.startswith(EXEC):
        command = text.removeprefix(EXEC)
        return CommandCandidate(sanitize(command), command, arch, timeout)
    if is_module(text):
        return ModuleCandidate(sanitize(text), text, arch, timeout)
    raise CandidateFailure(
        f"{sanitize(text)}: no " + ("regular file" if path.exists() else "such file or folder"),
        wanted="a file, a folder, module:callable, or exec:command {input} {output}",
    )


def _resolve_folder(path: Path, arch: Network) -> Candidate:
    found = data_set_folder(path)
    dump = read_folder(path) if found is None else read_data_set(found[0], arch, found[1])
    return dump_candidate(sanitize(path.resolve().name), arch, dump)


def _resolve_file(path: Path, arch: Network, timeout: float) -> Candidate | WeightsCandidate:
    name = sanitize(path.name)
    with opened(path) as file:
        head = file.read(16)
    if path.suffix.lower() == ".onnx" or _starts_like_onnx(head):
        return _onnx(name, path, arch, timeout)
    if head.startswith(b"\x93NUMPY"):
        return DumpCandidate(name, arch, lambda: read_single(path))
    if head.lstrip()[:1] in (b"{", b"["):
        return dump_candidate(name, arch, read_outputs(path, arch))
    if not holds_layers(path, arch) and _holds_weights(path):
        return WeightsCandidate(path)
    return dump_candidate(name, arch, read_npz(path))


def _onnx(name: str, path: Path, arch: Network, timeout: float) -> Candidate:
    """How a graph's layers are found depends on the network; each way is loaded when asked for."""
    if arch.is_chain:
        from repvgg_ref.oracle.candidates.onnx_model import OnnxCandidate

        return OnnxCandidate(name, path, arch, timeout)
    if arch.is_dense:
        from repvgg_ref.oracle.candidates.onnx_segmenter import PyramidCandidate

        return PyramidCandidate(name, path, arch, timeout)
    if is_gated(arch):
        from repvgg_ref.oracle.candidates.onnx_named import NamedOnnxCandidate

        return NamedOnnxCandidate(name, path, arch, timeout)
    from repvgg_ref.oracle.candidates.onnx_relus import OnnxReluCandidate

    return OnnxReluCandidate(name, path, arch, timeout)


def _starts_like_onnx(head: bytes) -> bool:
    """The field ir_version, a small number, and then the producer, a domain or the graph."""
    return head[:1] == b"\x08" and head[1:2] < b"\x20" and head[2:3] in (b"\x12", b"\x22", b"\x3a")


def _holds_weights(path: Path) -> bool:
    """Whether the names in the file are those of weights: in any dialect, or most by their ends."""
    try:
        with open_checkpoint(path) as checkpoint:
            held = checkpoint.arrays
            return checkpoint.dialect is not None or 2 * count_parameters(held) > len(held)
    except WeightsFileError as error:
        raise CandidateFailure(error.what, got=error.got, wanted=error.wanted) from None
