"""Killed with SIGKILL at a random moment, a training resumes to the bits it would have had.

``tests/studies/train/kill_study.py`` does this thirty times; its result is in ``results`` there.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.studies.train.kill_study import KILLS, RESULTS
from tests.train.kills import Whole, kill_and_resume, never_killed


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return never_killed(tmp_path_factory.mktemp("whole"))


@pytest.mark.slow
@pytest.mark.parametrize("kill", range(2))
def test_a_random_kill(kill: int, whole: Whole, tmp_path: Path) -> None:
    assert len(whole.losses) == 30
    found = kill_and_resume(tmp_path, whole, np.random.default_rng())
    assert found["same"], found


def test_the_study_that_is_committed_found_no_difference() -> None:
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert len(found["kills"]) == KILLS
    assert all(kill["same"] for kill in found["kills"])
