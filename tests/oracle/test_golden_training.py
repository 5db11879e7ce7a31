"""Training steps: exact numbers, an honest yardstick, and every known bug told by its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.errors import ReportedError
from repvgg_ref.models.architectures import plain_architecture
from repvgg_ref.models.graph import Network
from repvgg_ref.models.network import Model
from repvgg_ref.oracle.bugs.base import Site, planted
from repvgg_ref.oracle.golden.write import write_golden
from repvgg_ref.oracle.programs.distinguishing import TRAINING, distinguishing_model
from repvgg_ref.oracle.programs.inputs import (
    distinguishing_inputs,
    distinguishing_labels,
    golden_inputs,
)
from repvgg_ref.oracle.report import Report
from repvgg_ref.oracle.training import diagnose
from repvgg_ref.oracle.training.bugs import TRAINING_BUGS
from repvgg_ref.oracle.training.dump import bundle_name
from repvgg_ref.oracle.training.judge import judge_training
from repvgg_ref.oracle.training.noise import FLOAT32, measure
from repvgg_ref.oracle.training.recipe import Recipe, fitting_recipe
from repvgg_ref.oracle.training.run import Setup, right_setup, run
from repvgg_ref.oracle.training.steps import TrainingSteps, training_steps
from repvgg_ref.oracle.verification import verify
from repvgg_ref.train.decay import decay_kernels
from repvgg_ref.train.sgd import sgd_step
from tests.models.small import SMALL

TINY = plain_architecture(depths=[1, 2], channels=[4, 4, 5], num_classes=4, in_channels=2)
PARTS = 24  # of the known bugs, so that a push can run some
FEW = {
    "tiny": TINY,
    "se": plain_architecture(
        depths=[1], channels=[16, 16], se="before_relu", num_classes=3, in_channels=2
    ),
}


class Case:
    """A model, its right training steps, and dumps of ports."""

    def __init__(self, arch: Network, x: Array) -> None:
        self.model: Model = distinguishing_model(arch, x=x, statistics=TRAINING)
        labels = distinguishing_labels(arch, len(x))
        self.steps: TrainingSteps = training_steps(self.model, x, labels)
        self.setup: Setup = right_setup(self.model, x, labels, self.steps.recipe)

    def judged(self, dump: Any, *, explained: bool = True) -> Report:
        return judge_training(self.steps, dump, model=self.model if explained else None)

    def dump(self, setup: Setup | None = None) -> dict[str, Array]:
        """What a float32 port writes: the reference's arithmetic in float32."""
        chosen = self.setup if setup is None else setup
        single = {
            name: array.astype(np.float32) if array.dtype.kind == "f" else array
            for name, array in chosen.params.items()
        }
        with np.errstate(all="ignore"):
            found = run(replace(chosen, params=single, x=chosen.x.astype(np.float32)))
        return {n: a.astype(np.float32) if a.dtype.kind == "f" else a for n, a in found.items()}


def wrong_setup(name: str, setup: Setup) -> Setup:
    """The first variant of a bug."""
    found = [bug for bug in TRAINING_BUGS if bug.name == name]
    return next(planted(found, Site(setup, setup.x))).variant.program


@pytest.fixture(scope="module", params=FEW)
def case(request: pytest.FixtureRequest) -> Case:
    arch = FEW[request.param]
    return Case(arch, distinguishing_inputs(arch, batch=2, height=22, width=18))


@pytest.fixture(scope="module")
def tiny() -> Case:
    return Case(TINY, distinguishing_inputs(TINY, batch=2, height=22, width=18))


@pytest.mark.few
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("nesterov", [False, True])
def test_the_steps_are_the_packages_own_bit_by_bit(name: str, nesterov: bool) -> None:
    arch = SMALL[name]
    x = golden_inputs(arch)
    model = distinguishing_model(arch, x=x, statistics=TRAINING)
    params = {
        n: a.astype(np.float64) if a.dtype.kind == "f" else a for n, a in model.params.items()
    }
    labels = distinguishing_labels(arch, 2)
    recipe = Recipe((0.01, 0.005), nesterov=nesterov)
    exact = run(right_setup(model, x, labels, recipe))

    own = replace(model, params=dict(params))
    velocities: dict[str, Array] = {}
    for i, lr in enumerate(recipe.lrs):
        step = own.loss_and_grads(
            x.astype(np.float64), labels, label_smoothing=0.1, backend="reference"
        )
        if i == 0:
            assert exact["loss"] == step.loss
            assert np.array_equal(exact["logits"], step.logits)
            for key, grad in step.grads.items():
                assert np.array_equal(exact[f"grad/{key}"], grad), key
            for key, stat in step.stats.items():
                assert np.array_equal(exact[f"stat/{key}"], stat), key
        taken = sgd_step(
            own.state_dict(),
            step.grads,
            velocities,
            lr=lr,
            momentum=0.9,
            nesterov=nesterov,
            weight_decay=5e-3,
            factors=decay_kernels,
        )
        own.load_state_dict(taken.params | step.stats)
        velocities = taken.velocities
    for key, array in own.state_dict().items():
        assert np.array_equal(exact[f"after/{key}"], array), key


def test_a_float32_port_agrees_with_room_to_spare(case: Case) -> None:
    report = case.judged(case.dump())
    assert report.verdict == "agree", report.reason
    assert report.precision == "fp32"
    assert max(layer.ratio for layer in report.layers) < 0.2
    assert case.judged(dict(case.steps.exact)).precision == "fp64"


def test_the_yardstick_is_proportional_to_the_roundoff(tiny: Case) -> None:
    floating = {n: a for n, a in tiny.steps.exact.items() if a.dtype.kind == "f"}
    finer = measure(tiny.setup, floating, u=FLOAT32 / 64)
    for name, yard in tiny.steps.yardstick.scaled(FLOAT32 / 64).of.items():
        assert 0.2 < finer.of[name].rms / yard.rms < 5, name


@pytest.mark.few(1)
@pytest.mark.parametrize("part", range(PARTS))
def test_every_known_bug_is_named(
    case: Case, part: int, record_property: Callable[[str, object], None]
) -> None:
    count, wrong = 0, list[tuple[str, str]]()
    seen: set[str] = set()
    for mutant in planted(TRAINING_BUGS, Site(case.setup, case.setup.x)):
        bug = mutant.bug
        if bug.name in seen:  # one variant each; the study has them all
            continue
        seen.add(bug.name)
        if len(seen) % PARTS != part:
            continue
        count += 1
        report = case.judged(case.dump(mutant.variant.program))
        first = report.diagnosis[0] if report.diagnosis else None
        if report.verdict != "disagree" or first is None:
            wrong.append((bug.name, report.verdict))
        elif bug.name not in (first.bug, *first.equivalents):
            wrong.append((bug.name, first.bug))
    record_property("planted training bugs named", f"{count - len(wrong)} of {count}")
    assert wrong == []
    assert count >= 40 // PARTS
    assert len(seen) >= 40


@pytest.mark.few(1)
@pytest.mark.parametrize("layer", ["stage1.0", "stage2.0", "stage2.1"])
@pytest.mark.parametrize(
    "name", ["bn-backward-without-mean-term", "relu-mask-wrong", "gamma-beta-gradients-swapped"]
)
def test_a_bug_in_one_layer_is_named_with_its_layer(tiny: Case, name: str, layer: str) -> None:
    local = wrong_setup(name, replace(tiny.setup, at=frozenset({layer})))
    found = tiny.judged(tiny.dump(local)).diagnosis[0]
    assert (found.bug, found.layer) == (name, layer)


@pytest.mark.slow
def test_two_bugs_at_once_are_both_named(tiny: Case) -> None:
    first = wrong_setup("running-var-biased", tiny.setup)
    both = wrong_setup("gamma-beta-gradients-swapped", first)
    report = tiny.judged(tiny.dump(both))
    assert {f.bug for f in report.diagnosis} == {
        "running-var-correction",
        "gamma-beta-gradients-swapped",
    }
    (share,) = (f.estimate for f in report.diagnosis if f.bug == "running-var-correction")
    assert share == pytest.approx(0, abs=1e-4)  # of 1 / (n - 1): the biased variance
    assert all("two bugs at once" in finding.says for finding in report.diagnosis)


@pytest.mark.slow
@pytest.mark.parametrize("pairs", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_bug_that_nobody_knows_is_called_unknown(
    tiny: Case, pairs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not pairs:  # they are tried last and take longest, and of settings one pair will do
        monkeypatch.setattr(diagnose, "_LIKELY", 1)
        monkeypatch.setattr(diagnose, "_MOST_PARAMETERS_FOR_PAIRS", 0)
    dump = tiny.dump()
    kernel = dump["grad/stage1.0.rbr_dense.conv.weight"]
    kernel[:, ::2] *= 1.01
    report = tiny.judged(dump)
    assert report.verdict == "disagree"
    assert report.first_bad_layer == "grad/stage1.0.rbr_dense.conv.weight"
    assert [finding.bug for finding in report.diagnosis] == ["unknown"]


def test_the_first_wrong_gradient_in_backward_order_is_reported(tiny: Case) -> None:
    dump = tiny.dump()
    for name in ("grad/stage0.rbr_dense.conv.weight", "grad/stage2.0.rbr_1x1.bn.weight"):
        dump[name] = dump[name] * np.float32(1.001)
    report = tiny.judged(dump, explained=False)
    assert report.first_bad_layer == "grad/stage2.0.rbr_1x1.bn.weight"


Spoil = Callable[[dict[str, Array]], Any]


def without(start: str, *, keep: int = 0) -> Spoil:
    def spoil(dump: dict[str, Array]) -> Any:
        names = [name for name in dump if name.startswith(start)]
        return {n: a for n, a in dump.items() if n not in names[keep:]}

    return spoil


def changed(name: str, change: Callable[[Array], Any]) -> Spoil:
    return lambda dump: dump | {name: change(dump[name])}


@pytest.mark.parametrize(
    ("spoil", "verdict", "says"),
    [
        (lambda dump: {}, "cannot-judge", "no number of a training step"),
        (lambda dump: {"a": np.ones(3)}, "cannot-judge", "no number of a training step: a"),
        (lambda dump: {"loss": dump["loss"]}, "cannot-judge", "nothing is known of the backward"),
        (without("grad/", keep=5), "cannot-judge", "are missing"),
        (without("after/", keep=1), "cannot-judge", "are missing"),
        (lambda dump: Path("nowhere.npz"), "cannot-judge", "no such file"),
        (
            lambda dump: {n: a.astype(np.float16) for n, a in dump.items() if a.dtype.kind == "f"},
            "cannot-judge",
            "16-bit",
        ),
        (
            lambda dump: dump | {"grad.linear.bias": dump["grad/linear.bias"]},
            "cannot-judge",
            "two arrays",
        ),
        (changed("grad/linear.bias", lambda a: a * np.nan), "disagree", "NaN"),
        (changed("after/linear.bias", lambda a: a + np.inf), "disagree", "infinite"),
        (changed("grad/linear.weight", lambda a: a.T), "disagree", "shape"),
        (changed("grad/linear.weight", lambda a: a[:1]), "disagree", "shape"),
        (
            changed("stat/stage0.rbr_dense.bn.num_batches_tracked", lambda a: a + 1),
            "disagree",
            "num_batches_tracked",
        ),
    ],
)
def test_nothing_that_says_nothing_passes(
    spoil: Spoil, verdict: str, says: str, tiny: Case
) -> None:
    report = tiny.judged(spoil(tiny.dump()), explained=False)
    assert report.verdict == verdict
    assert says in report.reason


@pytest.mark.parametrize("kinds", [("grad/",), ("after/",), ("grad/", "stat/", "loss")])
def test_whole_kinds_will_do_and_what_is_missing_is_said(
    kinds: tuple[str, ...], tiny: Case
) -> None:
    dump = {n: a for n, a in tiny.dump().items() if n.startswith(kinds)}
    report = tiny.judged(dump)
    assert report.verdict == "agree", report.reason
    assert any("not judged: " in note for note in report.notes)


@pytest.mark.parametrize(
    "given",
    ["grad/linear.bias", "grad.linear.bias", "grads:linear.bias", "gradients/module.linear.bias"],
)
def test_names_are_taken_as_people_write_them(given: str) -> None:
    assert bundle_name(given, {"grad/linear.bias"}) == "grad/linear.bias"
    assert bundle_name("linear.bias.grad", {"grad/linear.bias"}) == "grad/linear.bias"
    assert bundle_name("linear.bias", {"grad/linear.bias", "after/linear.bias"}) is None


def test_without_weights_it_is_judged_but_not_explained(tiny: Case) -> None:
    report = tiny.judged(tiny.dump(wrong_setup("nesterov", tiny.setup)), explained=False)
    assert (report.verdict, report.diagnosis) == ("disagree", ())
    assert any("give the reference" in note for note in report.notes)


def test_a_bundle_with_training_steps_judges_dumps(tmp_path: Path) -> None:
    model = distinguishing_model(TINY, statistics=TRAINING)
    summary = write_golden(model, tmp_path / "b", train_step=True, steps=2)
    assert summary.steps is not None
    assert len(summary.steps.recipe.lrs) == 2
    own = tmp_path / "b" / "train_step.npz"
    assert verify(tmp_path / "b", own).verdict == "agree"
    assert verify(tmp_path / "b", tmp_path / "b" / "outputs.npz").verdict == "agree"
    with np.load(own) as archive:
        dump = {name: archive[name] for name in archive.files}
    n = len(dump["input"])
    doubled = {k: v * n if k.startswith("grad/") else v for k, v in dump.items()}
    later = ("after", "losses")  # what later steps say is another port's
    report = verify(tmp_path / "b", {k: v for k, v in doubled.items() if not k.startswith(later)})
    assert report.verdict == "disagree"
    assert report.diagnosis[0].bug == "loss-gradient-not-averaged"


def test_large_steps_are_stored_in_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from repvgg_ref.oracle.training import steps

    monkeypatch.setattr(steps, "_MOST_FLOAT64", 0)
    write_golden(distinguishing_model(TINY, statistics=TRAINING), tmp_path / "b", train_step=True)
    found = steps.read_steps(tmp_path / "b")
    assert found.stored == "float32"
    assert verify(tmp_path / "b", dict(found.exact)).verdict == "agree"


def test_a_recipe_moves_weights_a_little_and_shows_its_settings() -> None:
    recipe = fitting_recipe({"a.weight": np.ones(4)}, {"a.weight": np.full(4, 2.0)}, 3)
    assert recipe.lrs == (0.01, 0.006, 0.0036)
    assert recipe.weight_decay == 0.05
    assert Recipe.from_json(recipe.to_json()) == recipe
    with pytest.raises(ReportedError, match="step"):
        fitting_recipe({}, {}, 0)


def test_a_reference_that_overflows_is_refused(tiny: Case) -> None:
    params = dict(tiny.model.params)
    params["linear.bias"] = np.full_like(params["linear.bias"], np.inf)
    with pytest.raises(ReportedError, match="finite"), np.errstate(all="ignore"):
        training_steps(replace(tiny.model, params=params), tiny.steps.x, tiny.steps.labels, steps=1)
