"""ONNX files of every opset and in float16: ONNX's checker, ONNX Runtime and our bounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.arrays import Array
from repvgg_ref.errors import CheckpointError, NotFusibleError
from repvgg_ref.files.convert import convert
from repvgg_ref.files.onnx import OLDEST_OPSET
from repvgg_ref.models.graph import Network
from repvgg_ref.models.network import Model
from tests.cli.runner import invoke
from tests.models.small import GRAPHS, SMALL
from tests.random_networks import random_model

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.peers

NEWEST = onnx.defs.onnx_opset_version()
NETWORKS: dict[str, Network] = {**SMALL, "residual": GRAPHS["residual"]}


def train_model(name: str = "plain") -> Model:
    return random_model(NETWORKS[name], 3, np.float32)


def images(model: Model, dtype: Any = np.float32) -> Array:
    x = np.random.default_rng(0).standard_normal((2, model.arch.in_channels, 35, 28))
    return x.astype(dtype)


def logits(path: Path, x: Array) -> Array:
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    found: Array = session.run(None, {"input": x})[0]
    return found


def opset_of(path: Path) -> tuple[int, int]:
    model = onnx.load(path)
    return model.opset_import[0].version, model.ir_version


@pytest.mark.few
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("opset", range(OLDEST_OPSET, NEWEST + 1))
def test_every_opset_is_valid_and_computes_the_network(
    tmp_path: Path, name: str, opset: int
) -> None:
    model, out = train_model(name), tmp_path / "m.onnx"
    rr.save(model, out, opset=opset)
    onnx.checker.check_model(str(out), full_check=True)
    assert opset_of(out)[0] == opset
    x = images(model)
    try:
        got = logits(out, x)
    except Exception as error:
        if "opset" not in str(error):
            raise
        pytest.skip(f"this ONNX Runtime does not know opset {opset}")
    want = rr.fuse(model)(x)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize(("opset", "ir"), [(9, 4), (11, 6), (13, 7), (17, 8), (None, 8)])
def test_the_ir_version_is_the_oldest_that_has_the_opset(
    tmp_path: Path, opset: int | None, ir: int
) -> None:
    rr.save(train_model(), tmp_path / "train.npz")
    done = convert(tmp_path / "train.npz", tmp_path / "m.onnx", opset=opset)
    assert opset_of(done.out) == (opset or 17, ir)
    assert done.opset == (opset or 17)


@pytest.mark.parametrize("opset", [8, 0, -1, NEWEST + 1, True])
def test_other_opsets_are_refused(tmp_path: Path, opset: int) -> None:
    rr.save(train_model(), tmp_path / "train.npz")
    with pytest.raises(CheckpointError, match=f"wanted 9 to {NEWEST}"):
        convert(tmp_path / "train.npz", tmp_path / "m.onnx", opset=opset)
    assert [path.name for path in tmp_path.iterdir()] == ["train.npz"]


def test_only_onnx_has_an_opset(tmp_path: Path) -> None:
    rr.save(train_model(), tmp_path / "train.npz")
    with pytest.raises(CheckpointError, match="only an ONNX file"):
        convert(tmp_path / "train.npz", tmp_path / "m.npz", opset=13)
    with pytest.raises(CheckpointError, match="only an ONNX file"):
        rr.save(train_model(), tmp_path / "m.npz", opset=13)


@pytest.mark.parametrize("opset", [9, 11, 13])
def test_the_oracle_agrees_with_old_opsets(tmp_path: Path, opset: int) -> None:
    model = train_model("grouped")
    rr.save(model, tmp_path / "m.onnx", opset=opset)
    assert rr.verify(model, tmp_path / "m.onnx", inputs=images(model)).verdict == "agree"


# ----------------------------------------------------------------- float16


@pytest.mark.parametrize("name", [name for name in SMALL if name != "dilated"])
@pytest.mark.parametrize("opset", [13, 17])
def test_a_float16_file_agrees_within_float16s_bounds(
    tmp_path: Path, name: str, opset: int
) -> None:
    model = train_model(name)
    rr.save(model, tmp_path / "train.npz")
    done = convert(tmp_path / "train.npz", tmp_path / "m.onnx", dtype="float16", opset=opset)
    onnx.checker.check_model(str(done.out), full_check=True)
    assert (done.dtype, done.self_check is not None and done.self_check.ok) == ("float16", True)
    assert logits(done.out, images(model, np.float16)).dtype == np.float16
    report = rr.verify(model, done.out, inputs=images(model))
    assert (report.verdict, report.precision) == ("agree", "fp16"), report.reason


def test_a_fused_model_in_float16_is_saved_as_such(tmp_path: Path) -> None:
    model = train_model("dilated")
    rr.save(rr.fuse(model, dtype=np.float16), tmp_path / "m.onnx")
    report = rr.verify(model, tmp_path / "m.onnx", inputs=images(model))
    assert (report.verdict, report.precision) == ("agree", "fp16"), report.reason


@pytest.mark.parametrize("suffix", [".onnx", ".npz", ".safetensors", ".pth"])
def test_every_format_holds_the_exact_taps_rounded_once(tmp_path: Path, suffix: str) -> None:
    model = train_model()
    rr.save(model, tmp_path / "train.npz")
    done = convert(tmp_path / "train.npz", tmp_path / f"m{suffix}", dtype=np.float16)
    if suffix == ".onnx":
        held = {
            i.name: onnx.numpy_helper.to_array(i) for i in onnx.load(done.out).graph.initializer
        }
    else:
        held = rr.load(done.out, dtype=np.float16).state_dict()
    for name, exact in rr.fuse(model, dtype=np.float64).state_dict().items():
        assert held[name].dtype == np.float16
        ulp = np.spacing(np.abs(held[name])).astype(np.float64)
        assert (np.abs(held[name].astype(np.float64) - exact) <= ulp / 2).all(), name


def huge(train: Model, where: str) -> Model:
    model = Model(train.arch, train.form, dict(train.params), train.eps)
    model.params[where] = model.params[where] * np.float32(1e7)
    return model


@pytest.mark.parametrize(
    "where", ["stage1.0.branch_3x3.bn.gamma", "stage1.0.branch_1x1.bn.beta", "linear.weight"]
)
@pytest.mark.parametrize("form", ["train", "deploy"])
def test_what_float16_cannot_hold_is_refused_by_name(tmp_path: Path, where: str, form: str) -> None:
    model = huge(train_model(), where)
    rr.save(model if form == "train" else rr.fuse(model), tmp_path / "in.npz")
    layer = where.rpartition(".branch")[0] or "linear"
    with pytest.raises(NotFusibleError, match=f"{layer}.*exceeds the range of float16") as caught:
        convert(tmp_path / "in.npz", tmp_path / "m.onnx", dtype="float16")
    assert "65504" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in.npz"]
    assert convert(tmp_path / "in.npz", tmp_path / "m.onnx").dtype == "float32"


def test_outputs_that_may_exceed_float16_are_told(tmp_path: Path) -> None:
    model = train_model()
    name = "stage1.0.branch_3x3.bn"
    model.params[f"{name}.gamma"] = np.full_like(model.params[f"{name}.gamma"], 9e3)
    model.params[f"{name}.running_var"] = np.full_like(model.params[f"{name}.running_var"], 1e6)
    rr.save(model, tmp_path / "train.npz")
    done = convert(tmp_path / "train.npz", tmp_path / "m.onnx", dtype="float16")
    assert any("stage1.0: outputs can exceed float16" in note for note in done.notes)
    done = convert(tmp_path / "train.npz", tmp_path / "m.onnx")
    assert not any("float16" in note for note in done.notes)


def test_the_command_has_both(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rr.save(train_model(), tmp_path / "train.npz")
    arguments = ("convert", "--in", tmp_path / "train.npz", "--out", tmp_path / "m.onnx")
    shown = invoke(capsys, *arguments, "--dtype", "fp16", "--opset", 13, "--json").json()
    assert (shown["dtype"], shown["opset"]) == ("float16", 13)
    assert opset_of(tmp_path / "m.onnx") == (13, 7)
    assert " MB, onnx, float16\n" in invoke(capsys, *arguments, "--dtype", "fp16").out
    assert "no such ONNX opset" in invoke(capsys, *arguments, "--opset", 7).error_line()


def test_saving_as_onnx_writes_the_deploy_form_of_either_form(tmp_path: Path) -> None:
    model = train_model()
    rr.save(model, tmp_path / "a.ONNX", metadata={"dataset": "mine"})
    rr.save(rr.fuse(model), tmp_path / "b.onnx", metadata={"dataset": "mine"})
    assert (tmp_path / "a.ONNX").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    told = {p.key: p.value for p in onnx.load(tmp_path / "b.onnx").metadata_props}
    assert told["form"] == "deploy"
    assert told["dataset"] == "mine"
    assert rr.verify(model, tmp_path / "b.onnx", inputs=images(model)).verdict == "agree"
