"""PP-LCNetV3's affine part behind a block: folded in, or kept beside, but not both, nor neither."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weights_io
from repvgg_ref.arrays import Array
from repvgg_ref.files.convert_modules import convert_modules
from repvgg_ref.oracle.families.family import judge_family
from repvgg_ref.oracle.report import Report

State = dict[str, Array]
SCALE, BIAS = "b.lab.scale", "b.lab.bias"
WEIGHT, SHIFT = "b.reparam_conv.weight", "b.reparam_conv.bias"


@cache
def trained() -> State:
    rng = np.random.default_rng(0)
    state: dict[str, Array] = {}
    for branch, taps in (("conv_kxk.0", 3), ("conv_kxk.1", 3), ("conv_1x1", 1)):
        state[f"b.{branch}.conv.weight"] = rng.normal(size=(6, 1, taps, taps))
    for norm in ("conv_kxk.0.bn", "conv_kxk.1.bn", "conv_1x1.bn", "identity"):
        for vector in ("weight", "bias", "running_mean", "running_var"):
            state[f"b.{norm}.{vector}"] = rng.uniform(0.5, 2, 6)
    # the one behind the activation is not the block's
    for key, number in ((SCALE, 1.3), (BIAS, -0.2), ("b.act.lab.scale", 0.9)):
        state[key] = np.array([number])
    return {name: array.astype(np.float32) for name, array in state.items()}


@pytest.fixture
def folded(tmp_path: Path) -> State:
    weights_io.save_weights(tmp_path / "train.npz", trained(), container="npz")
    convert_modules(tmp_path / "train.npz", tmp_path / "fused.npz", "npz")
    with weights_io.open_weights(tmp_path / "fused.npz") as archive:
        found: Any = archive.root
        return {name: array.read() for name, array in found.items()}


def kept(folded: State) -> State:
    """As the published code writes it."""
    scale, bias = trained()[SCALE], trained()[BIAS]
    own = {WEIGHT: folded[WEIGHT] / scale, SHIFT: (folded[SHIFT] - bias) / scale}
    return folded | {n: a.astype(np.float32) for n, a in own.items()} | {SCALE: scale, BIAS: bias}


def judged(folder: Path, port: State) -> Report:
    weights_io.save_weights(folder / "port.npz", port, container="npz")
    return judge_family(folder / "train.npz", folder / "port.npz")


def test_what_is_behind_the_activation_stays(folded: State) -> None:
    assert folded.keys() == {WEIGHT, SHIFT, "b.act.lab.scale"}


def test_folded_kept_and_made_neutral_are_right(folded: State, tmp_path: Path) -> None:
    neutral = {SCALE: np.ones(1, np.float32), BIAS: np.zeros(1, np.float32)}
    for port in (folded, kept(folded), folded | neutral):
        report = judged(tmp_path, port)
        assert report.verdict == "agree", report.reason


def test_folded_and_kept_and_neither_are_named(folded: State, tmp_path: Path) -> None:
    own = {SCALE: trained()[SCALE], BIAS: trained()[BIAS]}
    neither = {n: a for n, a in kept(folded).items() if n not in own}
    for port, bug in ((folded | own, "scale-doubled"), (neither, "scale-ignored")):
        report = judged(tmp_path, port)
        assert (report.verdict, report.first_bad_layer) == ("disagree", "b")
        assert [finding.bug for finding in report.diagnosis] == [bug]


@pytest.mark.parametrize("key", [SCALE, BIAS])
def test_a_kept_number_that_is_another_one_is_placed(
    key: str, folded: State, tmp_path: Path
) -> None:
    port = kept(folded)
    report = judged(tmp_path, port | {key: port[key] * np.float32(1.001)})
    assert (report.verdict, report.first_bad_layer) == ("disagree", key)
