"""What a right port may differ by: its own arithmetic is excused, one array of its is not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.render import assertion_text, render_html
from repvgg_ref.oracle.training import judge
from repvgg_ref.oracle.training.allowance import allowance
from repvgg_ref.oracle.training.noise import ALLOWED, FLOAT32, scale_error
from repvgg_ref.oracle.training.run import Setup
from repvgg_ref.oracle.training.steps import DESCRIPTION, read_steps, write_steps
from tests.oracle.training.tiny import case, dump_of, judged, setup_of


def total_of(x: Array) -> Array:
    """(C,) sums of (N, C, H, W), one term after the other."""
    terms = x.transpose(1, 0, 2, 3).reshape(x.shape[1], -1)
    return np.cumsum(terms, axis=1, dtype=x.dtype)[:, -1]


def in_sequence(setup: Setup) -> Setup:
    """A port whose batch norms keep one running total a channel."""
    right = setup.ops.batch_norm_train_forward

    def forward(x: Array, gamma: Array, beta: Array, *, eps: Any) -> tuple[Array, Any]:
        _, cache = right(x, gamma, beta, eps=eps)
        count = x.dtype.type(x.size // x.shape[1])
        mean = total_of(x) / count
        centred = x - mean[:, None, None]
        var = total_of(centred * centred) / count
        inv_std = 1 / np.sqrt(var + x.dtype.type(eps))
        x_hat = centred * inv_std[:, None, None]
        found: Any = cache
        kept = found._replace(x_hat=x_hat, inv_std=inv_std, mean=mean, var=var)
        return gamma[:, None, None] * x_hat + beta[:, None, None], kept

    return replace(setup, ops=replace(setup.ops, batch_norm_train_forward=forward))


def used(dump: dict[str, Array]) -> float:
    report = judged(dump, explained=False)
    assert report.verdict == "agree", report.reason
    return max(layer.likely_ratio for layer in report.layers)


def test_right_ports_use_less_than_half_of_what_they_may() -> None:
    setup = setup_of()
    assert used(dump_of(setup)) < 0.5
    assert used(dump_of(in_sequence(setup))) < 0.9
    assert used(dict(case()[1].exact)) < 1e-6


def test_every_report_says_what_a_dump_cannot_show() -> None:
    """In text, JSON and HTML, whatever the verdict."""
    right = dump_of(setup_of())
    wrong = right | {"grad/linear.weight": 2 * right["grad/linear.weight"]}
    for dump, verdict in ((right, "agree"), (wrong, "disagree")):
        report = judged(dump, explained=False)
        assert report.verdict == verdict
        (said,) = (note for note in report.notes if note.startswith("not tested: "))
        assert "after 3 steps" in said
        assert said in report.to_json()["notes"]
        assert "not tested: what" in render_html(report)
        assert "not tested: what" in " ".join(assertion_text(report).split())


@pytest.mark.parametrize(
    "name",
    ["grad/stage1.0.rbr_dense.conv.weight", "grad/linear.weight", "grad/stage2.1.rbr_1x1.bn.bias"],
)
def test_a_gradient_off_by_some_hundred_thousandths_is_caught_and_placed(name: str) -> None:
    """By 2e-5: what the right port's own rounding hides is another on every BLAS."""
    dump = dump_of(setup_of())
    dump[name] = dump[name] * np.float32(1 + 2e-5)
    report = judged(dump, explained=False)
    assert report.verdict == "disagree"
    assert [layer.name for layer in report.layers if not layer.ok] == [name]
    assert report.first_bad_layer == name


def test_the_level_of_a_port_is_that_of_most_of_its_arrays() -> None:
    _, steps = case()
    yards = steps.yardstick
    rng = np.random.default_rng(0)
    errors = {
        n: 3 * y.rms * rng.normal(size=steps.exact[n].shape) for n, y in yards.rounding.items()
    }
    level = allowance(yards, steps.exact, errors).level
    assert 2.5 < level["forward"] == level["backward"] < 6
    one = {n: 0 * e for n, e in errors.items()} | {"logits": 1e6 * errors["logits"]}
    assert set(allowance(yards, steps.exact, one).level.values()) == {1.0}


def test_nothing_is_allowed_beyond_the_backstop() -> None:
    _, steps = case()
    wild = {name: np.ones_like(array) for name, array in steps.exact.items() if name != "counters"}
    found = allowance(steps.yardstick, steps.exact, wild)
    for name in steps.yardstick.of:
        assert found.of(name).rms <= found.backstop(name).rms
        assert found.backstop(name).rms >= ALLOWED * steps.yardstick.of[name].rms


def test_the_scale_of_an_array_is_surer_than_its_numbers() -> None:
    rng = np.random.default_rng(0)
    exact = rng.normal(size=1000)
    error = 1e-3 * exact + 1e-2 * rng.normal(size=1000)
    assert abs(scale_error(error, exact) - 1e-3) < 1e-3
    assert scale_error(error, 0 * exact) == 0.0


def test_a_bundle_keeps_its_yards_and_an_old_one_has_the_backstop(tmp_path: Path) -> None:
    _, steps = case()
    write_steps(steps, tmp_path)
    again = read_steps(tmp_path)
    assert again.yardstick == steps.yardstick
    file = tmp_path / DESCRIPTION
    described = json.loads(file.read_text())
    for key in ("noise_scale", "rounding", "sums"):
        del described[key]
    file.write_text(json.dumps(described))
    old = read_steps(tmp_path)
    assert old.yardstick.u == FLOAT32
    name = "grad/linear.weight"
    dump = {n: a for n, a in dump_of(setup_of()).items() if n.startswith("grad/")}
    assert judge.judge_training(old, dump).verdict == "agree"
    dump[name] = dump[name] * np.float32(1.01)
    assert judge.judge_training(old, dump).first_bad_layer == name
