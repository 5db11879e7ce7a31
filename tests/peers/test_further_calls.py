"""Ports in torch and ONNX Runtime are called again: static shapes, tracing, in-place work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

import torch

from repvgg_ref.files.onnx import write_onnx
from repvgg_ref.models.network import fuse
from repvgg_ref.oracle.programs.distinguishing import distinguishing_model
from repvgg_ref.oracle.report import Report
from repvgg_ref.oracle.verification import verify
from tests.models.small import SMALL

pytestmark = pytest.mark.peers
MODEL = distinguishing_model(SMALL["plain"])
DEPLOY = fuse(MODEL)


class Fused(torch.nn.Module):  # type: ignore[misc]
    """The deploy network; `mean` is taken off the images in place."""

    def __init__(self, mean: float = 0.0) -> None:
        super().__init__()
        self.mean = mean
        self.arrays = {name: torch.from_numpy(a.copy()) for name, a in DEPLOY.params.items()}

    def forward(self, x: Any) -> Any:
        if self.mean:
            x.sub_(self.mean).add_(self.mean / 2)
            x = x + self.mean / 2
        layers = {}
        for block in MODEL.arch.blocks:
            weight, bias = (self.arrays[f"{block.name}.fused.{p}"] for p in ("weight", "bias"))
            x = torch.relu(torch.conv2d(x, weight, bias, block.stride, 1))
            layers[block.name] = x
        weight, bias = self.arrays["linear.weight"], self.arrays["linear.bias"]
        layers["linear"] = x.mean((2, 3)) @ weight.T + bias
        return layers


def counts(report: Report) -> tuple[int, ...]:
    return tuple(sum(p.ok is ok for p in report.probes) for ok in (True, False, None))


def test_a_torch_module_is_right_however_it_is_called() -> None:
    report = verify(MODEL, Fused())
    assert (report.verdict, counts(report)) == ("agree", (12, 0, 0))


def test_a_torch_module_that_works_in_place_is_told() -> None:
    report = verify(MODEL, Fused(mean=0.5))
    assert report.verdict == "disagree"
    assert "input-modified" in {finding.bug for finding in report.diagnosis}


@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (2, 3, 40, 56)])
def test_a_torch_module_compiled_for_one_shape_gets_it(shape: tuple[int, ...]) -> None:
    class Engine(Fused):
        def forward(self, x: Any) -> Any:
            if tuple(x.shape) != shape:
                raise RuntimeError(f"profile 0: {tuple(x.shape)} is not {list(shape)}")
            return super().forward(x)

    report = verify(MODEL, Engine())
    assert report.verdict == "agree", report.reason
    assert any("x".join(map(str, shape)) in note for note in report.notes)


@pytest.mark.parametrize(
    ("batch", "size"), [(None, None), (1, None), (None, (48, 40)), (1, (224, 224)), (3, (32, 32))]
)
def test_an_onnx_file_of_a_fixed_shape_gets_it(
    tmp_path: Path, batch: int | None, size: tuple[int, int] | None
) -> None:
    path = tmp_path / "m.onnx"
    write_onnx(path, MODEL.arch, DEPLOY.params, metadata={}, batch=batch, size=size)
    report = verify(MODEL, path)
    assert report.verdict == "agree", report.reason
    right, wrong, _ = counts(report)
    assert wrong == 0
    assert right >= (12 if batch is None and size is None else 5)
    fixed = [note for note in report.notes if "fixed shape" in note and "--inputs" in note]
    assert len(fixed) == (batch is not None or size is not None)


def test_an_export_whose_pool_was_traced_at_one_size_is_said_to_refuse_others(
    tmp_path: Path,
) -> None:
    """The mean over the exporter's own extents: ONNX Runtime raises for all other sizes."""
    onnx = pytest.importorskip("onnx")
    path = tmp_path / "m.onnx"
    write_onnx(path, MODEL.arch, DEPLOY.params, metadata={})
    model = onnx.load(path)
    pool = next(n for n in model.graph.node if n.op_type in ("GlobalAveragePool", "ReduceMean"))
    pool.op_type = "AveragePool"
    del pool.attribute[:]
    del pool.input[1:]
    kernel = np.array(_last_extent(96, 80))
    pool.attribute.append(onnx.helper.make_attribute("kernel_shape", kernel))
    onnx.save(model, path)
    report = verify(MODEL, path)
    right, wrong, refused = counts(report)
    assert (report.verdict, wrong) == ("agree", 0)
    assert right >= 3
    assert refused >= 4
    assert any("not judged: three images" in note for note in report.notes)


def bytes_instead(path: Path, *, normalise: bool) -> None:
    """The file's network behind a cast from bytes, and behind a normalisation of those."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load(path)
    graph, name = model.graph, model.graph.input[0].name
    steps: list[tuple[str, str, Any]] = [("Cast", "as float", None)]
    if normalise:
        steps += [("Sub", "centred", [118.0, 116.0, 104.0]), ("Div", "scaled", [58.0, 57.0, 57.5])]
    for i, (operator, made, values) in enumerate(steps):
        inputs = ["bytes" if i == 0 else steps[i - 1][1]]
        if values is not None:
            array = np.reshape(np.float32(values), (1, 3, 1, 1))
            graph.initializer.append(onnx.numpy_helper.from_array(array, f"{made} by"))
            inputs.append(f"{made} by")
        node = onnx.helper.make_node(operator, inputs, [made], **({"to": 1} if i == 0 else {}))
        graph.node.insert(i, node)
    for node in graph.node:
        node.input[:] = [steps[-1][1] if each == name else each for each in node.input]
    graph.input[0].name = "bytes"
    graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    onnx.save(model, path)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("normalise", [True, False])
def test_a_file_that_takes_bytes_is_judged_from_what_it_makes_of_them(
    tmp_path: Path, normalise: bool, own: bool
) -> None:
    path = tmp_path / "m.onnx"
    write_onnx(path, MODEL.arch, DEPLOY.params, metadata={})
    bytes_instead(path, normalise=normalise)
    own_bytes = np.random.default_rng(1).integers(0, 200, (2, 3, 40, 48)).astype(np.uint8)
    report = verify(MODEL, path, inputs=own_bytes if own else None)
    assert report.verdict == "agree", report.reason
    assert counts(report) == (9, 0, 3)
    skipped = {probe.says for probe in report.probes if probe.ok is None}
    assert skipped == {"not judged: the port takes bytes"}


def _last_extent(*extents: int) -> list[int]:
    for block in MODEL.arch.blocks:
        extents = tuple((n + block.stride - 1) // block.stride for n in extents)
    return list(extents)
