"""The script of all figures: its command lines are valid, its page says what was not met."""

from __future__ import annotations

from typing import Any

import click
import pytest
from repvgg_ref_cli.commands import bench

from repvgg_ref.bench.contenders.base import PEERS
from repvgg_ref.bench.document import document
from repvgg_ref.bench.result import Race
from tests.bench.test_pictures import BUSY, FOUND, OURS, QUIET, TASK, THEIRS, UNKNOWN, measured
from tests.studies.bench.figures import JOBS, TARGETS, readme


@pytest.mark.parametrize("name", JOBS)
def test_every_job_is_a_valid_command_line(name: str) -> None:
    context = bench.command.make_context("bench", list(JOBS[name]))
    assert isinstance(context, click.Context)


def test_every_target_belongs_to_a_job_and_a_peer() -> None:
    assert set(TARGETS) <= set(JOBS)
    assert {peer for wanted in TARGETS.values() for peer in wanted} == {e.name for e in PEERS}


def test_the_page_says_what_was_met_and_what_was_not() -> None:
    fast, slow = measured("torch", 4.0, 8.0, 4.0), measured("ncnn", 1.0, 2.0, 1.0)
    found: dict[str, Any] = {
        "B1-b16": document(Race(TASK, [OURS, fast, slow], []), QUIET),
        "A0-convert": document(FOUND["conversion"], UNKNOWN),
        "table4-b16": document(FOUND["table4"], UNKNOWN),
    }
    lines = list(readme(found))
    (torch,) = [line for line in lines if line.startswith("| B1-b16 | 1 % | torch")]
    (ncnn,) = [line for line in lines if line.startswith("| B1-b16 | 1 % | ncnn")]
    assert torch.endswith("| 4.00 (4.00..4.00) | 4.00 | 2.0 | met |")
    assert ncnn.endswith("| 1.00 (1.00..1.00) | 1.00 | 1.5 | not met |")
    found["B1-b16"] = document(Race(TASK, [OURS, fast], []), BUSY)
    assert any(line.endswith("| 2.0 | busy, not judged |") for line in readme(found))
    page = "\n".join(lines)
    for words in (THEIRS.name, "rank correlation 1.000", "![conversion of RepVGG-A0"):
        assert words in page


def test_a_page_without_documents_is_a_page() -> None:
    assert next(readme({})) == "# Benchmark figures"
