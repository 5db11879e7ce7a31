"""`convert` and its files: what it refuses, what it reports, and that refusals leave nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import repvgg_ref as rr
import weights_io
from repvgg_ref.errors import CheckpointError, NotFusibleError
from repvgg_ref.files.convert import convert
from repvgg_ref.models.registry import network
from tests.files.checkpoint_files import SMALL, small_model, small_state, written
from tests.random_networks import random_model


def test_a_fused_file_is_rewritten_and_said_to_be_so(tmp_path: Path) -> None:
    deploy = rr.fuse(small_model())
    rr.save(deploy, tmp_path / "d.pth")
    done = convert(tmp_path / "d.pth", tmp_path / "again.npz")
    assert (done.form, done.self_check) == ("deploy", None)
    for name, array in rr.load(tmp_path / "again.npz").params.items():
        np.testing.assert_array_equal(array, deploy.params[name], strict=True)


def test_metadata_never_claims_an_eps_that_nobody_knows(tmp_path: Path) -> None:
    source = written(tmp_path, small_state())
    fused = convert(source, tmp_path / "a.npz", eps=1e-3).out
    again = convert(fused, tmp_path / "b.safetensors").out
    through_torch = convert(convert(fused, tmp_path / "c.pth").out, tmp_path / "d.npz").out
    bare = written(tmp_path, rr.fuse(small_model()).state_dict())
    unknown = convert(bare, tmp_path / "e.npz").out
    for path, eps in (
        (fused, "0.001"),
        (again, "0.001"),
        (through_torch, "0.001"),
        (unknown, None),
    ):
        with weights_io.open_weights(path) as archive:
            assert archive.metadata.get("eps") == eps


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("stage1.1.rbr_dense.bn.running_var", -1e-3, "running_var is negative"),
        ("stage1.1.rbr_identity.running_var", -1.0, "branch_identity: running_var is negative"),
        ("stage1.1.rbr_dense.conv.weight", np.nan, "NaN or infinity"),
        ("stage1.1.rbr_1x1.conv.weight", np.inf, "NaN or infinity"),
        ("stage2.0.rbr_1x1.bn.weight", -np.inf, "NaN or infinity"),
        ("stage2.0.rbr_dense.bn.running_mean", np.nan, "NaN or infinity"),
        ("stage2.0.rbr_dense.bn.running_var", np.nan, "NaN or infinity"),
        ("linear.bias", np.nan, "NaN or infinity"),
        ("stage0.rbr_dense.bn.weight", 3e38, "exceeds the range of float32"),
    ],
)
def test_bad_numbers_are_refused_by_layer_and_nothing_is_written(
    tmp_path: Path, name: str, value: float, said: str
) -> None:
    state = {n: a.copy() for n, a in small_state().items()}
    state[name].flat[0] = value
    state["stage0.rbr_dense.bn.running_var"].flat[0] = 1e-4
    path = written(tmp_path, state)
    with pytest.raises((CheckpointError, NotFusibleError), match=said) as caught:
        convert(path, tmp_path / "out.npz")
    assert name.split(".rbr_")[0] in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_bad_numbers_in_a_fused_file_are_refused(tmp_path: Path, value: float) -> None:
    state = {n: a.copy() for n, a in rr.fuse(small_model()).state_dict().items()}
    state["stage1.0.rbr_reparam.weight"].flat[7] = value
    path = written(tmp_path, state)
    with pytest.raises(
        CheckpointError, match=r"stage1\.0\.rbr_reparam\.weight holds NaN or infinity"
    ):
        convert(path, tmp_path / "out.npz")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_convert_refuses_before_it_reads(tmp_path: Path) -> None:
    path = written(tmp_path, small_state())
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: convert(path, tmp_path / "x.bin"), "says nothing about its format"),
        (lambda: convert(path, path, to="npz"), "overwrite the input"),
        (lambda: convert(path, tmp_path / "no" / "x.npz"), "folder does not exist"),
        (lambda: convert(path, tmp_path / "x.npz", batch=1), "only an ONNX file"),
    ]
    for attempt, said in cases:
        with pytest.raises(CheckpointError, match=said):
            attempt()
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_convert_reports_what_it_did(tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    done = convert(written(tmp_path, small_state()), progress=lambda *step: steps.append(step))
    assert done.out == tmp_path / "file-deploy.npz"
    assert (done.model, done.dialect, done.container) == ("custom", "official", "torch-zip")
    assert (done.form, done.format, done.tensors) == ("train", "npz", 2 * 6 + 2)
    assert done.self_check is not None
    assert done.self_check.ok
    assert steps == [(name, i, 7) for i, name in enumerate(SMALL.layer_names, start=1)]
    with weights_io.open_weights(done.out) as archive:
        assert archive.metadata["model"] == "custom"
        assert archive.metadata["form"] == "deploy"
        assert isinstance(archive.root, dict)
        assert "stage1.0.rbr_reparam.weight" in archive.root


def test_float64_weights_stay_float64(tmp_path: Path) -> None:
    model = random_model(SMALL, 1, np.float64)
    done = convert(written(tmp_path, model.state_dict()), tmp_path / "d.npz")
    fused, want = rr.load(done.out), rr.fuse(model)
    for name, array in want.params.items():
        np.testing.assert_array_equal(fused.params[name], array, strict=True)


def test_a_network_that_is_no_chain_is_saved_loaded_and_converted(tmp_path: Path) -> None:
    arch = network("ResNet-18", num_classes=3)
    model = random_model(arch, 1)
    rr.save(model, tmp_path / "m.npz")
    done = convert(tmp_path / "m.npz", tmp_path / "d.npz")
    assert (done.model, done.form, done.tensors) == ("ResNet-18", "train", 42)
    assert done.self_check is not None
    assert done.self_check.ok
    fused, want = rr.load(tmp_path / "d.npz"), rr.fuse(model)
    assert fused.arch == arch
    assert list(fused.params) == list(want.params)
    for name, array in want.params.items():
        np.testing.assert_array_equal(fused.params[name], array, strict=True)
    state = model.state_dict()
    name = next(name for name in state if name.startswith("layer2.0.conv1."))
    weights_io.save_weights(
        tmp_path / "m.npz", state | {name: state[name][:, :-1]}, container="npz"
    )
    with pytest.raises(CheckpointError, match=f"^{re.escape(name)} has the wrong"):
        rr.load(tmp_path / "m.npz")
