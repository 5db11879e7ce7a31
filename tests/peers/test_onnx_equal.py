"""ONNX files of equal networks agree: values and kernels are put in one order before they count."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.files.onnx import write_onnx
from repvgg_ref.models.network import Model, fuse
from repvgg_ref.oracle.programs.distinguishing import distinguishing_model
from tests.models.small import SMALL
from tests.oracle.symmetry.ports import changed, drawn_order

pytest.importorskip("onnxruntime")


def _equal(model: Model, *, fault: float = 1.0) -> Model:
    """Every layer reordered and scaled; `fault` multiplies one weight of the second."""
    rng, port = np.random.default_rng(1), fuse(model)
    for spec in model.arch.blocks:
        factor = np.exp(rng.uniform(-1, 1, spec.out_channels)).astype(np.float32)
        port = changed(port, spec.name, drawn_order(model, spec.name, rng), factor)
    name = f"{model.arch.blocks[1].name}.fused.weight"
    weight = port.params[name].copy()
    weight.flat[np.abs(weight).argmax()] *= fault
    return Model(port.arch, "deploy", {**port.params, name: weight}, port.eps)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "grouped", "se-before-relu"])
def test_an_equal_file_agrees_and_a_fault_in_it_does_not(kind: str, tmp_path: Path) -> None:
    model = distinguishing_model(SMALL[kind])
    for fault, verdict in ((1.0, "agree"), (1.01, "disagree")):
        path = tmp_path / f"{fault}.onnx"
        port = _equal(model, fault=fault)
        write_onnx(path, port.arch, port.params, metadata={})
        report = rr.verify(model, path)
        assert report.verdict == verdict, report.reason
        if verdict == "agree":
            assert {e.kind for e in report.equivalences} == {"permutation", "scaling"}
        else:
            # The fault may as well be a factor of the layer before that is not taken back.
            assert report.first_bad_layer in {block.name for block in model.arch.blocks[:2]}
