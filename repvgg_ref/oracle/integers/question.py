"""Whether a question is about integers, told without loading what answers it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import weights_io
from repvgg_ref.errors import ReportedError
from repvgg_ref.files.integer_npz import is_integer_network
from repvgg_ref.integer.network import IntegerNetwork
from repvgg_ref.oracle.golden.folder import is_golden, read_manifest

KIND = "integers"  # of a bundle of golden vectors
QUANTISING = frozenset({"QuantizeLinear", "QLinearConv", "QGemm", "QLinearMatMul"})


def is_about_integers(reference: Any, candidate: Any) -> bool:
    """Whether one of the two is an integer network; nothing is run to find out."""
    return is_integers(reference) or is_integers(candidate)


def is_integers(what: Any) -> bool:
    """Whether this is an integer network: in memory, an npz, an ONNX file, or a bundle."""
    if isinstance(what, IntegerNetwork):
        return True
    if is_bundle(what):
        return True
    if not isinstance(what, str | Path) or not Path(what).is_file():
        return False
    path = Path(what)
    try:
        if path.suffix.lower() == ".onnx":
            return _holds_quantised_graph(path)
        if path.suffix.lower() not in (".npz", ""):  # what comes on stdin has no suffix
            return False
        with weights_io.open_weights(path) as archive:
            return is_integer_network(archive.metadata)
    except ReportedError:
        return False


def is_bundle(what: Any) -> bool:
    """Whether this is a folder of an integer network's golden vectors."""
    return is_golden(what) and read_manifest(Path(what)).get("kind") == KIND


def is_quantised(model: Any) -> bool:
    """Whether activations are quantised in this ONNX model."""
    return any(node.op_type in QUANTISING for node in model.graph.node)


def _holds_quantised_graph(path: Path) -> bool:
    """Whether activations are quantised in an ONNX file as it is now."""
    now = path.stat()
    return _is_quantised_file(path, now.st_ino, now.st_mtime_ns, now.st_size)


@lru_cache(maxsize=8)
def _is_quantised_file(path: Path, *_: int) -> bool:
    """The same, asked once of each state of a file: a command and `verify` both ask."""
    from repvgg_ref.oracle.candidates.onnx_load import load_onnx

    return is_quantised(load_onnx(path))
