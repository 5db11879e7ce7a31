"""The log, TensorBoard's events, and the curves."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from repvgg_ref.errors import MissingExtraError
from repvgg_ref.train.curves import write_curves
from repvgg_ref.train.events import StepDone
from repvgg_ref.train.log import Log, TensorBoard, read_log
from repvgg_ref.train.state import StateError
from tests.train.small_training import run, small_job


def step(number: int, loss: float = 1.0) -> StepDone:
    return StepDone(number, 0, loss, 0.5, 0.1, 8, {"data": 0.1})


def test_what_a_killed_process_logged_beyond_its_state_is_taken_out(tmp_path: Path) -> None:
    log = Log(tmp_path, after=0)
    for number in range(1, 6):
        log.write(step(number))
    log.close()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"event": "step", "st')
    Log(tmp_path, after=3).close()
    assert [record["step"] for record in read_log(tmp_path)] == [1, 2, 3]


DAMAGED = [
    "[" * 100_000,
    "[]",
    '{"event": 3}',
    '{"event": "step"}',
    '{"event": "saved", "step": "1"}',
    '{"event": "step", "step": "1", "loss": 1, "top1": 1, "lr": 1}',
    '{"event": "step", "step": 1, "loss": null, "top1": 1, "lr": 1}',
    '{"event": "step", "step": true, "loss": 1, "top1": 1, "lr": 1}',
    '{"event": "evaluation", "step": 1, "epoch": 1, "trained": 3, "fused": {}}',
    '{"event": "evaluation", "step": 1, "epoch": 1}',
]


@pytest.mark.parametrize("line", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_line_is_left_out(line: str, tmp_path: Path) -> None:
    log = Log(tmp_path, after=0)
    log.write(step(1))
    log.close()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write(line + "\n")
    Log(tmp_path, after=3).close()
    assert [record["step"] for record in read_log(tmp_path)] == [1]


def test_no_log_is_an_empty_one(tmp_path: Path) -> None:
    assert read_log(tmp_path) == []


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    log = Log(tmp_path, after=0)

    class Full:
        def write(self, text: str) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    log._file.close()
    log._file = Full()  # type: ignore[assignment]  # the plant
    with pytest.raises(StateError, match=r"log cannot be written.*No space left"):
        log.write(step(1))


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    board = TensorBoard(tmp_path)
    events = run(small_job(tmp_path))
    for event in events:
        board.write(event)
    board.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    found: dict[str, list[tuple[int, float]]] = {}
    for record in loader.RawEventFileLoader(str(path)).Load():
        for tag, at, value in _scalars(record):
            found.setdefault(tag, []).append((at, value))
    logged = [(e.step, e.loss) for e in events if isinstance(e, StepDone)]
    assert [at for at, _ in found["train/loss"]] == [at for at, _ in logged]
    written = [loss for _, loss in found["train/loss"]]
    assert written == pytest.approx([loss for _, loss in logged], rel=1e-6)
    assert [at for at, _ in found["test/top1 fused"]] == [5, 10]


def _scalars(record: bytes) -> Iterator[tuple[str, int, float]]:
    from importlib import import_module

    event: Any = import_module("tensorboard.compat.proto.event_pb2").Event.FromString(record)
    for value in event.summary.value:
        yield value.tag, event.step, value.simple_value


def test_without_tensorboard_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("repvgg_ref.train.log.import_module", absent)
    with pytest.raises(MissingExtraError, match=r"repvgg-ref\[tensorboard\]"):
        TensorBoard(tmp_path)


# ------------------------------------------------------------------ curves


def records(steps: int) -> list[dict[str, Any]]:
    score = {"loss": 1.0, "top1": 0.5, "top5": 1.0}
    found: list[dict[str, Any]] = [
        {"event": "step", "step": n, "loss": 2.0 / n, "top1": 0.4, "lr": 0.1}
        for n in range(1, steps + 1)
    ]
    return [*found, {"event": "evaluation", "step": steps, "trained": score, "fused": score}]


@pytest.mark.few(1)
@pytest.mark.parametrize("steps", [2, 50, 5000])
def test_curves_are_drawn_within_their_panels(steps: int, tmp_path: Path) -> None:
    svg, png = write_curves(tmp_path, records(steps), title="<digits> & co")
    root = ElementTree.fromstring(svg.read_text(encoding="utf-8"))
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    lines = root.findall(".//{*}polyline")
    assert len(lines) == 6
    for line in lines:
        for point in line.attrib["points"].split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= width
            assert 0 <= y <= height
    assert "<digits> & co" in {text.text for text in root.findall(".//{*}text")}
    with Image.open(png) as image:
        assert image.size == (int(width), int(height))
        assert len(np.unique(np.asarray(image).reshape(-1, 3), axis=0)) > 3


def test_a_falling_loss_is_drawn_falling(tmp_path: Path) -> None:
    svg, _ = write_curves(tmp_path, records(50), title="t")
    root = ElementTree.fromstring(svg.read_text(encoding="utf-8"))
    first = root.find(".//{*}polyline")
    assert first is not None
    heights = [float(point.split(",")[1]) for point in first.attrib["points"].split()]
    assert heights == sorted(heights)  # downwards in pixels
    assert heights[-1] > heights[0]


def test_a_constant_curve_and_a_log_without_steps(tmp_path: Path) -> None:
    flat = [record | {"loss": 0.0, "lr": 0.0} for record in records(5)]
    assert len(write_curves(tmp_path, flat, title="t")) == 2
    assert write_curves(tmp_path, records(1)[:1], title="t") == []


def test_the_logs_lines_are_json(tmp_path: Path) -> None:
    run(small_job(tmp_path))
    text = (tmp_path / "log.jsonl").read_text(encoding="utf-8")
    kinds = [json.loads(line)["event"] for line in text.splitlines()]
    assert set(kinds) == {"step", "evaluation", "saved", "finished"}
