"""Documents and pictures: well-formed, true to scale, and safe with strange names."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from typing import Any

import pytest

from repvgg_ref.bench.conversion import Conversion
from repvgg_ref.bench.document import Found, as_text, document
from repvgg_ref.bench.machine import Watch
from repvgg_ref.bench.picture import Bar, Panel, render_picture
from repvgg_ref.bench.result import Measured, Race, Skipped
from repvgg_ref.bench.table4 import PAPER, Row, Table4
from repvgg_ref.bench.task import Task

TASK = Task("inference", "RepVGG-A0", 16, 224, 2)
SVG = "{http://www.w3.org/2000/svg}"


def measured(name: str, *seconds: float) -> Measured:
    return Measured(
        name,
        "auto",
        "1.0",
        1e-7,
        {"auto": seconds[0]},
        seconds=list(seconds),
        cpu_seconds=list(seconds),
        memory={"peak": 10**8},
    )


OURS = measured("ours", 1.0, 2.0, 1.0)
THEIRS = measured("<script>&", 2.0, 5.0, 4.0)
LAYERS = {
    "images": 16,
    "ceiling_gflops": 300.0,
    "seconds": 0.03,
    "rest_seconds": 0.01,
    "rows": [
        {
            "layer": "stage0",
            "channels": 3,
            "output": [48, 112, 112],
            "stride": 2,
            "groups": 1,
            "algorithm": "direct",
            "seconds": 0.02,
            "share": 0.66,
            "gflops": 450.0,
            "done_gflops": 150.0,
        }
    ],
}


class Told(Watch):
    """A watch that tells what a test wants."""

    def __init__(self, share: float | None) -> None:
        super().__init__()
        self.share = share

    def others(self) -> float | None:
        return self.share


QUIET, BUSY, UNKNOWN = Told(0.01), Told(0.5), Told(None)
TABLE4 = Table4(
    TASK,
    tuple(Row(n, (speed or 90) / 10, speed, 100.0, (1.0,)) for n, speed in PAPER.items()),
    {1: 30.0, 3: 70.0, 5: 35.0, 7: 20.0},
)
FOUND: dict[str, Found] = {
    "inference": Race(TASK, [OURS, THEIRS], [Skipped("ncnn", "not installed", "pip ...")], LAYERS),
    "training": Race(replace(TASK, kind="training"), [OURS, THEIRS], []),
    "conversion": Conversion("RepVGG-A0", 10**7, [OURS, THEIRS], []),
    "table4": TABLE4,
}


@pytest.mark.parametrize("kind", FOUND)
def test_every_kind_becomes_json_and_a_picture(kind: str) -> None:
    made = json.loads(as_text(document(FOUND[kind], QUIET)))
    assert made["kind"] == kind
    assert made["busy"] is False
    assert made["machine"]["cores"] >= 1
    root = ET.fromstring(render_picture(made))
    assert root.tag == f"{SVG}svg"
    bottom = float(root.attrib["height"])
    groups = root.findall(f"{SVG}g")
    assert groups
    for group in groups:
        top = float(group.attrib["transform"].split()[1].rstrip(")"))
        lowest = max(float(bar.attrib["y"]) + 15 for bar in group.findall(f"{SVG}rect"))
        assert top + lowest < bottom


def test_names_are_text_in_the_picture() -> None:
    made = document(FOUND["training"], UNKNOWN)
    texts = [t.text for t in ET.fromstring(render_picture(made)).iter(f"{SVG}text")]
    assert "<script>&" in texts


def test_a_document_holds_all_rounds_and_their_ratios() -> None:
    made = document(FOUND["inference"], BUSY)
    assert made["busy"] is True
    other = made["contenders"][1]
    assert other["seconds"] == [2.0, 5.0, 4.0]
    assert other["ratio"]["all"] == (2.0, 2.5, 4.0)
    assert other["ratio"]["median"] == 2.5
    assert other["images_per_second"] == 4
    assert other["gflops"] == pytest.approx(2 * 16 * 1.361451008 / 4)
    assert made["skipped"][0]["mend"] == "pip ..."


def test_bars_are_to_scale() -> None:
    panel = Panel("", (Bar("a", 1.0, ""), Bar("b", 3.0, "", high=4.0)), line=2.0)
    zero, one, two, four = (panel.x(value) for value in (0, 1, 2, 4))
    assert two - zero == pytest.approx(2 * (one - zero), abs=0.2)
    assert four - zero == pytest.approx(4 * (one - zero), abs=0.3)


def test_the_order_of_table_4() -> None:
    assert TABLE4.rank_correlation == pytest.approx(1)
    assert TABLE4.exchanged == []
    rows = list(TABLE4.rows)
    rows[1], rows[2] = replace(rows[1], here=rows[2].here), replace(rows[2], here=rows[1].here)
    turned: Any = Table4(TASK, tuple(rows))
    assert turned.exchanged == [("ResNet-18", "RepVGG-A1")]
    # Spearman by its formula: 1 - 6 sum d^2 / (n (n^2 - 1)), two ranks off by one.
    assert turned.rank_correlation == pytest.approx(1 - 6 * 2 / (19 * 360))
