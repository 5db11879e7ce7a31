"""Outputs that are doubled, wholly or in part: one name for the whole, and none for a part."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.models.architectures import plain_architecture
from repvgg_ref.oracle.programs.distinguishing import distinguishing_model
from repvgg_ref.oracle.programs.inputs import distinguishing_inputs
from repvgg_ref.oracle.programs.layers import Programs
from repvgg_ref.oracle.programs.program import layer_output
from repvgg_ref.oracle.report import Finding
from repvgg_ref.oracle.verification import verify

ARCH = plain_architecture(depths=[1, 1], channels=[8, 8, 16], num_classes=10)
X = distinguishing_inputs(ARCH, batch=2, height=40, width=32, seed=1)
MODEL = distinguishing_model(ARCH, 1, x=X)
WRONG = "stage1.0"


def found(change: Callable[[Array], Array]) -> tuple[Finding, ...]:
    """What is said of a port one layer of which gives something else."""
    layers, y = {}, X.astype(np.float32)
    for name, program in Programs(MODEL).items():
        right = layer_output(program, y.astype(np.float64))
        y = layers[name] = (change(right) if name == WRONG else right).astype(np.float32)
    report = verify(MODEL, layers, inputs=X)
    assert (report.verdict, report.first_bad_layer) == ("disagree", WRONG)
    return report.diagnosis


def kept(size: Callable[[Array], tuple[int, ...]]) -> Callable[[Array], Array]:
    """Half of the outputs, doubled as dropout doubles them; the others are 0."""
    return lambda y: y * np.random.default_rng(2).choice([0.0, 2.0], size=size(y))


def without_border(y: Array) -> Array:
    return 2 * np.pad(y[:, :, 1:-1, 1:-1], ((0, 0), (0, 0), (1, 1), (1, 1)))


DROPPED: Mapping[str, Callable[[Array], Array]] = {
    "outputs": kept(lambda y: y.shape),
    "channels": kept(lambda y: (1, y.shape[1], 1, 1)),
    "the border": without_border,
}


def test_twice_the_outputs_is_said_to_be_either_of_what_gives_that() -> None:
    (finding,) = found(lambda y: 2 * y)
    assert finding.bug == "block-summed-twice"
    assert "added twice, or times 2" in finding.says


@pytest.mark.few(1)
@pytest.mark.parametrize("name", DROPPED)
def test_what_is_dropped_is_no_factor(name: str) -> None:
    (finding,) = found(DROPPED[name])
    assert finding.bug == "unknown"
    assert "that should be far above 0 are 0" in finding.says


def test_twice_and_a_constant_is_an_affine_map_and_no_branch_beside_something_unknown() -> None:
    (finding,) = found(lambda y: np.maximum(2 * y - 0.1, 0))
    assert finding.bug == "unknown"
    assert "scaled and shifted" in finding.says
