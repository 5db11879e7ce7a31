"""Heads of other names, heads of more than a matrix, and backbones without a head."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.files.inspect import inspect_file
from repvgg_ref.models.network import Model
from tests.files.checkpoint_files import SMALL, State, small_model, small_state, written
from tests.files.wrapped_files import LOSS, ONE, assert_is, behind, refusal, renamed

HEADS = ("fc.", "classifier.", "linear.1.", "head.", "head.fc.", "cls_head.layers.2.", "classif.0.")


@pytest.mark.few
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_head_of_any_name_is_read(tmp_path: Path, head: str, prefix: str) -> None:
    state = behind(prefix, renamed(small_state(), {"linear.": head}))
    model = rr.load(written(tmp_path, state))
    assert_is(model)
    assert any("head is called" in note for note in model.notes) or head == "head.fc."


@pytest.mark.few
@pytest.mark.parametrize("prefix", ["backbone.", "model.backbone.", "model._orig_mod."])
@pytest.mark.parametrize("head", ["fc.", "model.classifier.1.", "head.fc."])
def test_a_head_beside_the_backbone_is_read(tmp_path: Path, prefix: str, head: str) -> None:
    blocks = {n: a for n, a in small_state().items() if not n.startswith("linear.")}
    ends = {n.replace("linear.", head): a for n, a in small_state().items() if "linear." in n}
    assert_is(rr.load(written(tmp_path, behind(prefix, blocks) | ends | LOSS)))


def test_a_head_that_is_a_convolution_is_a_matrix(tmp_path: Path) -> None:
    state = renamed(small_state(), {"linear.": "classifier.1."})
    state["classifier.1.weight"] = state["classifier.1.weight"].reshape(5, 6, 1, 1)
    assert_is(rr.load(written(tmp_path, state)))


def test_a_margin_losss_matrix_is_no_head(tmp_path: Path) -> None:
    state = behind("net.", renamed(small_state(), {"linear.": "fc."}))
    state["criterion.arcface.weight"] = np.ones((50, 6), np.float32)
    assert_is(rr.load(written(tmp_path, state)))


HIDDEN = np.ones((8, 6), np.float32)
MORE: dict[str, tuple[State, str]] = {
    "two matrices": ({"fc2.weight": HIDDEN}, "several matrices could be it (got "),
    "a second layer": ({"head.2.weight": np.ones((3, 5), np.float32)}, "head.2.weight"),
    "a norm before it": ({"neck.weight": ONE[:6], "neck.bias": ONE[:6]}, "neck.weight"),
}


@pytest.mark.parametrize("case", MORE)
@pytest.mark.parametrize("prefix", ["", "net."])
def test_a_head_of_more_than_a_matrix_is_refused(tmp_path: Path, case: str, prefix: str) -> None:
    """Inside the network, or beside it, where other arrays may be left out."""
    more, match = MORE[case]
    blocks = {n: a for n, a in small_state().items() if not n.startswith("linear.")}
    head = {n.replace("linear.", "head.0."): a for n, a in small_state().items() if "linear" in n}
    assert match in refusal(written(tmp_path, behind(prefix, blocks) | head | more))


# ------------------------------------------------------------------------------ no head


def _backbone(model: Model) -> State:
    return {n: a for n, a in model.state_dict().items() if not n.startswith("linear.")}


@pytest.mark.parametrize("form", ["train", "deploy"])
@pytest.mark.parametrize("prefix", ["", "model.backbone."])
def test_a_backbone_gives_the_mean_of_its_features(tmp_path: Path, form: str, prefix: str) -> None:
    whole = small_model() if form == "train" else rr.fuse(small_model())
    path = written(tmp_path, behind(prefix, _backbone(whole)))
    model = rr.load(path)
    assert (model.form, model.arch.num_classes) == (form, 0)
    assert_is(model, _backbone(whole))
    assert any("backbone" in note for note in model.notes)
    x = np.random.default_rng(0).normal(size=(2, 3, 16, 16))
    features = whole.forward(x, layers=True)["stage2.2"].mean((2, 3))
    np.testing.assert_allclose(model.forward(x), features, rtol=1e-12, atol=1e-12)
    assert inspect_file(path).missing == ()


def test_a_backbone_is_fused_as_a_network_is(tmp_path: Path) -> None:
    from repvgg_ref.files.convert import convert

    path = written(tmp_path, _backbone(small_model()))
    wanted = {n: a for n, a in rr.fuse(small_model()).state_dict().items() if "linear" not in n}
    for kind in ("npz", "safetensors", "pth"):
        done = convert(path, tmp_path / f"fused.{kind}")
        assert done.self_check is not None
        assert done.self_check.ok
        assert_is(rr.load(tmp_path / f"fused.{kind}"), wanted)
    assert_is(rr.fuse(rr.load(path)), wanted)


def test_half_a_head_is_no_backbone(tmp_path: Path) -> None:
    for kept in ("linear.weight", "linear.bias"):
        state = _backbone(small_model()) | {kept: small_state()[kept]}
        assert "linear." in refusal(written(tmp_path, state))


@pytest.mark.parametrize("head", ["fc.", "classifier.1."])
def test_a_head_without_a_bias_has_a_bias_of_zeros(tmp_path: Path, head: str) -> None:
    weight = small_state()["linear.weight"]
    model = rr.load(written(tmp_path, _backbone(small_model()) | {f"{head}weight": weight}))
    assert_is(model, small_state() | {"linear.bias": np.zeros(len(weight), np.float32)})
    assert any("no bias" in note for note in model.notes)
    assert rr.fuse(model).form == "deploy"


def test_a_backbone_is_told_by_its_blocks(tmp_path: Path) -> None:
    assert rr.load(written(tmp_path, _backbone(small_model()))).arch.blocks == SMALL.blocks


def repvit(*, norm: bool = True) -> Model:
    """A RepViT whose head's norm does something."""
    model = rr.build("RepViT-M0.9", num_classes=3, seed=0)
    rng = np.random.default_rng(0)
    for name in model.params:
        if norm and name.startswith("linear.bn.") and not name.endswith("num_batches_tracked"):
            model.params[name] = rng.uniform(0.5, 2, model.params[name].shape).astype(np.float32)
    return model


@pytest.mark.few(1)
@pytest.mark.parametrize("prefix", ["", "model."])
def test_blocks_fused_and_a_head_that_kept_its_norm_are_read(tmp_path: Path, prefix: str) -> None:
    model = repvit()
    fused = rr.fuse(model)
    head = "classifier."
    state = {n: a for n, a in fused.state_dict().items() if not n.startswith(head)}
    state |= {n: a for n, a in model.state_dict().items() if n.startswith(head)}
    found = rr.load(written(tmp_path, behind(prefix, state)))
    assert (found.form, found.name) == ("deploy", "RepViT-M0.9")
    assert any("kept its batch norm" in note for note in found.notes)
    for name, array in fused.params.items():
        np.testing.assert_array_equal(found.params[name], array)
    assert found.assumed.eps == 1e-5  # of the head: no other can be taken for the blocks
    other = rr.load(written(tmp_path, behind(prefix, state)), eps=1e-2)
    apart = (
        other.params["linear.weight"] - rr.fuse(replace(model, eps=1e-2)).params["linear.weight"]
    )
    assert not np.any(apart)
    assert other.assumed.eps is None
    gone = {n: a for n, a in state.items() if not n.endswith("bn.running_var")}
    with pytest.raises(rr.ReportedError, match="no branch or batch norm"):
        rr.load(written(tmp_path, behind(prefix, gone)))
