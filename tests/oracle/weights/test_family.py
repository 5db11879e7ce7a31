"""Fused files of a detector, right and wrong, without torch; each case was judged wrong once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weights_io
from repvgg_ref.files.convert_modules import convert_modules
from repvgg_ref.oracle.report import Report
from repvgg_ref.oracle.weights.family import judge_family
from tests.files.test_modules import by_hand, detector, saved

TAIL = np.linspace(-3.3, 3.3, 9, dtype=np.float32)


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
