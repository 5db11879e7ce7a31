"""Branches added in any order: right files agree although few numbers tell the orders apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.arrays import Array
from repvgg_ref.models.architectures import plain_architecture
from repvgg_ref.models.network import Model
from repvgg_ref.oracle.programs.distinguishing import distinguishing_model
from repvgg_ref.oracle.programs.layers import Programs
from repvgg_ref.oracle.report import Report
from repvgg_ref.oracle.weights.arithmetic import Arithmetic
from repvgg_ref.oracle.weights.biases import beyond
from repvgg_ref.oracle.weights.terms import terms_of
from tests.oracle.weights.converters import FLOAT32, Converter

# A block of 16 channels: the sums that all three branches are in are few.
ARCH = plain_architecture(depths=[2], channels=[2, 16], num_classes=2, in_channels=1)


def in_order(order: tuple[int, ...]) -> Converter:
    return replace(FLOAT32[1], order=lambda n: [number for number in order if number < n])


def judged(model: Model, port: Model, folder: Path) -> Report:
    rr.save(port, folder / "port.npz")
    return rr.verify(model, folder / "port.npz")


def test_a_sum_that_rows_not_sampled_tell_apart_is_right(tmp_path: Path) -> None:
    """Of seed 31 only channel 14, not among the rows first looked at, shows the order of taps."""
    model = distinguishing_model(ARCH, 31)
    report = judged(model, in_order((1, 2, 0)).converted(model), tmp_path)
    assert report.verdict == "agree", report.reason


def test_right_ways_to_form_biases_are_not_beyond_and_wrong_ones_are() -> None:
    """In every order, all betas first, and in float64: ways that are not among those simulated."""
    model = distinguishing_model(ARCH, 0)
    terms = terms_of(Programs(model)["stage1.1"])
    a = Arithmetic()
    norms = [term.branch for term in terms.terms]
    slopes = [b.gamma / np.sqrt(b.running_var + np.float32(terms.eps)) for b in norms]
    betas = [np.asarray(b.beta) for b in norms]
    shifts = [b.running_mean * t for b, t in zip(norms, slopes, strict=True)]
    for order in permutations(range(3)):
        of_norms = sum(betas[n] - shifts[n] for n in order)
        of_betas = sum(betas[n] for n in order) - sum(shifts[n] for n in order)
        for right in (
            of_norms,
            of_betas,
            np.sum(betas, axis=0, dtype=float) - np.sum(shifts, axis=0, dtype=float),
        ):
            assert not beyond(terms, np.asarray(right, np.float32), a).any()
    size = sum(np.abs(array) for array in (*betas, *shifts))
    wrong = sum(betas) - sum(shifts) + 8 * 2.0**-24 * size
    assert beyond(terms, np.asarray(wrong, np.float32), a).all()


CHANGES: dict[str, tuple[str, Callable[[Array, Array], None]]] = {
    "layer": ("outputs-scaled", lambda w, b: times(1 + 2e-6, w, b)),
    "kernel": ("weights-scaled", lambda w, b: times(1 + 1e-5, w)),
    "biases": ("bias-scaled", lambda w, b: times(1 + 1e-3, b)),
    "channel": ("channel-scaled", lambda w, b: times(1 + 1e-5, w[3], b[3:4])),
    "kernel of a channel": ("weights-scaled", lambda w, b: times(1 + 1e-5, w[3])),
    "20 bits": ("weights-rounded", lambda w, b: cut(w)),
    "tap": ("taps-altered", lambda w, b: times(1 + 1e-4, w[3, 2, :1, :1])),
}
ERRORS = dict(zip(CHANGES, (2e-6, 1e-5, 1e-3, 1e-5, 1e-5, 0.0, 1e-4), strict=True))


def times(factor: float, *arrays: Array) -> None:
    for array in arrays:
        array *= np.float32(factor)


def cut(array: Array) -> None:
    bits = array.view(np.uint32)
    bits[...] = (bits + np.uint32(8)) & np.uint32(0xFFFFFFF0)


@pytest.mark.few(4)
@pytest.mark.parametrize("case", CHANGES)
def test_what_is_wrong_with_a_whole_kernel_is_named(case: str, tmp_path: Path) -> None:
    bug, change = CHANGES[case]
    model = distinguishing_model(ARCH, 1)
    port = FLOAT32[1].converted(model)
    change(*(port.params[f"stage1.1.fused.{part}"] for part in ("weight", "bias")))
    (found,) = judged(model, port, tmp_path).diagnosis
    assert (found.bug, found.layer) == (bug, "stage1.1"), found
    if ERRORS[case]:
        assert found.estimate == pytest.approx(ERRORS[case], rel=0.1)
