"""What comes first among the wrong numbers of a training step is the cause."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.training import judge
from repvgg_ref.oracle.training.order import in_order_of_cause, phase
from repvgg_ref.oracle.training.recipe import Recipe
from repvgg_ref.oracle.training.run import right_setup, run
from tests.models.small import SMALL, batch, distinct_model
from tests.oracle.training.tiny import dump_of, judged, setup_of


def test_the_order_of_cause() -> None:
    arch = SMALL["plain"]
    exact = run(right_setup(distinct_model(arch), *batch(arch, count=2), Recipe((0.01, 0.005))))
    order = in_order_of_cause(exact)
    assert sorted(order) == sorted(exact)
    kinds = list(dict.fromkeys(name.partition("/")[0] for name in order))
    assert kinds == ["batch_mean", "batch_var", "logits", "loss", "stat", "grad", "after", "losses"]
    # forward from the stem on: a norm's two statistics together, before those of the next layer
    assert order[:2] == ["batch_mean/stage0.rbr_dense.bn", "batch_var/stage0.rbr_dense.bn"]
    place = {name: at for at, name in enumerate(order)}
    assert place["batch_var/stage1.0.rbr_1x1.bn"] < place["batch_mean/stage1.1.rbr_dense.bn"]
    # backward from the head on
    grads = [name for name in order if name.startswith("grad/")]
    assert all("linear" in name for name in grads[:2])
    assert all("stage0" in name for name in grads[-6:])
    # running averages after the weights that they know nothing of
    after = [phase(name) for name in order if name.startswith("after/")]
    assert after == sorted(after)
    assert set(after) == {"after", "statistics"}


def test_an_optimizers_bug_is_placed_in_the_weights_and_not_in_the_losses() -> None:
    names = ["loss", "losses", "after/a.weight", "grad/a.weight"]
    assert in_order_of_cause(names) == ["loss", "grad/a.weight", "after/a.weight", "losses"]
    assert np.unique([phase(name) for name in ("loss", "losses", "logits")]).tolist() == ["forward"]


@pytest.mark.parametrize(
    "name", ["stage0.rbr_dense.conv.weight", "stage1.0.rbr_dense.conv.weight", "linear.bias"]
)
def test_an_array_that_loses_its_gradient_is_where_it_goes_wrong(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though arrays that come before it, and move little, are off by more of their own way."""
    monkeypatch.setattr(judge, "_explained", lambda *_: [])  # which bug it is takes seconds

    def without(grads: dict[str, Array]) -> dict[str, Array]:
        return {each: 0 * grad if each == name else grad for each, grad in grads.items()}

    report = judged(dump_of(replace(setup_of(), grads_map=without)))
    assert report.verdict == "disagree"
    assert report.first_bad_layer == f"after/{name}"
