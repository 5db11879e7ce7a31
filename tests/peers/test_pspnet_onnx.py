"""PSPNet as an ONNX file in ONNX Runtime, at sizes that divide by no bin, in every opset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.errors import CheckpointError, ShapeError
from repvgg_ref.files.checkpoint import save
from repvgg_ref.files.convert import convert
from tests.models.segmenters import pictures, small_model

onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.peers


@pytest.mark.parametrize("opset", [13, 17, 18])
def test_logits_of_any_size(tmp_path: Path, opset: int) -> None:
    model = small_model(dtype=np.float32, fast=True)
    path = tmp_path / "a.onnx"
    save(model, path, opset=opset)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for height, width in ((33, 41), (9, 17), (1, 65)):
        x, _ = pictures(height=height, width=width, dtype=np.float32)
        (found,) = session.run(None, {"input": x})
        wanted = rr.fuse(model).forward(x)
        assert found.shape == wanted.shape
        error = np.abs(found - wanted).max()
        assert error <= 2e-5 * np.abs(wanted).max(), (height, width, error)


def test_convert_writes_it_and_fixes_sizes_that_fit(tmp_path: Path) -> None:
    model = small_model(dtype=np.float32)
    save(model, tmp_path / "a.npz")
    done = convert(tmp_path / "a.npz", tmp_path / "b.onnx", batch=2, size=(33, 41))
    assert done.format == "onnx"
    session = onnxruntime.InferenceSession(
        str(tmp_path / "b.onnx"), providers=["CPUExecutionProvider"]
    )
    assert session.get_inputs()[0].shape == [2, 3, 33, 41]
    assert session.get_outputs()[0].shape == [2, 5, 33, 41]
    x, _ = pictures(dtype=np.float32)
    (found,) = session.run(None, {"input": x})
    np.testing.assert_allclose(found, model.forward(x), atol=2e-4, equal_nan=False)
    with pytest.raises(ShapeError, match=r"8k \+ 1"):
        convert(tmp_path / "a.npz", tmp_path / "c.onnx", size=32)
    with pytest.raises(CheckpointError, match="opset"):
        convert(tmp_path / "a.npz", tmp_path / "c.onnx", opset=11)
    assert not (tmp_path / "c.onnx").exists()
