"""The proof that both forms agree: it passes what is right and fails what is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.backends import backend_ops
from repvgg_ref.blocks.selfcheck import SelfCheckError
from repvgg_ref.data.source import DataError
from repvgg_ref.models.architectures import plain_architecture
from repvgg_ref.models.graph import Network
from repvgg_ref.models.network import Model, build, fuse
from repvgg_ref.train.accuracy import Score
from repvgg_ref.train.agreement import check_agreement
from repvgg_ref.train.comm import Solo
from repvgg_ref.train.evaluate import Evaluation, evaluate
from tests.models.small import GRAPHS, SMALL, batch, distinct_model

U32 = 2.0**-24
NETWORKS: dict[str, Network] = {**SMALL, **GRAPHS}
every_network = pytest.mark.parametrize("arch", NETWORKS.values(), ids=NETWORKS.keys())
every_backend = pytest.mark.parametrize("backend", ["reference", "numpy"])


def both(arch: Network, seed: int = 0) -> tuple[Model, Model]:
    trained = distinct_model(arch, seed=seed, dtype=np.float32)
    return trained, fuse(trained)


@every_network
@every_backend
def test_both_forms_agree_and_their_logits_stay_within_the_tolerance(
    arch: Network, backend: str
) -> None:
    for seed in range(3):
        trained, fused = both(arch, seed)
        x, _ = batch(arch, seed=seed, dtype=np.float32)
        ops = backend_ops(backend, np.dtype(np.float64))
        agreement = check_agreement(trained, fused, x, ops=ops, roundoff=U32)
        assert agreement.block.ok
        logits = trained.forward(x, backend=backend)
        difference = np.abs(logits - fused.forward(x, backend=backend)).max(axis=1)
        assert np.all(difference <= agreement.tolerances)
        # A tolerance that lets everything pass would prove nothing.
        assert np.all(agreement.tolerances <= 1e-2 * np.abs(logits).max(axis=1))


@every_network
def test_one_kernel_six_millionths_off_is_found_in_its_block(arch: Network) -> None:
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


def run_evaluation(model: Model, x: Array, labels: Array, size: int = 4) -> Evaluation:
    starts = range(0, len(x), size)
    return evaluate(
        model,
        [(x[start : start + size], labels[start : start + size]) for start in starts],
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
    assert isinstance(found.trained, Score)
    assert found.trained.top5 == 1.0  # there are five classes
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(9), labels]
    assert found.trained.loss == pytest.approx(losses.mean(), rel=1e-6)
    assert found.fused is not None
    assert found.fused.loss == pytest.approx(losses.mean(), rel=1e-4)


@pytest.mark.parametrize("wrong", [1e-2, np.nan])
@pytest.mark.parametrize("image", [0, 7])
def test_a_backend_whose_fused_form_computes_something_else_is_found(
    image: int, wrong: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights are right, so only the logits can show it; of one image, wherever it stands."""
    x, labels = batch(SMALL["plain"], count=9, dtype=np.float32)
    right = Model.forward

    def planted(self: Model, images: Array, **options: Any) -> Any:
        logits = right(self, images, **options)
        hit = np.all(images == x[image], axis=(1, 2, 3)) & (self.form == "deploy")
        return logits + np.where(hit, np.float32(wrong), np.float32(0))[:, None]

    monkeypatch.setattr(Model, "forward", planted)
    with pytest.raises(SelfCheckError, match="different logits"):
        run_evaluation(distinct_model(SMALL["plain"], dtype=np.float32), x, labels)


def test_nothing_to_evaluate_on_is_said() -> None:
    x, labels = batch(SMALL["plain"], count=0, dtype=np.float32)
    with pytest.raises(DataError, match="no image"):
        run_evaluation(distinct_model(SMALL["plain"], dtype=np.float32), x, labels)


DEEP = plain_architecture(depths=[4, 6, 4], channels=[8, 8, 16, 32], num_classes=3, in_channels=3)


def pictures(labels: Array, rng: np.random.Generator) -> Array:
    """Noise whose contrast tells the class."""
    contrast = np.float32(100) ** labels[:, None, None, None]
    return (contrast * rng.standard_normal((len(labels), 3, 32, 32))).astype(np.float32)


def poorly_trained() -> Model:
    """After one step: its running variances fit none of the classes."""
    model, rng = build(DEEP, dtype=np.float32), np.random.default_rng(0)
    labels = rng.integers(0, 3, 16)
    result = model.loss_and_grads(pictures(labels, rng), labels)
    weights = model.state_dict()
    moved = {name: weights[name] - np.float32(0.1) * g for name, g in result.grads.items()}
    model.load_state_dict(moved | result.stats)
    return model


@pytest.mark.parametrize("step", [1, -1], ids=["faint first", "faint last"])
def test_images_of_one_class_say_nothing_of_rounding_on_another(step: int) -> None:
    """Data sorted by class were a false alarm: the bound came from the first four images."""
    labels = np.sort(np.arange(24) % 3)[::step]
    x, model = pictures(labels, np.random.default_rng(1)), poorly_trained()
    found = run_evaluation(model, x, labels).comparison
    faint = check_agreement(
        model, fuse(model), x[labels == 0][:4], ops=backend_ops("numpy"), roundoff=U32
    )
    assert found is not None
    assert faint.tolerances.max() < found.difference <= found.tolerance


@pytest.mark.parametrize("seed", range(4))
def test_heavy_tailed_images_sorted_by_class_are_no_false_alarm(seed: int) -> None:
    """A few pixels are a thousand times the others, so no image stands for another."""
    rng = np.random.default_rng(seed)
    labels = np.sort(np.arange(24) % 3)[:: (-1) ** seed]
    x = pictures(labels, rng) * rng.standard_t(1.5, (24, 3, 32, 32)).astype(np.float32)
    found = run_evaluation(poorly_trained(), x, labels).comparison
    assert found is not None
    assert found.difference <= found.tolerance
    assert found.difference <= found.largest


def test_an_error_on_a_faint_image_is_not_hidden_by_bright_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is smaller than what rounding may do to the logits of the bright images."""
    labels = np.sort(np.arange(24) % 3)
    x, model = pictures(labels, np.random.default_rng(1)), poorly_trained()
    right = Model.forward
    some = x[[0, -1]]
    ops = backend_ops("numpy")
    faint, bright = check_agreement(model, fuse(model), some, ops=ops, roundoff=U32).tolerances
    assert 2 * faint < bright

    def planted(self: Model, images: Array, **options: Any) -> Any:
        hit = np.all(images == x[0], axis=(1, 2, 3)) & (self.form == "deploy")
        return right(self, images, **options) + np.where(hit, np.float32(2 * faint), 0)[:, None]

    monkeypatch.setattr(Model, "forward", planted)
    with pytest.raises(SelfCheckError, match="different logits"):
        run_evaluation(model, x, labels)
