"""Numbers against an integer network, or its integers against weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from repvgg_ref.arrays import Array
from repvgg_ref.files.checkpoint import load
from repvgg_ref.files.integer_npz import read_network
from repvgg_ref.integer.network import IntegerNetwork
from repvgg_ref.models.network import Model
from repvgg_ref.oracle.candidates.base import CandidateFailure
from repvgg_ref.oracle.candidates.dumps import read_npz
from repvgg_ref.oracle.golden.folder import checked_manifest
from repvgg_ref.oracle.integers.files import (
    excused,
    file_numbers,
    judged_file,
    quantised_file,
)
from repvgg_ref.oracle.integers.golden import NETWORK, VECTORS
from repvgg_ref.oracle.integers.held import INPUT
from repvgg_ref.oracle.integers.judge import judge_numbers
from repvgg_ref.oracle.integers.onnx_reading import read_integer_onnx
from repvgg_ref.oracle.integers.ports import numbers_of
from repvgg_ref.oracle.integers.question import is_bundle, is_integers
from repvgg_ref.oracle.integers.report import PRECISION, IntegerReport
from repvgg_ref.oracle.integers.weights import judge_integers
from weights_io import sanitize


def verify_integers(
    reference: Model | IntegerNetwork | str | Path,
    candidate: Any,
    *,
    inputs: Array | None = None,
    eps: float | None = None,
    timeout: float = 300.0,
    progress: Callable[[str, int, int], None] | None = None,
) -> IntegerReport:
    """Judge integers.

    An integer network, or a bundle of its golden vectors, judges a dump of numbers, or a quantised
    ONNX file that is run, bit for bit. A trained network as the reference judges the weights,
    biases and scales of an integer network or a quantised ONNX file.
    """
    named = sanitize(str(candidate)) if isinstance(candidate, str | Path) else "candidate"
    try:
        theirs = quantised_file(candidate)
        if not is_integers(reference):
            model = reference if isinstance(reference, Model) else load(reference, eps=eps)  # type: ignore[arg-type]
            if theirs is not None:
                return judged_file(theirs, model, candidate=named)
            return judge_integers(model, integer_network(candidate), candidate=named)
        ours = quantised_file(reference)
        network = ours.network if ours is not None else integer_network(reference)
        if inputs is None and is_bundle(reference):
            inputs = read_npz(Path(reference) / VECTORS).arrays[INPUT]  # type: ignore[arg-type]
        title = "reference" if isinstance(reference, IntegerNetwork) else Path(reference).name  # type: ignore[arg-type]
        if theirs is not None:
            numbers, notes = file_numbers(theirs, network, ours, inputs, timeout)
        else:
            port = integer_network(candidate) if is_integers(candidate) else candidate
            numbers, notes = numbers_of(port, network, inputs, timeout)
        report = judge_numbers(
            network,
            numbers,
            reference=sanitize(title),
            candidate=named,
            notes=notes,
            progress=progress,
        )
        return excused(report, network, theirs, ours)
    except CandidateFailure as failure:
        return IntegerReport(failure.verdict, str(failure), "reference", named, PRECISION)


def integer_network(what: Any) -> IntegerNetwork:
    """The network of an npz, a quantised ONNX file or a bundle of golden vectors."""
    if isinstance(what, IntegerNetwork):
        return what
    path = Path(what)
    if is_bundle(path):
        checked_manifest(path, lambda _: [NETWORK])
        return read_network(path / NETWORK)
    return read_integer_onnx(path).network if path.suffix.lower() == ".onnx" else read_network(path)
