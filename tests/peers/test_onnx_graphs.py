"""Any ONNX graph: linear parts become one convolution each; what must not be merged stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx

from repvgg_ref.files.convert_graph import GraphConversion, convert_graph, inspect_graph
from tests.peers.left_graphs import STAYS
from tests.peers.linear_graphs import operators, run, saved
from tests.peers.merged_graphs import MERGED

pytestmark = pytest.mark.peers


def fused(folder: Path, model: Any) -> tuple[GraphConversion, Any]:
    done = convert_graph(saved(folder / "in.onnx", model), folder / "out.onnx")
    result = onnx.load(folder / "out.onnx")
    onnx.checker.check_model(result, full_check=True)
    return done, result


def require_equal_outputs(model: Any, result: Any, shape: tuple[int, ...], dtype: Any) -> None:
    """At every pixel, within rounding of sums of some hundred terms."""
    x = np.random.default_rng(7).normal(size=shape).astype(dtype)
    tolerance = 200 * float(np.finfo(dtype).eps)
    for want, got in zip(run(model, x), run(result, x), strict=True):
        assert got.shape == want.shape
        assert got.dtype == want.dtype
        scale = np.abs(want.astype(np.float64)).max()
        error = np.abs(got.astype(np.float64) - want.astype(np.float64)).max()
        assert error <= tolerance * scale


@pytest.mark.parametrize("name", MERGED)
def test_every_linear_part_becomes_one_convolution(name: str, tmp_path: Path) -> None:
    built = MERGED[name]()
    model, fewest = built if isinstance(built, tuple) else (built, 1)
    done, result = fused(tmp_path, model)
    assert (done.convs_after, operators(result).count("Conv")) == (fewest, fewest)
    assert not set(operators(result)) - {"Conv", "Relu", "Add"}
    shape = model.graph.input[0].type.tensor_type.shape.dim
    for height, width in [(10, 12), (9, 13)][: 2 - bool(shape[2].dim_value)]:
        require_equal_outputs(model, result, (2, shape[1].dim_value, height, width), np.float32)
    for check in (done.runtime_check, done.self_check):
        assert check is not None
        assert check.ok
    assert done.notes == ()


@pytest.mark.parametrize("name", STAYS)
def test_what_must_not_be_merged_stays_as_it_is(name: str, tmp_path: Path) -> None:
    build, reason = STAYS[name]
    model = build()
    done, result = fused(tmp_path, model)
    assert any(reason in each.reason for each in done.left), done.left
    assert result.SerializeToString() == model.SerializeToString()
    assert done.convs_before == done.convs_after
    assert done.merged == ()
    assert (done.self_check, done.runtime_check) == (None, None)


@pytest.mark.few(12)
@pytest.mark.parametrize("name", [*MERGED, *STAYS])
def test_inspection_says_what_conversion_does(name: str, tmp_path: Path) -> None:
    built = MERGED[name]() if name in MERGED else STAYS[name][0]()
    model = built[0] if isinstance(built, tuple) else built
    if "not_finite" in name:  # which only the fusion sees
        return
    seen = inspect_graph(saved(tmp_path / "in.onnx", model))
    done, _ = fused(tmp_path, model)
    for what in (
        *("opset", "nodes_before", "nodes_after", "convs_before", "convs_after"),
        *("merged", "left"),
    ):
        assert getattr(seen, what) == getattr(done, what), what
