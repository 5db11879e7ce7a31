"""Numbers that a port was trained with are estimated from its dump, with an honest error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.bugs.base import Site, planted
from repvgg_ref.oracle.report import Finding
from repvgg_ref.oracle.training.allowance import allowance
from repvgg_ref.oracle.training.bugs import TRAINING_BUGS
from repvgg_ref.oracle.training.bugs.wrong_setup import with_recipe
from repvgg_ref.oracle.training.fit import Estimation
from repvgg_ref.oracle.training.run import Setup, run
from repvgg_ref.oracle.training.settings import SETTINGS, Setting
from tests.oracle.training.tiny import case, dump_of, judged, setup_of


def with_decay(setup: Setup, factor: float) -> Setup:
    return with_recipe(setup, weight_decay=factor * setup.recipe.weight_decay)


def with_rates(setup: Setup, factor: float) -> Setup:
    return with_recipe(setup, lrs=tuple(factor * lr for lr in setup.recipe.lrs))


WRONG: dict[str, tuple[float, Callable[[Setup], Setup]]] = {
    "running-momentum-value": (0.11, lambda s: replace(s, bn_momentum=0.11)),
    "momentum-value": (0.89, lambda s: with_recipe(s, momentum=0.89)),
    "learning-rate-factor": (1.03, lambda s: with_rates(s, 1.03)),
    "bn-eps": (3e-3, lambda s: replace(s, eps=3e-3)),
    "label-smoothing": (0.12, lambda s: with_recipe(s, label_smoothing=0.12)),
}


def assert_estimated(finding: Finding, value: float) -> None:
    assert finding.estimate is not None
    assert finding.standard_error is not None
    assert 0 < finding.standard_error < 1e-3 * value
    assert abs(finding.estimate - value) <= 4 * finding.standard_error, finding.says
    assert "standard error" in finding.says


@pytest.mark.few(1)
@pytest.mark.parametrize("name", WRONG)
def test_a_number_that_is_in_no_list_is_estimated(name: str) -> None:
    value, wrong = WRONG[name]
    report = judged(dump_of(wrong(setup_of())))
    assert report.verdict == "disagree"
    assert [finding.bug for finding in report.diagnosis] == [name], report.reason
    assert_estimated(report.diagnosis[0], value)
    said = report.to_json()["diagnosis"][0]
    assert said["standard_error"] == report.diagnosis[0].standard_error


def estimation(dump: dict[str, Array]) -> Estimation:
    _, steps = case()
    given = {name: dump[name].astype(np.float64) for name in steps.yardstick.of}
    errors = {name: array - steps.exact[name] for name, array in given.items()}
    return Estimation(given, allowance(steps.yardstick, steps.exact, errors))


def setting_of(bug: str) -> Setting:
    return next(setting for setting in SETTINGS if setting.bug == bug)


def test_two_numbers_at_once_are_both_estimated() -> None:
    setup = setup_of()
    chosen = tuple(map(setting_of, ("momentum-value", "weight-decay-factor")))
    told = estimation(dump_of(with_decay(with_recipe(setup, momentum=0.89), 1.1)))
    assert chosen in told.likely(setup, 2, late=True)[:3]
    fitted = told.fit(setup, chosen)
    assert fitted is not None
    assert fitted.is_significant
    momentum, decay = fitted.findings()
    assert_estimated(momentum, 0.89)
    assert_estimated(decay, 1.1 * setup.recipe.weight_decay)


def test_a_number_is_estimated_beside_a_bug() -> None:
    known = [bug for bug in TRAINING_BUGS if bug.name == "gamma-beta-gradients-swapped"]
    swapped = next(planted(known, Site(setup_of(), setup_of().x))).variant.program
    fitted = estimation(dump_of(with_rates(swapped, 1.03))).fit(
        swapped, [setting_of("learning-rate-factor")]
    )
    assert fitted is not None
    assert_estimated(fitted.findings()[0], 1.03)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.bug)
def test_the_reference_has_its_own_value_and_another_shows_when_it_should(
    setting: Setting,
) -> None:
    """At the right value nothing changes; `late` is what shows after the first step only."""
    setup, chosen = setup_of(), setting
    right = chosen.right(setup)
    if right is None:
        # this network has none; those of segmenters are tried in test_scenes
        of_segmenters = {"dropout-wrong", "learning-rate-of-new-modules", "poly-schedule"}
        assert chosen.bug in {"aux-heads", *of_segmenters}
        return
    exact, same = run(setup), run(chosen.at(setup, right))
    other = run(chosen.at(setup, right + 0.5 * max(abs(right), chosen.unit)))
    for name in exact:
        assert np.allclose(same[name], exact[name], rtol=1e-12, atol=1e-13), name
    changed = {name for name in exact if not np.array_equal(other[name], exact[name])}
    assert any(name.startswith("after/") for name in changed)
    first = any(not name.startswith("after/") and name != "losses" for name in changed)
    assert first == (not chosen.late)


@pytest.mark.few(1)
@pytest.mark.parametrize("factor", [0.5, 0.9, 0.97, 1.01, 2.0])
def test_rates_are_estimated_whichever_way_they_are_off(factor: float) -> None:
    """ReLUs switch on the way from the recipe's rates to these."""
    finding = judged(dump_of(with_rates(setup_of(), factor))).diagnosis[0]
    assert finding.bug == "learning-rate-factor"
    assert_estimated(finding, factor)


def test_no_momentum_is_called_so_and_not_a_value() -> None:
    setup = setup_of()
    given = dump_of(with_recipe(setup, momentum=0.0))
    given = {name: array for name, array in given.items() if array.dtype.kind == "f"}
    _, steps = case()
    errors = {name: array - steps.exact[name] for name, array in given.items()}
    allowed = allowance(steps.yardstick, steps.exact, errors)
    momentum = next(setting for setting in SETTINGS if setting.bug == "momentum-value")
    found = Estimation(given, allowed).fit(setup, (momentum,))
    assert found is not None
    assert [finding.bug for finding in found.findings()] == ["momentum-missing"]
