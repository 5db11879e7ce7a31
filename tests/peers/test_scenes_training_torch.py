"""Training steps of PSPNet in torch: right ones agree, bugs in torch's terms get their names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from repvgg_ref.oracle.training.judge import judge_training
from tests.oracle.training import scenes

torch: Any = pytest.importorskip("torch")

from tests.studies.peers.scenes_right import RIGHT  # noqa: E402 - they need torch
from tests.studies.peers.scenes_training_study import dump_of  # noqa: E402
from tests.studies.peers.scenes_wrong import WRONG  # noqa: E402

pytestmark = pytest.mark.peers
NAMED = [name for name, wrong in WRONG.items() if "unknown" not in wrong.names]


def test_float64_steps_agree_to_their_last_digits() -> None:
    _, steps = scenes.case()
    for name, array in dump_of(RIGHT["as it stands"], torch.float64).items():
        exact = np.asarray(steps.exact[name])
        error = np.abs(array - exact).max()
        assert error <= 1e-9 * max(1.0, np.abs(exact).max()), (name, error)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", RIGHT)
def test_right_ports_agree(name: str, dtype: Any) -> None:
    model, steps = scenes.case()
    report = judge_training(steps, dump_of(RIGHT[name], dtype), model=model)
    assert report.verdict == "agree", report.reason


@pytest.mark.parametrize("name", WRONG)
def test_wrong_ports_are_caught(name: str) -> None:
    """Without the start weights, too, which explain what is wrong."""
    _, steps = scenes.case()
    report = judge_training(steps, dump_of(WRONG[name].plant))
    assert report.verdict == "disagree"
    where = {start.partition("/")[0] for start in WRONG[name].first}
    assert str(report.first_bad_layer).startswith(tuple(where))


@pytest.mark.few(1)
@pytest.mark.parametrize("name", NAMED)
def test_bugs_are_placed_and_named(name: str) -> None:
    model, steps = scenes.case()
    report = judge_training(steps, dump_of(WRONG[name].plant), model=model)
    assert str(report.first_bad_layer).startswith(WRONG[name].first)
    assert report.diagnosis[0].bug in WRONG[name].names
