"""Fused files of a detector, right and wrong, without torch; each case was judged wrong once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weights_io
from repvgg_ref.files.convert_modules import convert_modules
from repvgg_ref.oracle.families.family import judge_family
from repvgg_ref.oracle.report import Report
from tests.files.test_modules import by_hand, detector, norm, saved

TAIL = np.linspace(-3.3, 3.3, 9, dtype=np.float32)


PARTS = "weight", "bias"
KERNEL, BIAS = "neck.0.conv.weight", "neck.0.conv.bias"


def trained() -> dict[str, Any]:
    return detector() | {"tail.bias": TAIL}


def fused() -> dict[str, Any]:
    """The file's right deploy form, made by hand."""
    state = trained()
    made = {key: a for key, a in state.items() if not key.startswith("neck")}
    for place in (0, 1):
        name = f"neck.{place}"
        kernel, bias = by_hand(state, name, 1e-5)
        made |= {f"{name}.conv.weight": kernel, f"{name}.conv.bias": bias}
        made[f"{name}.after"] = state[f"{name}.after"]
    return made | {k: a.astype(np.float32) for k, a in made.items() if a.dtype == np.float64}


def floats(state: dict[str, Any], dtype: Any) -> dict[str, Any]:
    return {k: a.astype(dtype) if a.dtype.kind == "f" else a for k, a in state.items()}


def judged(folder: Path, candidate: dict[str, Any], reference: dict[str, Any]) -> Report:
    target = folder / "fused.npz"
    weights_io.save_weights(target, candidate, container="npz")
    return judge_family(saved(folder, reference), target)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"neck.0.conv.bias": fused()["neck.0.conv.bias"].astype(np.float16)},
        {"neck.0.after": np.array([0], np.uint8)},
        {"neck.0.bn.num_batches_tracked": np.array(7)},
    ],
    ids=["as it is", "one bias in float16", "a narrower integer", "a counter"],
)
def test_right_files_agree(change: dict[str, Any], tmp_path: Path) -> None:
    report = judged(tmp_path, fused() | change, trained())
    assert report.verdict == "agree", report.reason


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_right_files_of_other_types_agree(dtype: Any, tmp_path: Path) -> None:
    """With weights below float16's smallest step, too; float64 of what was computed in float32."""
    state = trained()
    state["neck.0.conv1.conv.weight"] *= np.float32(1e-6)
    state["neck.0.conv2.conv.weight"] *= np.float32(1e-9)
    convert_modules(saved(tmp_path, state), tmp_path / "ours.npz", "npz")
    with np.load(tmp_path / "ours.npz", allow_pickle=False) as arrays:
        made = {key: arrays[key] for key in arrays.files if key in fused()}
    report = judged(tmp_path, floats(made, dtype), state)
    assert report.verdict == "agree", report.reason


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"tail.bias": TAIL.astype(np.int32)}, "tail.bias"),
        ({"tail.bias": TAIL.astype(bool)}, "tail.bias"),
        ({"tail.bias": np.where(TAIL > 3, np.inf, TAIL).astype(np.float16)}, "tail.bias"),
        ({"neck.0.conv.weight": np.full((4, 4, 3, 3), np.nan)}, "neck.0"),
        ({"neck.0.conv.bias": np.full(4, np.inf)}, "neck.0"),
        ({"neck.1.conv.weight": np.ones((4, 4, 3, 3), np.int8)}, "neck.1"),
        ({"neck.1.conv.weight": np.ones((4, 36), np.float32)}, "neck.1"),
    ],
)
def test_wrong_files_disagree_and_say_where(
    change: dict[str, Any], where: str, tmp_path: Path
) -> None:
    report = judged(tmp_path, fused() | change, trained())
    assert (report.verdict, report.first_bad_layer) == ("disagree", where)


def test_what_an_unknown_array_does_nobody_says(tmp_path: Path) -> None:
    report = judged(tmp_path, fused() | {"tail.0.bias": np.ones(4)}, trained())
    assert report.verdict == "cannot-judge"
    assert "tail.0.bias" in report.reason


def test_branches_beside_the_fused_convolution_are_said(tmp_path: Path) -> None:
    report = judged(tmp_path, fused() | trained(), trained())
    assert report.verdict == "agree", report.reason
    assert any("beside" in note for note in report.notes)


def test_a_file_of_other_names_is_not_called_wrong(tmp_path: Path) -> None:
    report = judged(tmp_path, {f"a.{key}": a for key, a in fused().items()}, trained())
    assert report.verdict == "cannot-judge"
    assert "neck.0.conv.weight" in report.reason


@pytest.mark.parametrize("broken", [np.nan, -1.0])
def test_a_broken_checkpoint_judges_nothing(broken: float, tmp_path: Path) -> None:
    state = trained()
    state["neck.0.conv1.norm.running_var"] = np.full(4, broken, np.float32)
    nothing = {"neck.0.conv.weight": np.full((4, 4, 3, 3), np.nan)}
    for change in ({}, nothing):
        report = judged(tmp_path, fused() | change, state)
        assert report.verdict == "cannot-judge"


def one_tap(weight: Any) -> Any:
    weight = weight.copy()
    weight[2, 1, 0, 1] *= np.float32(1.001)
    return weight


@pytest.mark.parametrize(
    ("bug", "says", "estimate", "change"),
    [
        ("kernel-flipped", "both ways", None, {KERNEL: lambda w: w[:, :, ::-1, ::-1]}),
        ("kernel-flipped", "left to right", None, {KERNEL: lambda w: w[..., ::-1]}),
        ("kernel-height-width-swapped", "", None, {KERNEL: lambda w: w.swapaxes(2, 3)}),
        ("kernel-in-out-swapped", "", None, {KERNEL: lambda w: w.swapaxes(0, 1)}),
        (
            "kernel-memory-layout",
            "OHWI as OIHW",
            None,
            {KERNEL: lambda w: w.transpose(0, 2, 3, 1).reshape(w.shape)},
        ),
        ("bias-missing", "all of it is zero", None, {BIAS: np.zeros_like}),
        ("weights-scaled", "biases are not", 1e-4, {KERNEL: lambda w: w * np.float32(1.0001)}),
        ("taps-altered", "one tap, in output channel 2", -1e-3, {KERNEL: one_tap}),
        ("bias-scaled", "1.01", 1e-2, {BIAS: lambda b: b * np.float32(1.01)}),
    ],
)
def test_what_befalls_a_fused_kernel_has_a_name(
    bug: str, says: str, estimate: float | None, change: dict[str, Any], tmp_path: Path
) -> None:
    right = fused()
    wrong = {key: np.ascontiguousarray(make(right[key])) for key, make in change.items()}
    report = judged(tmp_path, right | wrong, trained())
    (found,) = report.diagnosis
    assert (report.verdict, found.bug, found.layer) == ("disagree", bug, "neck.0")
    assert says in found.says
    assert found.estimate == (None if estimate is None else pytest.approx(estimate, rel=0.01))


def test_exchanged_blocks_name_each_other(tmp_path: Path) -> None:
    right = fused()
    places = {f"neck.{a}.conv.{p}": f"neck.{1 - a}.conv.{p}" for a in (0, 1) for p in PARTS}
    report = judged(tmp_path, right | {a: right[b] for a, b in places.items()}, trained())
    assert [(f.bug, f.layer, f.says.split()[-1]) for f in report.diagnosis] == [
        ("layers-swapped", "neck.0", "neck.1"),
        ("layers-swapped", "neck.1", "neck.0"),
    ]


def test_one_cause_in_all_blocks_is_one_finding(tmp_path: Path) -> None:
    """And in one of two blocks it is that block's."""
    right, other = fused(), fused()
    for place in (0, 1):
        made = by_hand(trained(), f"neck.{place}", 1e-3)
        other |= {f"neck.{place}.conv.{p}": np.float32(a) for p, a in zip(PARTS, made, strict=True)}
    for wrong, where in ((other, "all"), (right | {k: other[k] for k in (KERNEL, BIAS)}, "neck.0")):
        report = judged(tmp_path, wrong, trained())
        (found,) = report.diagnosis
        assert (found.bug, found.layer, found.estimate) == ("eps-value", where, 1e-3)
        assert report.first_bad_layer == "neck.0"


@pytest.mark.parametrize(("asked", "assumed"), [(None, 1e-5), (1e-3, None)])
def test_an_eps_that_nobody_said_is_reported_as_assumed(
    asked: float | None, assumed: float | None, tmp_path: Path
) -> None:
    """Official networks and the YOLO line call their blocks alike and differ in it."""
    rng, state = np.random.default_rng(0), dict[str, Any]()
    for branch, k in (("rbr_dense", 3), ("rbr_1x1", 1)):
        name = f"neck.0.{branch}"
        state[f"{name}.conv.weight"] = rng.normal(size=(4, 2, k, k)).astype(np.float32)
        state |= norm(rng, f"{name}.bn", 4)
    path, target = saved(tmp_path, state), tmp_path / "ours.npz"
    convert_modules(path, target, "npz", eps=asked)
    report = judge_family(path, target, eps=asked)
    assert report.verdict == "agree", report.reason
    assert report.to_json()["assumed"]["eps"] == assumed
