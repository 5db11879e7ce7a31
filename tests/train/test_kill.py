"""Killed with SIGKILL at a random moment, a training resumes to the bits it would have had.

``tests/studies/train/kill_study.py`` does this thirty times; its result is in ``results`` there.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tests.studies.train.kill_study import KILLS, RESULTS
from tests.train.kills import kill_and_resume, never_killed


def test_two_random_kills(tmp_path: Path) -> None:
    whole = never_killed(tmp_path / "whole")
    assert len(whole.losses) == 30
    rng = np.random.default_rng()
    for number in range(2):
        found = kill_and_resume(tmp_path / str(number), whole, rng)
        assert found["same"], found


def test_the_study_that_is_committed_found_no_difference() -> None:
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert len(found["kills"]) == KILLS
    assert all(kill["same"] for kill in found["kills"])
