"""Weight files are judged tap by tap, without running anything."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.arrays import Array
from repvgg_ref.blocks.fusion import FusedConv
from repvgg_ref.models.network import Model, fuse
from repvgg_ref.oracle.bugs import LAYER_BUGS, Site
from repvgg_ref.oracle.diagnosis import tap_evidence
from repvgg_ref.oracle.programs.distinguishing import distinguishing_model
from repvgg_ref.oracle.programs.layers import block_program
from repvgg_ref.oracle.weights.conversion import Exact
from tests.models.small import SMALL
from weights_io import save_weights

KINDS = ("plain", "grouped", "se-before-relu", "plus")


def _file(model: Model, folder: Path) -> Path:
    path = folder / "port.npz"
    rr.save(model, path)
    return path


def _float32_fusion(model: Model) -> Model:
    """The official script's way: every step in float32, rounded each time."""
    deploy = fuse(model)
    for spec in model.arch.blocks:
        total: Array | None = None
        bias: Array | None = None
        for branch in ("branch_3x3", "branch_1x1", "branch_identity"):
            bn = f"{spec.name}.{branch}.bn"
            if f"{bn}.gamma" not in model.params:
                continue
            gamma, beta, mean, var = (
                model.params[f"{bn}.{field}"]
                for field in ("gamma", "beta", "running_mean", "running_var")
            )
            t = gamma / np.sqrt(var + np.float32(model.eps))
            if branch == "branch_identity":
                kernel = np.zeros_like(deploy.params[f"{spec.name}.fused.weight"])
                rows = np.arange(len(kernel))
                kernel[rows, rows % kernel.shape[1], 1, 1] = 1
            else:
                kernel = model.params[f"{spec.name}.{branch}.conv.weight"]
                if kernel.shape[2] == 1:
                    kernel = np.pad(kernel, ((0, 0), (0, 0), (1, 1), (1, 1)))
            part, shift = (
                kernel * t[:, None, None, None],
                beta - mean * gamma / np.sqrt(var + np.float32(model.eps)),
            )
            total = part if total is None else total + part
            bias = shift if bias is None else bias + shift
        assert total is not None
        assert bias is not None
        deploy.params[f"{spec.name}.fused.weight"] = total
        deploy.params[f"{spec.name}.fused.bias"] = bias
    return deploy


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", KINDS)
def test_both_ways_of_fusing_agree(kind: str, tmp_path: Path) -> None:
    for seed in range(5):
        model = distinguishing_model(SMALL[kind], seed)
        for right in (fuse(model), _float32_fusion(model)):
            report = rr.verify(model, _file(right, tmp_path))
            assert report.verdict == "agree", report.reason


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ulps", [4, -4])
def test_one_tap_off_by_four_ulp_is_found(kind: str, ulps: int, tmp_path: Path) -> None:
    model = distinguishing_model(SMALL[kind])
    rng = np.random.default_rng(0)
    for spec in model.arch.blocks:
        for right in (fuse(model), _float32_fusion(model)):
            weight = right.params[f"{spec.name}.fused.weight"]
            o, i = rng.integers(weight.shape[0]), rng.integers(weight.shape[1])
            row, column = [(0, 0), (0, 1), (1, 2), (2, 2)][rng.integers(4)]
            weight[o, i, row, column] += np.float32(ulps) * np.spacing(weight[o, i, row, column])
            report = rr.verify(model, _file(right, tmp_path))
            assert report.verdict == "disagree"
            assert report.first_bad_layer == spec.name
            assert report.diagnosis[0].bug == "taps-altered", report.reason


_IN_THE_KERNEL = (
    "identity-missing",
    "branch-1x1-missing",
    "eps-value",
    "eps-outside-root",
    "mean-ignored",
    "beta-ignored",
    "bn-of-branches-swapped",
    "branch-1x1-on-wrong-tap",
    "kernel-flipped",
    "kernel-memory-layout",
    "bias-dropped",
    "weights-bf16",
    "weights-int8",
    "identity-group-index",
)


@pytest.mark.few(2)
@pytest.mark.parametrize("bug", _IN_THE_KERNEL)
def test_bugs_of_the_kernel_are_named_from_its_taps(bug: str, tmp_path: Path) -> None:
    model = distinguishing_model(SMALL["grouped"])
    known = next(b for b in LAYER_BUGS if b.name == bug)
    planted = 0
    for spec in model.arch.blocks:
        site = Site(block_program(model, spec), np.zeros((1, spec.in_channels, 8, 8)))
        for variant in known.mutate(site):
            kernel = variant.program.fused_kernel()
            wrong = fuse(model)
            wrong.params[f"{spec.name}.fused.weight"] = kernel.weight.astype(np.float32)
            wrong.params[f"{spec.name}.fused.bias"] = kernel.bias.astype(np.float32)
            report = rr.verify(model, _file(wrong, tmp_path))
            assert report.verdict == "disagree"
            assert report.first_bad_layer == spec.name
            top = report.diagnosis[0]
            assert bug in (top.bug, *top.equivalents), f"{bug} was called {top}"
            planted += 1
            break
    assert planted


def test_another_networks_file_disagrees(tmp_path: Path) -> None:
    other = fuse(distinguishing_model(SMALL["grouped"]))
    report = rr.verify(distinguishing_model(SMALL["plain"]), _file(other, tmp_path))
    assert report.verdict == "disagree"


def test_train_files_are_compared_array_by_array(tmp_path: Path) -> None:
    model = distinguishing_model(SMALL["plain"])
    assert rr.verify(model, _file(model, tmp_path)).verdict == "agree"
    model.params["stage1.1.branch_1x1.bn.beta"] = model.params["stage1.1.branch_1x1.bn.beta"] + 1
    stale = distinguishing_model(SMALL["plain"])
    report = rr.verify(stale, _file(model, tmp_path))
    assert report.verdict == "disagree"
    assert report.first_bad_layer == "stage1.1"


def test_se_and_head_are_copied_not_fused(tmp_path: Path) -> None:
    model = distinguishing_model(SMALL["se-before-relu"])
    for name, layer in {"stage1.1.se.up.bias": "stage1.1", "linear.bias": "linear"}.items():
        wrong = fuse(model)
        wrong.params[name] = wrong.params[name] + np.float32(1e-6)
        report = rr.verify(model, _file(wrong, tmp_path))
        assert report.verdict == "disagree"
        assert report.first_bad_layer == layer


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("layers", [["stage1.0"], ["stage0", "stage1.0", "stage1.1", "linear"]])
def test_numbers_that_are_lost_are_placed(layers: list[str], value: float, tmp_path: Path) -> None:
    model = distinguishing_model(SMALL["plain"])
    deploy = fuse(model)
    for name, array in deploy.params.items():
        if name.startswith(tuple(layers)):
            deploy.params[name] = np.full_like(array, value)
    report = rr.verify(model, _file(deploy, tmp_path))
    assert (report.verdict, report.first_bad_layer) == ("disagree", layers[0])
    assert "NaN or infinite" in report.reason
    assert all(layer.ok for layer in report.layers if layer.name not in layers)


def test_a_kernel_of_another_size_is_another_network(tmp_path: Path) -> None:
    model = distinguishing_model(SMALL["plain"])
    state = fuse(model).state_dict()
    state["stage1.0.rbr_reparam.weight"] = state["stage1.0.rbr_reparam.weight"][:, :, 1:2, 1:2]
    save_weights(tmp_path / "port.npz", state, container="npz")
    report = rr.verify(model, tmp_path / "port.npz")
    assert (report.verdict, "another network" in report.reason) == ("disagree", True)


@pytest.mark.parametrize("kind", ["plain", "grouped"])
@pytest.mark.parametrize("wrong", [1.5, np.nan])
def test_channels_looked_at_one_by_one_say_what_all_together_say(
    kind: str, wrong: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = distinguishing_model(SMALL[kind])
    spec = model.arch.blocks[1]
    program, name = block_program(model, spec), f"{spec.name}.fused"
    params = fuse(model).params
    got = FusedConv(params[f"{name}.weight"].copy(), params[f"{name}.bias"])
    got.weight[2, 1, 0, 2] *= wrong
    together = tap_evidence.distance(program, got, Exact(("fp32", "fp32")))
    monkeypatch.setattr(tap_evidence, "_TOGETHER", 1)
    apart = tap_evidence.distance(program, got, Exact(("fp32", "fp32")))
    seen = tap_evidence.observed(program, got, Exact(("fp32", "fp32")))
    error = np.abs(seen.y_hat - seen.y)
    assert np.array_equal(apart, together, equal_nan=True)
    assert not apart.ok
    assert apart.lost == np.isnan(error).sum()
    assert np.isnan(wrong) or apart.ratio == (error / seen.certified).max()
