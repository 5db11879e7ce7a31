"""The vectors are tested: every known bug in every layer, and proofs for those that are none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from repvgg_ref.models.architectures import plain_architecture
from repvgg_ref.models.graph import Network
from repvgg_ref.models.network import Model
from repvgg_ref.oracle.bugs import LAYER_BUGS
from repvgg_ref.oracle.golden.mutation import MutationMatrix, mutation_matrix
from repvgg_ref.oracle.programs.distinguishing import (
    INFERENCE,
    TRAINING,
    Statistics,
    distinguishing_model,
    weak_statistics,
)
from repvgg_ref.oracle.programs.inputs import distinguishing_labels, golden_inputs
from tests.models.small import SMALL

PLAIN = plain_architecture(depths=[2], channels=[4, 6], num_classes=3)
DEEPER = {
    "g4": plain_architecture(
        depths=[2, 2, 2, 1], channels=[8, 8, 16, 16, 32], groups=4, num_classes=7
    ),
    "se": plain_architecture(
        depths=[2, 2, 2, 1],
        channels=[16, 16, 32, 32, 48],
        se="before_relu",
        num_classes=7,
    ),
    "post-se": plain_architecture(
        depths=[2, 2, 2, 1], channels=[8, 8, 16, 16, 24], se="after_relu", num_classes=7
    ),
}


def matrix_of(model: Model) -> MutationMatrix:
    return mutation_matrix(model, golden_inputs(model.arch))


@pytest.mark.few(4)
@pytest.mark.parametrize("name", [*SMALL, *DEEPER])
@pytest.mark.parametrize("statistics", [INFERENCE, TRAINING], ids=["inference", "training"])
def test_chosen_weights_hide_no_known_bug(
    name: str, statistics: Statistics, record_property: Callable[[str, object], None]
) -> None:
    arch = (SMALL | DEEPER)[name]
    model = distinguishing_model(arch, statistics=statistics)
    matrix = matrix_of(model)
    noticed = f"{matrix.killed} of {matrix.counted}"
    record_property(f"planted bugs noticed by golden vectors, {name}", noticed)
    assert matrix.survivors == ()
    assert matrix.score == 1.0
    assert weak_statistics(model) == []


@pytest.mark.few(2)
@pytest.mark.parametrize("name", SMALL)
def test_activations_keep_a_sane_scale(name: str) -> None:
    model = distinguishing_model(SMALL[name], 3)
    outputs = model.forward(golden_inputs(model.arch, seed=3), layers=True)
    for layer, y in outputs.items():
        assert 0.3 < np.sqrt((y**2).mean()) < 8, layer
        if layer != "linear":
            assert (y > 0).mean() > 0.15, layer


def test_only_proven_equivalents_do_not_count() -> None:
    """One input channel: two layouts of memory are one and the same there."""
    matrix = matrix_of(distinguishing_model(SMALL["grouped"]))
    found = Counter((m.bug, m.layer) for m in matrix.mutants if m.fate == "equivalent")
    assert found == {("kernel-memory-layout", "stage0"): 2, ("input-memory-layout", "stage0"): 2}
    assert matrix_of(distinguishing_model(SMALL["plain"])).counted == 684


def test_an_activation_of_what_is_never_negative_is_proven_to_be_none() -> None:
    """Behind a sum of ReLUs a ReLU, a leaky one and none are one function; others are not."""
    arch = plain_architecture(depths=[2], channels=[4, 6], num_classes=3, kind="relu-in-branches")
    matrix = matrix_of(distinguishing_model(arch, seed=2))
    found = Counter((m.bug, m.detail) for m in matrix.mutants if m.fate == "equivalent")
    assert found == dict.fromkeys(
        [("relu-inside-branches", ""), ("relu-missing", ""), ("other-activation", "leaky")], 3
    )
    assert matrix.survivors == ()
    killed = {m.detail for m in matrix.mutants if m.bug == "other-activation" and m.killed}
    assert killed == {"relu6", "silu", "hardswish", "gelu", "gelu_tanh", "gelu_quick"}
    assert "equivalent" not in {m.fate for m in matrix_of(distinguishing_model(PLAIN)).mutants}


def weakened(arch: Network, **fields: float) -> Model:
    """A model whose batch norms all have the given numbers."""
    model = distinguishing_model(arch)
    params = dict(model.params)
    for name, array in params.items():
        if ".bn." in name and (value := fields.get(name.rsplit(".", 1)[1])) is not None:
            params[name] = np.full_like(array, value)
    return replace(model, params=params)


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("fields", "bug"),
    [
        ({"running_mean": 0.0}, "mean-ignored"),
        ({"running_mean": 0.0}, "mean-sign"),
        ({"beta": 0.0}, "beta-ignored"),
        ({"gamma": 1.0}, "gamma-ignored"),
        ({"running_var": 1e5, "gamma": 300.0}, "eps-outside-root"),
    ],
)
def test_a_bug_that_the_references_numbers_hide_has_survived(
    fields: dict[str, float], bug: str
) -> None:
    model = weakened(SMALL["plain"], **fields)
    survivors = {(m.bug, m.layer) for m in matrix_of(model).survivors}
    assert {(bug, block.name) for block in model.arch.blocks} <= survivors


def test_square_images_hide_a_square_pool() -> None:
    model = distinguishing_model(SMALL["plus"])
    x = golden_inputs(model.arch)[:, :, :64, :64]
    hidden = {(m.bug, m.detail) for m in mutation_matrix(model, x).survivors}
    assert ("se-pool", "over a W x W square") in hidden


def test_a_blank_image_hides_much() -> None:
    model = distinguishing_model(SMALL["plain"])
    matrix = mutation_matrix(model, np.zeros((2, 3, 64, 72), np.float32))
    hidden = {m.bug for m in matrix.survivors if m.layer == "stage0"}
    assert {"input-bgr", "input-mirrored", "kernel-flipped", "weights-bf16"} <= hidden
    assert all(m.reason for m in matrix.survivors)


def test_the_matrix_has_a_letter_for_every_bug_and_layer() -> None:
    matrix = matrix_of(distinguishing_model(SMALL["plain"]))
    rows = matrix.rows()
    assert set(rows) >= {bug.name for bug in LAYER_BUGS}
    assert {len(row) for row in rows.values()} == {len(matrix.layers)}
    assert rows["identity-missing"] == "..B.B."
    assert rows["stride-moved"] == "SSSSS."


def test_labels_differ_as_far_as_there_are_classes() -> None:
    arch = SMALL["plus"]
    assert len(set(distinguishing_labels(arch, 5).tolist())) == 5
    assert distinguishing_labels(arch, 9).max() < 5
