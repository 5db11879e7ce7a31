"""Right weight files of every arithmetic agree, and one number that is off is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.arrays import Array
from repvgg_ref.models.architectures import plain_architecture
from repvgg_ref.models.network import Model, fuse
from repvgg_ref.oracle.programs.distinguishing import distinguishing_model
from repvgg_ref.oracle.render import assertion_text, render_html
from tests.models.small import SMALL
from tests.oracle.weights.converters import DIRECTED, FLOAT32, FLOAT64, RIGHT, Converter, kept
from tests.oracle.weights.test_arithmetic import on_x86


def test_every_report_says_what_a_file_cannot_show(tmp_path: Path) -> None:
    """Right and wrong, fused and not: in text, JSON and HTML."""
    model = distinguishing_model(SMALL["plain"])
    wrong = rr.fuse(model)
    wrong.params["linear.bias"][0] += 1
    for port in (rr.fuse(model), wrong, model):
        report = verdict(model, port, tmp_path)
        assert report.verdict == ("disagree" if port is wrong else "agree")
        (said,) = (note for note in report.notes if note.startswith("not tested: "))
        assert "padding" in said
        assert ("nor eps" in said) == (port is model)
        assert said in report.to_json()["notes"]
        assert "not tested: what" in render_html(report)
        assert "not tested: what" in " ".join(assertion_text(report).split())


BLOCKS = ("acb", "mobileone", "post-addition-bn", "identity-without-bn", "plain")
_WAYS = {way.name: way for way in RIGHT}


def verdict(model: Model, port: Model, folder: Path, **more: Any) -> Any:
    path = folder / "port.npz"
    rr.save(port, path)
    return rr.verify(model, path, **more)


@on_x86
@pytest.mark.few(4)
@pytest.mark.parametrize("kind", ["grouped", "plus"])
@pytest.mark.parametrize("name", _WAYS)
def test_every_right_order_agrees(name: str, kind: str, tmp_path: Path) -> None:
    model = distinguishing_model(SMALL[kind], 3)
    report = verdict(model, _WAYS[name].converted(model), tmp_path)
    assert report.verdict == "agree", report.reason
    if "2 ulp" not in name:
        assert any(told in report.reason for told in ("bit for bit", "the exact fusion, rounded"))
    assert any("smallest error" in note for note in report.notes)


@pytest.mark.few(3)
@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("way", [FLOAT32[0], FLOAT32[10], FLOAT64[0]], ids=lambda way: way.name)
def test_every_block_agrees(kind: str, way: Converter, tmp_path: Path) -> None:
    arch = plain_architecture(depths=[2], channels=[4, 6], num_classes=3, in_channels=3, kind=kind)
    model = distinguishing_model(arch)
    report = verdict(model, way.converted(model), tmp_path)
    assert report.verdict == "agree", report.reason


@pytest.mark.few(1)
@pytest.mark.parametrize("stored", ["fp16", "bf16"])
def test_sixteen_bits_are_named_and_held_to_what_is_asked(stored: str, tmp_path: Path) -> None:
    model = distinguishing_model(SMALL["se-before-relu"])
    port = FLOAT32[0].converted(model, stored)
    free = verdict(model, port, tmp_path)
    assert free.verdict == "agree", free.reason
    assert any(f"hold {'b' * (stored == 'bf16')}float16" in note for note in free.notes)
    assert verdict(model, port, tmp_path, precision=stored).verdict == "agree"
    for finer in ("fp32",) if stored == "fp16" else ("fp32", "fp16"):
        held = verdict(model, port, tmp_path, precision=finer)
        assert held.verdict == "disagree"
    weight = port.params["stage1.0.fused.weight"]
    weight[1, 2, 0, 1] *= np.float32(1 + 2.0**-6)
    port.params["stage1.0.fused.weight"] = kept(weight, stored)
    report = verdict(model, port, tmp_path)
    assert report.first_bad_layer == "stage1.0"
    assert report.diagnosis[0].bug == "taps-altered"


def test_float64_files_are_held_to_its_rounding(tmp_path: Path) -> None:
    small = distinguishing_model(SMALL["plain"])
    params = {n: a.astype(np.float64) if a.ndim else a for n, a in small.params.items()}
    model = Model(small.arch, "train", params, small.eps)
    for port in (fuse(model), FLOAT64[0].converted(model, "fp64")):
        report = verdict(model, port, tmp_path)
        assert report.verdict == "agree", report.reason
        assert "float64" in " ".join((report.reason, *report.notes))
        weight = port.params["stage2.0.fused.weight"] = port.params["stage2.0.fused.weight"].copy()
        weight[3, 1, 2, 0] += 64 * np.spacing(weight[3, 1, 2, 0])
        assert verdict(model, port, tmp_path).first_bad_layer == "stage2.0"


@on_x86
@pytest.mark.few(3)
@pytest.mark.parametrize("way", [FLOAT32[2], FLOAT32[12], DIRECTED[1]], ids=lambda way: way.name)
@pytest.mark.parametrize("at", [(5, 3, 0, 2), (5, 3, 1, 1), (7, 7, 1, 1)])
def test_four_ulp_are_found_where_the_order_is_known(
    way: Converter, at: tuple[int, ...], tmp_path: Path
) -> None:
    model = distinguishing_model(SMALL["plus"], 1)
    port = way.converted(model)
    weight = port.params["stage3.1.fused.weight"]
    weight[at] += 4 * np.spacing(weight[at])
    report = verdict(model, port, tmp_path)
    assert report.first_bad_layer == "stage3.1", report.reason
    assert report.diagnosis[0].bug == "taps-altered"
    assert str(list(at)) in report.diagnosis[0].says


@pytest.mark.parametrize("stored", ["fp32", "bf16"])
def test_one_wrong_tap_does_not_hide_the_format_of_the_others(stored: str, tmp_path: Path) -> None:
    model = distinguishing_model(SMALL["plain"], 1)
    port = FLOAT32[0].converted(model, stored)
    params = {n: a.astype(np.float64) if a.ndim else a for n, a in port.params.items()}
    port = Model(port.arch, "deploy", params, port.eps)
    assert verdict(model, port, tmp_path).verdict == "agree"
    params["stage2.0.fused.weight"][1, 2, 0, 1] *= 1.05  # a float64
    report = verdict(model, port, tmp_path)
    assert [layer.name for layer in report.layers if not layer.ok] == ["stage2.0"]
    assert report.diagnosis[0].bug == "taps-altered"


def test_a_scaled_channel_and_a_fitted_eps_are_named(tmp_path: Path) -> None:
    model = distinguishing_model(SMALL["grouped"])
    port = FLOAT32[0].converted(model)
    for part in ("weight", "bias"):
        array: Array = port.params[f"stage1.1.fused.{part}"]
        array[2] *= np.float32(1 + 1e-5)
    report = verdict(model, port, tmp_path)
    assert report.first_bad_layer == "stage1.1"
    assert report.diagnosis[0].bug == "channel-scaled"
    other = Model(model.arch, "train", model.params, 1.1e-5)
    report = verdict(model, FLOAT32[0].converted(other), tmp_path)
    assert report.diagnosis[0].bug == "eps-value"
    assert report.diagnosis[0].estimate == pytest.approx(1.1e-5, rel=1e-3)
