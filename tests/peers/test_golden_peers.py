"""Golden bundles against what they are for: ports that share no code with this package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from repvgg_ref.files.checkpoint import save
from repvgg_ref.files.convert import convert
from repvgg_ref.models.graph import Network
from repvgg_ref.models.network import Model
from repvgg_ref.oracle.golden.folder import read_manifest
from repvgg_ref.oracle.golden.write import write_golden
from repvgg_ref.oracle.programs.distinguishing import TRAINING, distinguishing_model
from repvgg_ref.oracle.programs.inputs import distinguishing_labels, golden_inputs
from repvgg_ref.oracle.training.judge import judge_training
from repvgg_ref.oracle.training.steps import TrainingSteps, training_steps
from repvgg_ref.oracle.verification import verify
from tests.models.small import SMALL

torch = pytest.importorskip("torch")

from tests.peers.torch_training import BUGS, Port, _detached, dump_of  # noqa: E402

pytestmark = pytest.mark.peers

every_network = pytest.mark.parametrize("arch", SMALL.values(), ids=SMALL.keys())


def steps_of(arch: Network, seed: int = 0) -> tuple[Model, TrainingSteps]:
    x = golden_inputs(arch, seed=seed)
    model = distinguishing_model(arch, seed, x=x, statistics=TRAINING)
    labels = distinguishing_labels(arch, len(x), seed=seed)
    return model, training_steps(model, x, labels)


@pytest.fixture(scope="module")
def plain() -> tuple[Model, TrainingSteps]:
    return steps_of(SMALL["plain"])


@every_network
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_torch_passes_the_training_steps(arch: Network, dtype: object) -> None:
    model, steps = steps_of(arch)
    report = judge_training(steps, dump_of(model, steps, dtype), model=model)
    assert report.verdict == "agree", report.reason
    assert report.precision == ("fp64" if dtype is torch.float64 else "fp32")
    assert len(report.layers) == len(steps.exact)


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_planted_in_torch_is_named(bug: str, plain: tuple[Model, TrainingSteps]) -> None:
    model, steps = plain
    name, plant = BUGS[bug]
    report = judge_training(steps, dump_of(model, steps, torch.float32, plant), model=model)
    assert report.verdict == "disagree"
    found = report.diagnosis[0]
    assert name in (found.bug, *found.equivalents), (report.reason, report.diagnosis)


def test_a_bug_in_one_layer_is_named_with_its_layer(plain: tuple[Model, TrainingSteps]) -> None:
    model, steps = plain

    def plant(port: Port) -> None:
        _detached("rbr_identity", only="stage1.1")(port)

    report = judge_training(steps, dump_of(model, steps, torch.float32, plant), model=model)
    assert (report.diagnosis[0].bug, report.diagnosis[0].layer) == (
        "identity-gradient-missing",
        "stage1.1",
    )
    assert report.first_bad_layer == "grad/stage1.0.rbr_dense.bn.weight"


@every_network
def test_onnx_runtime_passes_its_data_set(arch: Network, tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    onnx, helper = pytest.importorskip("onnx"), pytest.importorskip("onnx.numpy_helper")
    model = distinguishing_model(arch)
    bundle, file = tmp_path / "bundle", tmp_path / "deploy.onnx"
    write_golden(model, bundle)
    save(model, tmp_path / "train.pth")
    if any(spec.dilation > 1 for spec in arch.blocks):
        pytest.skip("no file of weights says that a layer is dilated")
    convert(tmp_path / "train.pth", file)
    tensors = {}
    for name in ("input_0", "output_0"):
        tensor = onnx.TensorProto()
        tensor.ParseFromString((bundle / "test_data_set_0" / f"{name}.pb").read_bytes())
        tensors[tensor.name] = helper.to_array(tensor)
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"input": tensors["input"]})
    error = float(np.abs(logits - tensors["linear"]).max() / np.abs(tensors["linear"]).max())
    ours = read_manifest(bundle)["end_to_end_float32_error"]["linear"]
    assert not (error > 20 * ours), (error, ours)
    assert verify(bundle, file).verdict == "agree"
