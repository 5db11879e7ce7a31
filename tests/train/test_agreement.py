"""The proof that both forms agree: it passes what is right and fails what is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from repvgg_ref.backends import backend_ops
from repvgg_ref.blocks.selfcheck import SelfCheckError
from repvgg_ref.data import Batch
from repvgg_ref.models.architectures import Architecture
from repvgg_ref.models.network import Model, fuse
from repvgg_ref.train import evaluate as evaluation
from repvgg_ref.train.agreement import check_agreement
from repvgg_ref.train.comm import Solo
from repvgg_ref.train.evaluate import evaluate
from tests.models.small import SMALL, batch, distinct_model

U32 = 2.0**-24
every_network = pytest.mark.parametrize("arch", SMALL.values(), ids=SMALL.keys())
every_backend = pytest.mark.parametrize("backend", ["reference", "numpy"])


def both(arch: Architecture, seed: int = 0) -> tuple[Model, Model]:
    trained = distinct_model(arch, seed=seed, dtype=np.float32)
    return trained, fuse(trained)


@every_network
@every_backend
def test_both_forms_agree_and_their_logits_stay_within_the_tolerance(
    arch: Architecture, backend: str
) -> None:
    for seed in range(3):
        trained, fused = both(arch, seed)
        x, _ = batch(arch, seed=seed, dtype=np.float32)
        ops = backend_ops(backend, np.dtype(np.float64))
        agreement = check_agreement(trained, fused, x, ops=ops, roundoff=U32)
        assert agreement.block.ok
        difference = np.abs(trained.forward(x, backend=backend) - fused.forward(x, backend=backend))
        assert difference.max() <= agreement.tolerance
        # A tolerance that lets everything pass would prove nothing.
        assert agreement.tolerance <= 1e-2 * np.abs(trained.forward(x)).max()


@every_network
def test_one_kernel_six_millionths_off_is_found_in_its_block(arch: Architecture) -> None:
    trained, fused = both(arch)
    x, _ = batch(arch, dtype=np.float32)
    ops = backend_ops("reference")
    for spec in arch.blocks:
        params = dict(fused.params)
        weight = params[f"{spec.name}.fused.weight"].copy()
        weight[0] *= 1 + 100 * U32
        params[f"{spec.name}.fused.weight"] = weight
        with pytest.raises(SelfCheckError, match=f"^{spec.name}: "):
            check_agreement(trained, replace(fused, params=params), x, ops=ops, roundoff=U32)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("part", ["weight", "bias"])
def test_a_fused_value_that_is_not_finite_fails(value: float, part: str) -> None:
    trained, fused = both(SMALL["plain"])
    x, _ = batch(SMALL["plain"], dtype=np.float32)
    array = fused.params[f"stage1.0.fused.{part}"].copy()
    array.flat[0] = value
    params = fused.params | {f"stage1.0.fused.{part}": array}
    with np.errstate(invalid="ignore"), pytest.raises(SelfCheckError, match=r"^stage1\.0"):
        check_agreement(
            trained, replace(fused, params=params), x, ops=backend_ops("reference"), roundoff=U32
        )


def run_evaluation(model: Model, x: Any, labels: Any) -> Any:
    batches = [Batch(x, labels, np.arange(len(x)))]
    return evaluate(
        model,
        batches,
        lambda b: b.images,
        ops=backend_ops("numpy", np.dtype(np.float32)),
        comm=Solo(),
        roundoff=U32,
    )


def test_an_evaluation_counts_right_and_near_answers() -> None:
    arch = SMALL["plus"]
    model = distinct_model(arch, dtype=np.float32)
    x, labels = batch(arch, count=9, dtype=np.float32)
    logits = model.forward(x).astype(np.float64)
    found = run_evaluation(model, x, labels)
    order = np.argsort(-logits, axis=1)
    assert found.images == 9
    assert found.trained.top1 == np.mean(order[:, 0] == labels)
    assert found.trained.top5 == 1.0  # there are five classes
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(9), labels]
    assert found.trained.loss == pytest.approx(losses.mean(), rel=1e-6)
    assert found.fused.loss == pytest.approx(losses.mean(), rel=1e-4)


@pytest.mark.parametrize("wrong", [1e-2, np.nan])
def test_a_backend_whose_fused_form_computes_something_else_is_found(
    wrong: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights are right, so only the logits can show it."""
    right = evaluation.logits

    def planted(model: Model, x: Any, ops: Any) -> Any:
        return right(model, x, ops) + np.float32(wrong if model.form == "deploy" else 0)

    monkeypatch.setattr(evaluation, "logits", planted)
    x, labels = batch(SMALL["plain"], dtype=np.float32)
    with pytest.raises(SelfCheckError, match="different logits"):
        run_evaluation(distinct_model(SMALL["plain"], dtype=np.float32), x, labels)
