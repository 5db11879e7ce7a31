"""What attackers who had seen the documents alone found, one case of each kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.arrays import Array
from repvgg_ref.files.checkpoint import load, save
from repvgg_ref.files.inspect import inspect_file
from repvgg_ref.models.architectures import plain_architecture
from repvgg_ref.models.layers import AddRelu
from repvgg_ref.models.mobileone import mobileone
from repvgg_ref.models.registry import network
from repvgg_ref.ops import REFERENCE
from repvgg_ref.oracle.programs.distinguishing import distinguishing_model
from repvgg_ref.oracle.programs.inputs import distinguishing_inputs
from repvgg_ref.oracle.programs.layers import Programs
from repvgg_ref.oracle.programs.program import layer_output
from tests.oracle.graphs.ports import MODEL, RIGHT, X


@pytest.mark.slow
def test_a_wrong_dbb_port_is_judged_although_its_file_says_no_dilations(tmp_path: Path) -> None:
    arch = plain_architecture(depths=[2, 1], channels=[4, 4, 8], num_classes=3, kind="dbb")
    model = distinguishing_model(arch)
    np.savez(tmp_path / "bare.npz", **model.state_dict())  # type: ignore[arg-type]  # no metadata
    x = distinguishing_inputs(arch, height=36, width=32)
    port = dict(model.forward(x, layers=True))
    port["stage1.1"] = np.abs(port["stage1.1"] - np.float32(0.1))
    report = rr.verify(load(tmp_path / "bare.npz", block="dbb"), port, inputs=x)
    assert (report.verdict, report.first_bad_layer) == ("disagree", "stage1.1")


@pytest.mark.parametrize("name", ["ResNet-50", "RegNetX-3.2GF"])
def test_a_residual_sum_is_of_the_branch_and_the_shortcut_in_this_order(name: str) -> None:
    sums = [node for node in network(name).nodes if isinstance(node.op, AddRelu)]
    assert sums
    for node in sums:
        block = node.name.removesuffix(".add")
        last, shortcut = node.inputs
        assert last.startswith(f"{block}.")
        assert shortcut in (f"{block}.proj", f"{block}.downsample") or not shortcut.startswith(
            f"{block}."
        )


def test_a_pspnet_in_train_form_is_inspected(tmp_path: Path) -> None:
    save(MODEL, tmp_path / "net.pth")
    assert inspect_file(tmp_path / "net.pth").form == "train"


@pytest.mark.parametrize("hidden", ["stage3.0", "ppm"])
def test_wrong_logits_are_seen_beside_some_of_the_layers(hidden: str) -> None:
    shown = {n: y for n, y in RIGHT.items() if n.startswith("stage") and n != hidden}
    logits: Array = -RIGHT["logits"]
    report = rr.verify(MODEL, shown | {"logits": logits}, inputs=X)
    assert report.verdict == "disagree"


def port_of(model: Any, x: Array) -> dict[str, Array]:
    """MobileOne in float32 as torch computes it: every branch, and its batch norm, by itself."""
    outputs, y = {}, x.astype(np.float32)
    for spec in model.arch.blocks:
        total = np.zeros((), np.float32)
        for name in ("branch_scale", "branch_skip", *(f"branch_kxk.{i}" for i in range(4))):
            base = f"{spec.name}.{name}"
            if f"{base}.bn.gamma" not in model.params:
                continue
            z = y
            if f"{base}.conv.weight" in model.params:
                weight = model.params[f"{base}.conv.weight"]
                half = weight.shape[2] // 2
                how: Any = {"stride": spec.stride, "padding": half, "dilation": 1}
                how |= {"groups": spec.groups}
                z = REFERENCE.conv2d_forward(y, weight, None, **how)[0].astype(np.float32)
            gamma, beta, mean, var = (
                model.params[f"{base}.bn.{part}"][:, None, None]
                for part in ("gamma", "beta", "running_mean", "running_var")
            )
            total = total + ((z - mean) / np.sqrt(var + np.float32(1e-5)) * gamma + beta)
        y = outputs[spec.name] = np.maximum(total, 0).astype(np.float32)
    pooled = y.mean(axis=(2, 3))
    weight, bias = (model.params[f"linear.{part}"] for part in ("weight", "bias"))
    return outputs | {"linear": (pooled @ weight.T + bias).astype(np.float32)}


@pytest.mark.few(1)
@pytest.mark.parametrize("seed", [0, 1])
def test_blocks_of_many_branches_are_estimated(seed: int) -> None:
    """Right ports agree, fused or not; outputs off by 3e-6, far within the bound, do not."""
    arch = mobileone(
        "M", widths=(0.25, 0.25, 0.3, 0.2), copies=4, gates=(0,) * 4, depths=(1, 1, 2, 1)
    )
    x = distinguishing_inputs(arch, batch=2, height=40, width=32, seed=seed)
    model = distinguishing_model(arch, seed, x=x)
    assert len(Programs(model)["stage1.0"].branches) > 3
    for right in (port_of(model, x), rr.fuse(model).forward(x, layers=True)):
        report = rr.verify(model, right, inputs=x)
        assert report.verdict == "agree", report.reason
        assert all(layer.detects for layer in report.layers)

    def wrong(layer: str) -> dict[str, Array]:
        found, y = {}, x
        for name, program in Programs(model).items():
            y = layer_output(program, y.astype(np.float64)).astype(np.float32)
            y = found[name] = y * np.float32(1 + 3e-6) if name == layer else y
        return found

    report = rr.verify(model, wrong("stage2.1"), inputs=x)
    assert report.first_bad_layer == "stage2.1"
    assert report.diagnosis[0].bug == "outputs-scaled"


@pytest.mark.slow
def test_branches_that_cancel_are_no_scaled_channel() -> None:
    model = rr.build("MobileOne-S0", seed=0, num_classes=10)
    rng = np.random.default_rng(0)
    for name, array in model.params.items():
        for part, low, high in (("running_var", 0.5, 2.0), ("gamma", 0.3, 0.8)):
            if name.endswith(f"bn.{part}"):
                model.params[name] = rng.uniform(low, high, array.shape).astype(np.float32)
        if name.endswith(("bn.running_mean", "bn.beta")):
            model.params[name] = rng.normal(0, 0.2, array.shape).astype(np.float32)
    x = rng.standard_normal((2, 3, 64, 64)).astype(np.float32)
    report = rr.verify(model, port_of(model, x), inputs=x)
    assert report.verdict == "agree", report.reason
