"""No correct port is accused: every runtime at hand, every precision, a few networks and seeds.

The full study is ``tests/studies/peers/false_alarm_study.py``, its results lie beside it.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.peers

from tests.peers.calibrated import model_and_inputs  # noqa: E402 - needs torch
from tests.peers.right_candidates import RightCandidate, all_candidates  # noqa: E402
from tests.studies.peers.false_alarm_study import RESULTS, chosen, judged  # noqa: E402

CANDIDATES = all_candidates()


@pytest.mark.parametrize("candidate", CANDIDATES, ids=lambda c: c.name)
def test_a_correct_port_of_the_bundled_network_is_not_accused(
    candidate: RightCandidate, tmp_path: Path
) -> None:
    _require_agreement("digits", 0, candidate, tmp_path)


@pytest.mark.parametrize("network", ["small", "small-g4", "small-se", "small-pse"])
@pytest.mark.parametrize("seed", [100, 101])
def test_correct_ports_of_random_networks_are_not_accused(
    network: str, seed: int, tmp_path: Path
) -> None:
    for candidate in chosen(CANDIDATES, seed, 4):
        if candidate.installed:
            _require_agreement(network, seed, candidate, tmp_path)


def test_every_candidate_has_its_turn() -> None:
    turns = [c.name for seed in range(20) for c in chosen(CANDIDATES, seed, 3)]
    assert set(turns) == {c.name for c in CANDIDATES}


def test_the_recorded_study_accused_nobody() -> None:
    records = [json.loads(path.read_text()) for path in RESULTS.glob("false-alarm-*.json")]
    assert records
    for record in records:
        for tally in record["candidates"]:
            assert tally["agree"] == tally["runs"], (record["model"], tally)


def _require_agreement(network: str, seed: int, candidate: RightCandidate, folder: Path) -> None:
    if not candidate.installed:
        pytest.skip(f"{candidate.package} is not installed")
    model, x = model_and_inputs(network, seed)
    if not candidate.suits(model):
        pytest.skip(f"{candidate.name} has no right grouped convolutions")
    report = judged(model, x, candidate, folder)
    assert report.verdict == "agree", f"{candidate.name}: {report.reason}"
    assert not report.diagnosis
