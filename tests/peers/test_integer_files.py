"""Quantised files with one thing changed: what ONNX Runtime gives is held against the verdict."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.files.integer_onnx import Style, write_integer_onnx
from repvgg_ref.integer.quantize import quantize
from tests.models.small import SMALL, distinct_model

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from tests.peers.integer_edits import (  # noqa: E402 - needs onnx
    SAME,
    edits_of,
    exact_sums,  # noqa: F401 - a fixture
)

pytestmark = [pytest.mark.peers, pytest.mark.usefixtures("exact_sums")]

SIZE = 16
MODEL = rr.fuse(distinct_model(SMALL["plain"], seed=3))
IMAGES = np.random.default_rng(0).normal(size=(5, 3, SIZE, SIZE)).astype(np.float32)
STYLES: tuple[Style, ...] = ("qdq", "qlinear")


@cache
def network() -> Any:
    # Numbers of uint8: between pairs of int8 ONNX Runtime computes in float on some machines.
    return quantize(MODEL, IMAGES, dtype=np.uint8)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    for style in STYLES:
        write_integer_onnx(folder / f"{style}.onnx", network(), style=style, size=(SIZE, SIZE))
    return {style: folder / f"{style}.onnx" for style in STYLES}


def logits(proto: Any) -> Any:
    """What the runtime makes of it; None if it refuses the file."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return session.run(["logits"], {"input": IMAGES})[0]
    except Exception:  # the runtime's classes are not public
        return None


def apart(one: Any, other: Any) -> float:
    """Largest difference in steps of the output."""
    if other is None or one.shape != other.shape or not np.isfinite(other).all():
        return float("inf")
    return float(np.abs(one - other).max() / network().layers[-1].output.scale)


@pytest.mark.parametrize(
    ("style", "name"), [(style, name) for style in STYLES for name in edits_of(style)]
)
def test_no_verdict_contradicts_the_runtime(
    style: Style, name: str, files: dict[str, Path], tmp_path: Path
) -> None:
    proto = onnx.load(str(files[style]))
    before = logits(proto)
    edits_of(style)[name](proto)
    onnx.save(proto, str(tmp_path / "changed.onnx"))
    moved = apart(before, logits(proto))
    report = rr.verify(MODEL, tmp_path / "changed.onnx")
    if moved > 1.5:
        assert report.verdict != "agree", (moved, report.reason)
        assert name not in SAME
    elif moved == 0:
        assert report.verdict != "disagree", report.reason
    if name in SAME:
        assert moved < 1.5
        assert report.verdict == "agree", report.reason
    if report.verdict == "disagree" and name not in ("a weight", "biases off"):
        assert all(finding.bug != "unknown" for finding in report.diagnosis)
        assert report.diagnosis
