"""Candidates from torch: modules, what it exports to ONNX, and what Polygraphy saves."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from repvgg_ref.arrays import Array
from repvgg_ref.models.architectures import Architecture, AuxHeadSpec
from repvgg_ref.models.network import Model, fuse
from repvgg_ref.oracle.candidates import Outputs, WeightsCandidate, resolve
from tests.oracle.candidates.ports import assert_same, images, network
from tests.peers.torch_repvgg import build_torch, to_torch

pytestmark = pytest.mark.peers
NETWORKS: list[Any] = [("none", 1), ("none", 2), ("before_relu", 1), ("after_relu", 1)]


def module(model: Model) -> Any:
    built = build_torch(model.arch, deploy=model.form == "deploy")
    built.load_state_dict(to_torch(model.state_dict()), strict=True)
    return built.eval()


def expected(model: Model) -> dict[str, Array]:
    outputs: dict[str, Array] = model.forward(images().astype(np.float64), layers=True)
    return outputs


def run(candidate: Any, model: Model) -> Outputs:
    found = resolve(candidate, model.arch)
    assert not isinstance(found, WeightsCandidate)
    return found.run(images())


@pytest.mark.parametrize(("se", "groups"), NETWORKS)
def test_a_modules_blocks_are_heard_by_hooks(se: Any, groups: int) -> None:
    model = network(se, groups)
    port = module(model)
    outputs = run(port, model)
    assert_same(outputs.layers, expected(model), 3e-6)
    assert any("hooks" in note for note in outputs.notes)
    assert not any(part._forward_hooks for part in port.modules())


@pytest.mark.parametrize(
    ("dtype", "precision", "tolerance"),
    [(torch.float16, "fp16", 2e-2), (torch.bfloat16, "bf16", 0.1), (torch.float64, None, 3e-6)],
)
def test_a_module_is_fed_in_its_own_type(dtype: Any, precision: str, tolerance: float) -> None:
    outputs = run(module(network()).to(dtype), network())
    assert outputs.precision == precision
    assert_same(outputs.layers, expected(network()), tolerance)


def test_auxiliary_outputs_beside_the_main_one_are_left_out() -> None:
    class Plus(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.backbone = module(network("after_relu"))

        def forward(self, x: Any) -> Any:
            y = self.backbone(x)
            return {"main": y, "stage1_aux": y}

    model = network("after_relu")
    head = AuxHeadSpec("stage1_aux", "stage1.1", 32)
    assert isinstance(model.arch, Architecture)
    arch = dataclasses.replace(model.arch, aux_heads=(head,))
    found = resolve(Plus().eval(), arch)
    assert not isinstance(found, WeightsCandidate)
    assert_same(found.run(images()).layers, expected(model), 3e-6)


def test_training_mode_is_noted_and_not_changed() -> None:
    port = module(network()).train()
    outputs = run(port, network())
    assert any("training mode" in note for note in outputs.notes)
    assert port.training


def test_a_function_of_tensors_gets_tensors() -> None:
    port = module(network())

    def port_function(x: Any) -> Any:
        return port(torch.nn.functional.relu(x) - torch.nn.functional.relu(-x))

    outputs = run(port_function, network())
    assert_same(outputs.layers, {"linear": expected(network())["linear"]}, 3e-6)
    assert any("torch tensor" in note for note in outputs.notes)


def test_a_module_named_by_text_is_heard_in_its_process(tmp_path: Path) -> None:
    (tmp_path / "torch_port.py").write_text(
        "from tests.peers.test_candidates_torch import module\n"
        "from tests.oracle.candidates.ports import network\n"
        "port = module(network())\n"
    )
    outputs = run(f"{tmp_path}/torch_port.py:port", network())
    assert_same(outputs.layers, expected(network()), 3e-6)


@pytest.mark.parametrize(("se", "groups"), NETWORKS)
@pytest.mark.parametrize("form", ["train", "deploy"])
@pytest.mark.parametrize("exporter", ["legacy", "legacy, batch norm kept", "dynamo"])
def test_what_torch_exports_is_matched(
    tmp_path: Path, se: Any, groups: int, form: str, exporter: str
) -> None:
    pytest.importorskip("onnxruntime")
    model = network(se, groups) if form == "train" else fuse(network(se, groups))
    export(module(model), tmp_path / "m.onnx", exporter)
    outputs = run(tmp_path / "m.onnx", model)
    assert outputs.problem is None
    assert outputs.notes == ()
    assert_same(outputs.layers, expected(model), 3e-6)


@pytest.mark.parametrize(
    ("dtype", "precision", "tolerance"),
    [(torch.float16, "fp16", 2e-2), (torch.bfloat16, "bf16", 0.1), (torch.float64, "fp32", 3e-6)],
)
def test_other_types_that_torch_exports(
    tmp_path: Path, dtype: Any, precision: str, tolerance: float
) -> None:
    pytest.importorskip("onnxruntime")
    export(module(network()).to(dtype), tmp_path / "m.onnx", "legacy", dtype)
    outputs = run(tmp_path / "m.onnx", network())
    assert outputs.precision == precision
    assert_same(outputs.layers, expected(network()), tolerance)


def export(port: Any, path: Path, exporter: str, dtype: Any = None) -> None:
    """Write `port` with one of torch's exporters, or skip if this torch lacks it."""
    settings: dict[str, Any] = {"dynamo": exporter == "dynamo"}
    if exporter == "dynamo":
        pytest.importorskip("onnxscript")
        settings["verbose"] = False
    elif "kept" in exporter:
        settings |= {
            "do_constant_folding": False,
            "training": torch.onnx.TrainingMode.PRESERVE,
        }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(port, (torch.from_numpy(images()).to(dtype),), str(path), **settings)


def test_polygraphys_own_file(tmp_path: Path) -> None:
    comparator: Any = pytest.importorskip("polygraphy.comparator")
    outputs = {n: a.astype(np.float32) for n, a in expected(network()).items()}
    outputs["stage1.0"] = torch.from_numpy(outputs["stage1.0"])
    results = comparator.RunResults()
    results.add([outputs], runner_name="onnxrt-runner")
    results.save(str(tmp_path / "outputs.json"))
    assert_same(run(tmp_path / "outputs.json", network()).layers, expected(network()), 1e-6)
