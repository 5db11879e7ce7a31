"""Residual Reorg (the paper's Table 7): its layers, names and files, and why it is not fused."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.arrays import Array
from repvgg_ref.errors import CheckpointError, NotFusibleError, ReportedError, ShapeError
from repvgg_ref.files.convert import convert
from repvgg_ref.files.inspect import inspect_file
from repvgg_ref.models.architectures import plain_architecture
from repvgg_ref.models.cost import cost
from repvgg_ref.models.graph import Graph
from repvgg_ref.models.parameters import is_trainable
from repvgg_ref.models.registry import network
from repvgg_ref.models.residual_reorg import residual_reorg
from tests.models.small import batch, distinct_model

KIND = "residual-reorg"


def small(groups: int = 1) -> Graph:
    chain = plain_architecture(
        depths=[2, 4, 1], channels=[4, 4, 6, 8], groups=groups, num_classes=5, in_channels=2
    )
    return residual_reorg(chain)


def test_b0_has_the_layers_of_the_table() -> None:
    """Stages of 2, 3 and 8 blocks between two layers; stride 2 and a projection where one begins.

    A projection in stage 2 as well, whose width is its input's: 14,384,552 parameters.
    """
    arch = network("RepVGG-B0", block=KIND)
    counted = cost(arch)
    assert (counted.params_train, counted.params_deploy) == (14_391_464, 14_384_552)
    names = [spec.name for spec in arch.blocks]
    for stage, blocks in ((1, 2), (2, 3), (3, 8)):
        ours = [name for name in names if name.startswith(f"stage{stage}.")]
        assert sum(name.endswith(".conv2") for name in ours) == blocks
        assert [name for name in ours if name.endswith("downsample")] == [
            f"stage{stage}.0.downsample"
        ]
    assert (names[0], names[-1]) == ("stage0", "stage4.0")
    strides = {spec.name: spec.stride for spec in arch.blocks if spec.stride == 2}
    assert set(strides) == {"stage0", "stage4.0"} | {
        f"stage{n}.0.{layer}" for n in (1, 2, 3) for layer in ("downsample", "conv1")
    }


def test_keys_are_those_of_the_contract() -> None:
    keys = list(rr.build("RepVGG-A0", block=KIND).state_dict())
    parts = {key.rpartition(".")[0].partition(".")[2] for key in keys if key.startswith("stage2")}
    leaves = ("conv1", "bn1", "conv2", "bn2")
    assert parts == {
        *(f"{index}.{leaf}" for index in (0, 1) for leaf in leaves),
        "0.downsample.0",
        "0.downsample.1",
    }
    assert {key.rpartition(".")[0] for key in keys if key.startswith(("stage0", "stage4"))} == {
        f"{start}.rbr_dense.{leaf}" for start in ("stage0", "stage4.0") for leaf in ("conv", "bn")
    }
    assert keys[-2:] == ["linear.weight", "linear.bias"]


def test_an_odd_number_of_layers_is_rounded_up() -> None:
    chain = plain_architecture(depths=[1, 3, 2], channels=[4, 4, 6, 8], num_classes=3)
    names = [spec.name for spec in residual_reorg(chain).blocks]
    assert sum(name.startswith("stage2.") and ".conv" in name for name in names) == 4
    assert [name for name in names if name.startswith("stage3")] == ["stage3.0", "stage3.1"]


def test_gradients_by_finite_differences() -> None:
    """Along a direction for every array, and running statistics as the norms saw the batch."""
    model = distinct_model(small(groups=2))
    x, labels = batch(model.arch, count=3)
    grads = model.loss_and_grads(x, labels, backend="reference").grads
    state, rng = dict(model.state_dict()), np.random.default_rng(5)
    assert grads.keys() == {name for name in state if is_trainable(name)}
    for name in [key for key in grads if "stage1" in key or key.startswith("stage0")]:
        direction = rng.standard_normal(state[name].shape)
        losses = []
        for step in (1e-6, -1e-6):
            model.load_state_dict({name: state[name] + step * direction})
            losses.append(float(model.loss_and_grads(x, labels, backend="reference").loss))
        model.load_state_dict({name: state[name]})
        numeric = (losses[0] - losses[1]) / 2e-6
        along = float((grads[name] * direction).sum())
        assert not abs(numeric - along) > 1e-7 * max(1.0, float(np.abs(grads[name]).sum())), name


@pytest.mark.parametrize("groups", [1, 2])
def test_the_fast_table_agrees_with_the_reference(groups: int) -> None:
    model = distinct_model(small(groups))
    x, labels = batch(model.arch, count=3)
    want = model.loss_and_grads(x, labels, backend="reference")
    got = model.loss_and_grads(x, labels, backend="numpy")
    assert got.loss == pytest.approx(want.loss, rel=1e-12)
    for ours, theirs in ((got.grads, want.grads), (got.stats, want.stats)):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert_near(ours[key], value)
    logits = model.forward(x, backend="reference")
    assert_near(model.forward(x, backend="numpy"), logits)
    assert_near(rr.fold_norms(model).forward(x, backend="numpy"), logits)


def assert_near(got: Array, wanted: Array) -> None:
    assert not np.abs(got - wanted).max() > 1e-9 * max(1e-3, float(np.abs(wanted).max()))


@pytest.mark.parametrize("suffix", ["npz", "pth", "safetensors"])
@pytest.mark.parametrize("folded", [False, True])
def test_its_files_are_told_from_their_keys(tmp_path: Path, suffix: str, folded: bool) -> None:
    model = distinct_model(small(groups=2), dtype=np.float32)
    model = rr.fold_norms(model) if folded else model
    rr.save(model, tmp_path / f"m.{suffix}")
    loaded = rr.load(tmp_path / f"m.{suffix}", block=KIND if suffix == "pth" else "auto")
    assert (loaded.block, loaded.form) == (KIND, model.form)
    assert loaded.arch.nodes == model.arch.nodes
    for name, array in model.params.items():
        np.testing.assert_array_equal(loaded.params[name], array)


def test_an_official_one_is_called_so(tmp_path: Path) -> None:
    rr.save(rr.build("RepVGG-A0", block=KIND), tmp_path / "m.npz")
    assert rr.load(tmp_path / "m.npz").name == "RepVGG-A0"
    with pytest.raises(CheckpointError, match="not those of a RepVGG-B0 of residual-reorg blocks"):
        rr.load(tmp_path / "m.npz", model="RepVGG-B0")
    with pytest.raises(CheckpointError, match=r"has other blocks \(got keys of residual-reorg"):
        rr.load(tmp_path / "m.npz", block="repvgg")
    rr.save(rr.build("RepVGG-A0", block=KIND, num_classes=7), tmp_path / "seven.npz")
    found = inspect_file(tmp_path / "seven.npz")
    assert any("the blocks are those of RepVGG-A0" in f.message for f in found.findings)


@pytest.mark.parametrize(
    ("left_out", "says"),
    [
        ("stage1.0.conv1.weight", "stage1.0.conv1.weight is missing"),
        ("stage2.1.conv2.weight", "stage2.1.conv2.weight is missing"),
        ("stage2.1.bn2.weight", "1 missing: stage2.1.bn2.weight"),
        ("linear.weight", "linear.weight is missing"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, left_out: str, says: str) -> None:
    state = distinct_model(small(), dtype=np.float32).state_dict()
    del state[left_out]
    np.savez(tmp_path / "m.npz", **state)  # type: ignore[arg-type]  # NumPy's stub means its flag
    with pytest.raises(CheckpointError) as caught:
        rr.load(tmp_path / "m.npz")
    assert says in str(caught.value)


def test_fusion_is_refused_with_reason_and_place(tmp_path: Path) -> None:
    model = distinct_model(small(), dtype=np.float32)
    rr.save(model, tmp_path / "train.npz")
    for call in (
        lambda: rr.fuse(model),
        lambda: convert(tmp_path / "train.npz", tmp_path / "deploy.npz"),
        lambda: rr.save(model, tmp_path / "model.onnx"),
    ):
        with pytest.raises(NotFusibleError, match=r"stage1\.0: its shortcut spans two"):
            call()
    assert [path.name for path in tmp_path.iterdir()] == ["train.npz"]
    (found,) = [f for f in inspect_file(tmp_path / "train.npz").findings if f.level == "warning"]
    assert found.message.startswith("it cannot be fused: stage1.0: its shortcut spans two")


def test_its_batch_norms_fold_exactly() -> None:
    """Each folded convolution is its block, to the last bit of one rounding."""
    model = distinct_model(small())
    folded = rr.fold_norms(model)
    x, _ = batch(model.arch, count=2)
    pairs = (each.forward(x, backend="reference", layers=True) for each in (model, folded))
    first, second = pairs
    assert first.keys() == second.keys()
    for name, y in first.items():
        assert_near(second[name], y)
    with pytest.raises(NotFusibleError):
        rr.fold_norms(folded)
    with pytest.raises(ReportedError, match="takes a Model"):
        rr.fold_norms("RepVGG-A0")  # type: ignore[arg-type]  # what people do


@pytest.mark.parametrize("name", ["RepVGG-D2se", "RepVGGplus-L2pse"])
def test_networks_with_more_than_layers_are_refused(name: str) -> None:
    with pytest.raises(ShapeError, match="squeeze-and-excitation"):
        rr.build(name, block=KIND)


def test_stages_follow_one_another_in_order() -> None:
    arch = network("RepVGG-B0", block=KIND)
    widths = [spec.out_channels for spec in arch.blocks]
    assert all(before <= after for before, after in pairwise(widths))
