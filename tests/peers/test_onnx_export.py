"""The ONNX file as a file: its graph, names, types and refusals. What it computes: `convert`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.errors import CheckpointError, MissingExtraError, ShapeError
from repvgg_ref.files import onnx as onnx_export
from repvgg_ref.files.onnx import write_onnx
from repvgg_ref.models.architectures import plain_architecture
from repvgg_ref.models.baselines import resnet
from repvgg_ref.models.efficientnet import efficientnet
from repvgg_ref.models.graph import Network
from repvgg_ref.models.network import Model
from tests.random_networks import random_model

onnx = pytest.importorskip("onnx")
pytestmark = pytest.mark.peers

NETWORKS = {
    "plain": plain_architecture(depths=(2, 3), channels=(4, 4, 8), groups=2, num_classes=5),
    "SE before ReLU": plain_architecture(
        depths=(2,), channels=(16, 16), se="before_relu", num_classes=3, in_channels=1
    ),
    "SE after ReLU": plain_architecture(
        depths=(2, 1, 2), channels=(4, 8, 8, 12), se="after_relu", num_classes=3
    ),
}
each_network = pytest.mark.parametrize("arch", NETWORKS.values(), ids=NETWORKS.keys())


def _deploy(arch: Network, dtype: Any = np.float32) -> Model:
    return rr.fuse(random_model(arch, 2, dtype))


def _write(folder: Path, model: Model, **options: Any) -> Any:
    write_onnx(folder / "m.onnx", model.arch, model.params, metadata={"eps": "1e-05"}, **options)
    return onnx.load(folder / "m.onnx")


@each_network
def test_the_file_describes_itself(tmp_path: Path, arch: Network) -> None:
    model = _write(tmp_path, _deploy(arch))
    assert (model.ir_version, [(o.domain, o.version) for o in model.opset_import]) == (
        8,
        [("", 17)],
    )
    assert (model.producer_name, model.producer_version) == ("repvgg-ref", rr.__version__)
    assert "arXiv 2101.03697" in model.doc_string
    assert {p.key: p.value for p in model.metadata_props} == {"eps": "1e-05"}


@each_network
def test_layer_outputs_and_initializers_have_our_names(tmp_path: Path, arch: Network) -> None:
    deploy = _deploy(arch)
    graph = _write(tmp_path, deploy).graph
    made = [name for node in graph.node for name in node.output]
    assert len(set(made)) == len(made)
    assert [name for name in made if name in arch.layer_names] == list(arch.layer_names)
    state = deploy.state_dict()
    assert [i.name for i in graph.initializer] == list(state)
    for initializer in graph.initializer:
        values = onnx.numpy_helper.to_array(initializer)
        np.testing.assert_array_equal(values, state[initializer.name], strict=True)


@each_network
@pytest.mark.parametrize(("batch", "size"), [(None, None), (3, 17), (1, (33, 20)), (2, None)])
def test_strict_shape_inference_agrees_with_the_network(
    tmp_path: Path, arch: Network, batch: int | None, size: Any
) -> None:
    deploy = _deploy(arch)
    model = _write(tmp_path, deploy, batch=batch, size=size)
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    found = {
        v.name: [d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim]
        for v in (*inferred.input, *inferred.value_info, *inferred.output)
    }
    height, width = (size, size) if isinstance(size, int) else size or ("height", "width")
    assert found["input"] == [batch or "batch", arch.in_channels, height, width]
    assert found["linear"] == [batch or "batch", arch.num_classes]
    if size is not None:
        x = np.zeros(found["input"], np.float32)
        for name, y in deploy.forward(x, layers=True).items():
            assert found[name] == list(y.shape), name


@each_network
def test_float64_files_compute_in_float64(tmp_path: Path, arch: Network) -> None:
    """By ONNX's own reference evaluator: ONNX Runtime has no float64 convolution on CPUs."""
    from onnx.reference import ReferenceEvaluator

    deploy = _deploy(arch, np.float64)
    x = np.random.default_rng(0).normal(size=(2, arch.in_channels, 17, 12))
    got = ReferenceEvaluator(_write(tmp_path, deploy)).run(None, {"input": x})[0]
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, deploy.forward(x), rtol=1e-12, atol=1e-13)


def test_dilation_reaches_the_graph(tmp_path: Path) -> None:
    from onnx.reference import ReferenceEvaluator

    arch = NETWORKS["plain"]
    blocks = [replace(b, dilation=2, stride=1) if "2." in b.name else b for b in arch.blocks]
    deploy = Model(replace(arch, blocks=tuple(blocks)), "deploy", _deploy(arch, np.float64).params)
    x = np.random.default_rng(0).normal(size=(1, 3, 16, 24))
    got = ReferenceEvaluator(_write(tmp_path, deploy)).run(["stage2.2"], {"input": x})[0]
    want = deploy.forward(x, layers=True)["stage2.2"]
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    "arch",
    [
        resnet("small", depths=(1, 2), bottleneck=True, num_classes=5),
        efficientnet("small", width=0.25, depth=0.4, dropout=0.2, num_classes=5),
    ],
    ids=["residual", "gated"],
)
def test_a_network_that_is_no_chain_keeps_its_wiring(tmp_path: Path, arch: Network) -> None:
    """Residual sums, two kinds of pooling, a 7x7 stem, gates, as ONNX Runtime computes them."""
    from onnxruntime import InferenceSession

    deploy = _deploy(arch)
    _write(tmp_path, deploy)
    x = np.random.default_rng(0).normal(size=(2, 3, 65, 48)).astype(np.float32)
    session = InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    want = deploy.forward(x, layers=True)
    got = session.run([session.get_outputs()[0].name], {"input": x})[0]
    np.testing.assert_allclose(got, want["linear"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda p: p.pop("stage1.0.fused.bias"),
            r"missing arrays \(=\['stage1.0.fused.bias'\]\)",
        ),
        (lambda p: p.update({"linear.bias": np.zeros(4, np.float32)}), "linear.bias.shape"),
        (lambda p: p.update({"linear.bias": np.zeros(5)}), "linear.bias.dtype"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, change: Any, said: str) -> None:
    deploy = _deploy(NETWORKS["plain"])
    change(deploy.params)
    with pytest.raises(ShapeError, match=said):
        _write(tmp_path, deploy)
    assert not list(tmp_path.iterdir())


def test_one_array_too_many_is_refused(tmp_path: Path) -> None:
    deploy = _deploy(NETWORKS["plain"])
    params = deploy.params | {"spare": np.zeros(1, np.float32)}
    with pytest.raises(ShapeError, match="superfluous arrays"):
        write_onnx(tmp_path / "m.onnx", deploy.arch, params, metadata={})
    assert not list(tmp_path.iterdir())


def test_other_types_are_refused(tmp_path: Path) -> None:
    deploy = _deploy(NETWORKS["plain"])
    longs = {n: a.astype(np.longdouble) for n, a in deploy.params.items()}
    with pytest.raises(CheckpointError, match="got float128 ; wanted one of float16, float32"):
        write_onnx(tmp_path / "m.onnx", deploy.arch, longs, metadata={})


def test_too_large_a_network_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "_MOST_BYTES", 1000)
    with pytest.raises(CheckpointError, match="too large for an ONNX file"):
        _write(tmp_path, _deploy(NETWORKS["plain"]))
    assert not list(tmp_path.iterdir())


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deploy = _deploy(NETWORKS["plain"])
    for name in [n for n in sys.modules if n == "onnx" or n.startswith("onnx.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r'pip install "repvgg-ref\[onnx\]"'):
        write_onnx(tmp_path / "m.onnx", deploy.arch, deploy.params, metadata={})
