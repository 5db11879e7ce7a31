"""What fusers do to single arrays of a block is named, whichever array it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weights_io
from repvgg_ref.files.convert_modules import convert_modules
from repvgg_ref.oracle.families.family import judge_family
from repvgg_ref.oracle.report import Finding

State = dict[str, Any]
CHANNELS = 5


def trained() -> State:
    """A PP-LCNetV3 block, every number of which does something."""
    rng = np.random.default_rng(3)
    state: State = {}
    for name, kernel in (("conv_kxk.0", 3), ("conv_kxk.1", 3), ("conv_1x1", 1)):
        state[f"{name}.conv.weight"] = rng.normal(size=(CHANNELS, 1, kernel, kernel))
        state |= norm(f"{name}.bn", rng)
    state |= norm("identity", rng)
    state |= {"lab.scale": np.array([1.7]), "lab.bias": np.array([-0.6])}
    return {key: array.astype(np.float32) for key, array in state.items()}


def norm(name: str, rng: np.random.Generator) -> State:
    drawn = rng.uniform(0.5, 2, (4, CHANNELS))
    return {
        f"{name}.{field}": vector
        for field, vector in zip(
            ("weight", "bias", "running_mean", "running_var"), drawn, strict=True
        )
    }


def exchanged(one: str, two: str) -> Callable[[State], State]:
    return lambda state: {one: state[two], two: state[one]}


def filled(key: str, value: float) -> Callable[[State], State]:
    return lambda state: {key: np.full_like(state[key], value)}


def negated(key: str) -> Callable[[State], State]:
    return lambda state: {key: -state[key]}


def turned(key: str) -> Callable[[State], State]:
    return lambda state: {key: state[key].swapaxes(2, 3).copy()}


def with_eps(key: str, eps: float) -> Callable[[State], State]:
    """A variance with so much more that its norm has another eps."""
    return lambda state: {key: state[key].astype(np.float64) + (eps - 1e-5)}


def added_first(state: State) -> State:
    return {"lab.bias": state["lab.bias"] * state["lab.scale"]}


def variance_itself(state: State) -> State:
    key = "conv_1x1.bn.running_var"
    return {key: ((state[key].astype(np.float64) + 1e-5) ** 2 - 1e-5).astype(np.float64)}


CASES: dict[str, tuple[Callable[[State], State], str, str]] = {
    "shift": (filled("lab.bias", 0), "bias-missing", "lab.bias"),
    "scale": (filled("lab.scale", 1), "scale-ignored", "lab.scale"),
    "scale zero": (filled("lab.scale", 0), "leaf-zeroed", "lab.scale"),
    "order": (added_first, "affine-order", "the other order"),
    "gamma": (filled("conv_kxk.1.bn.weight", 1), "gamma-ignored", "conv_kxk.1.bn"),
    "beta": (filled("identity.bias", 0), "beta-ignored", "identity"),
    "mean": (filled("conv_1x1.bn.running_mean", 0), "mean-ignored", "conv_1x1.bn"),
    "variance": (filled("identity.running_var", 1), "variance-ignored", "identity"),
    "no root": (variance_itself, "var-used-as-std", "conv_1x1.bn"),
    "kernel": (filled("conv_1x1.conv.weight", 0), "leaf-zeroed", "conv_1x1.conv.weight"),
    "gamma and beta": (
        exchanged("conv_1x1.bn.weight", "conv_1x1.bn.bias"),
        "leaves-exchanged",
        "gamma and beta",
    ),
    "means": (
        exchanged("conv_1x1.bn.running_mean", "identity.running_mean"),
        "leaves-exchanged",
        "running_mean of conv_1x1.bn and identity",
    ),
    "kernels": (
        exchanged("conv_kxk.0.conv.weight", "conv_kxk.1.conv.weight"),
        "bn-of-branches-swapped",
        "conv_kxk.0.bn and conv_kxk.1.bn",
    ),
    "mean and beta": (
        exchanged("conv_1x1.bn.running_mean", "identity.bias"),
        "leaves-exchanged",
        "running_mean of conv_1x1.bn and beta of identity",
    ),
    "sign of gamma": (negated("conv_kxk.0.bn.weight"), "gamma-sign", "conv_kxk.0.bn"),
    "sign of beta": (negated("identity.bias"), "beta-sign", "identity"),
    "sign of a kernel": (negated("conv_1x1.conv.weight"), "leaf-negated", "conv_1x1.conv.weight"),
    "one kernel turned": (
        turned("conv_kxk.1.conv.weight"),
        "kernel-height-width-swapped",
        "conv_kxk.1.conv.weight",
    ),
    "one eps": (with_eps("identity.running_var", 1e-3), "eps-value", "identity: eps is 0.001"),
    "affine": (exchanged("lab.scale", "lab.bias"), "leaves-exchanged", "lab.scale and lab.bias"),
}


def finding(folder: Path, change: Callable[[State], State]) -> Finding:
    """Of a file that was fused from other arrays than the checkpoint's."""
    state = trained()
    for name, arrays in (("train", state), ("other", state | change(state))):
        weights_io.save_weights(folder / f"{name}.npz", arrays, container="npz")
    convert_modules(folder / "other.npz", folder / "fused.npz", "npz")
    report = judge_family(folder / "train.npz", folder / "fused.npz")
    assert report.verdict == "disagree"
    (found,) = report.diagnosis
    return found


@pytest.mark.few(4)
@pytest.mark.parametrize("case", CASES)
def test_the_array_and_what_was_done_to_it_are_named(tmp_path: Path, case: str) -> None:
    change, bug, where = CASES[case]
    found = finding(tmp_path, change)
    assert (found.bug, where in found.says) == (bug, True), found


def test_kernels_and_norms_that_are_exchanged_cannot_be_told_apart(tmp_path: Path) -> None:
    found = finding(tmp_path, CASES["kernels"][0])
    assert found.equivalents == ("kernels-exchanged",)
    assert found.confidence == 0.5


def test_a_number_that_nothing_explains_stays_unknown(tmp_path: Path) -> None:
    assert finding(tmp_path, filled("identity.weight", 1.5)).bug == "unknown"
