"""Weights below lists, tuples and keys that are no text; mmpretrain's backbone; names not found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
from tests.files.checkpoint_files import small_model, small_state, written
from tests.files.wrapped_files import LOSS, assert_is, behind, pickled, refusal, renamed

OTHER = small_model(seed=9).state_dict()
BACKBONE = {
    "stage0.": "stem.",
    "stage1.": "stage_1.",
    "stage2.": "stage_2.",
    ".rbr_dense.": ".branch_3x3.",
    ".rbr_1x1.": ".branch_1x1.",
    ".rbr_identity.": ".branch_norm.",
    ".rbr_reparam.": ".branch_reparam.",
    ".bn.": ".norm.",
}
MOMENTS = {"exp_avg": np.ones(3, np.float32)}


def _wraps(state: Any) -> dict[str, Any]:
    return {
        "models": {"models": [state]},
        "ckpt": {"ckpt": (1, state)},
        "0": {0: state},
        "-3": {-3: {"state": state}, "epoch": 1},
        "run.1.net": {"run": [{"lr": 0.1}, {"net": state}]},
        "bool#0": {True: state},
        "NoneType#1": {"epoch": 1, None: [state]},
        "float#0": {0.5: state},
        "2": ({"lr": 0.1}, 3, [state]),
    }


@pytest.mark.parametrize("name", _wraps(None))
def test_weights_stand_in_lists_tuples_and_under_any_key(tmp_path: Path, name: str) -> None:
    path = pickled(tmp_path, _wraps(small_state())[name])
    model = rr.load(path)
    assert_is(model)
    assert "taken from" in model.notes[0]
    assert_is(rr.load(path, weights=name))


@pytest.mark.parametrize(
    ("root", "names"),
    [
        ({"models": [small_state(), OTHER]}, ("0", "1")),
        ({0: small_state(), 1: OTHER}, ("0", "1")),
        ({"folds": {None: small_state(), 2.5: {"net": OTHER}}}, ("NoneType#0", "float#1")),
        ((small_state(), [7, OTHER]), ("0", "1")),
        ({"0": small_state(), 0: 7, 1: OTHER}, ("0", "1")),
    ],
    ids=["list", "numbers", "odd keys", "tuple", "text and numbers"],
)
def test_what_could_be_meant_in_a_list_is_listed_by_names_that_are_taken(
    tmp_path: Path, root: Any, names: tuple[str, str]
) -> None:
    path = pickled(tmp_path, root)
    for name in names:
        assert name in refusal(path)
    inside = f"{next(iter(root))}." if isinstance(root, dict) and len(root) == 1 else ""
    assert_is(rr.load(path, weights=inside + names[0]))
    assert_is(rr.load(path, weights=inside + names[1]), OTHER)


@pytest.mark.parametrize(
    ("root", "wanted"),
    [
        (
            {"optimizer": {"state": {0: dict(MOMENTS), 1: dict(MOMENTS)}}},
            "got 2 arrays: optimizer.state.0.",
        ),
        ({"best": [MOMENTS]}, "got 1 array: best.0.exp_avg"),
        ([("weight", MOMENTS["exp_avg"])], "got 1 array: 0.1"),
        ({"a": {None: MOMENTS}}, "got 1 array: a.NoneType#0.exp_avg"),
        ({"a": [MOMENTS] * 1200}, "got 1 array: a.0."),  # one dict in many places
        ({"a": [dict(MOMENTS) for _ in range(1200)]}, "got 1000 arrays or more: a.0."),
        ({"epoch": 1}, "got no arrays"),
        ([1, 2], "holds no mapping of named arrays"),
    ],
    ids=["optimiser", "list", "pairs", "odd key", "shared", "many", "none", "numbers"],
)
def test_arrays_under_no_layers_name_are_told(tmp_path: Path, root: Any, wanted: str) -> None:
    assert wanted in refusal(pickled(tmp_path, root))


@pytest.mark.parametrize("prefix", ["", "encoder.", "model.", "backbone.", "module.backbone."])
@pytest.mark.parametrize("form", ["train", "deploy"])
def test_a_backbone_of_mmpretrain_is_read_behind_any_prefix(
    tmp_path: Path, prefix: str, form: str
) -> None:
    model = small_model() if form == "train" else rr.fuse(small_model())
    blocks = {n: a for n, a in model.state_dict().items() if not n.startswith("linear.")}
    found = rr.load(written(tmp_path, behind(prefix, renamed(blocks, BACKBONE)) | LOSS))
    assert_is(found, blocks)
    assert found.arch.num_classes == 0


@pytest.mark.parametrize("head", ["head.fc.", "fc.", "classifier.1."])
def test_a_backbone_of_mmpretrain_with_a_head_is_a_classifier(tmp_path: Path, head: str) -> None:
    assert_is(rr.load(written(tmp_path, renamed(small_state(), {**BACKBONE, "linear.": head}))))


@pytest.mark.parametrize("bare", ["", "student."])
def test_prefixes_are_taken_as_they_are_listed(tmp_path: Path, bare: str) -> None:
    state = behind(bare, small_state()) | behind("teacher.net.", OTHER)
    path = written(tmp_path, state)
    listed = bare or "(none)"
    assert f"{listed}, teacher.net." in refusal(path)
    assert_is(rr.load(path, weights=listed))
    for name in ("teacher.net.", "teacher.net", "teacher"):
        assert_is(rr.load(path, weights=name), OTHER)


@pytest.mark.parametrize(
    "root",
    [
        {"last": small_state(), "best": OTHER},
        {"model": small_state(), "best": OTHER},
        {"best": small_state()},
        {"state_dict": behind("best.", small_state()) | behind("last.", OTHER)},
    ],
    ids=["several", "beside the usual", "alone", "prefixes"],
)
def test_a_mistyped_name_is_guessed(tmp_path: Path, root: Any) -> None:
    path = pickled(tmp_path, root)
    message = refusal(path, weights="bset")
    assert "'bset'" in message
    assert "did you mean best?" in message
    assert "did you mean" not in refusal(path, weights="quite another")


def test_lists_that_share_their_lists_are_looked_into_once(tmp_path: Path) -> None:
    """There are 2**14 ways to the one array."""
    root: Any = [MOMENTS["exp_avg"]]
    for _ in range(14):
        root = [root, root]
    assert "got 1 array" in refusal(pickled(tmp_path, root))
