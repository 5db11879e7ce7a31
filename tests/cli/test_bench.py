"""`repvgg-ref bench`: what it prints and writes, and how it refuses."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from repvgg_ref_cli.commands import bench

from repvgg_ref.bench.contenders import base
from repvgg_ref.bench.table4 import PAPER
from tests.cli.formats_page import require_documented
from tests.cli.runner import Outcome, invoke

QUICK = ("--batch", 1, "--size", 16, "--rounds", 1, "--threads", 1)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> Outcome:
    return invoke(capsys, "bench", *QUICK, *arguments)


@pytest.fixture
def no_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


def test_help_names_what_there_is() -> None:
    """The command may not import this list: --help must answer at once."""
    assert tuple(entry.name for entry in base.PEERS) == bench.PEERS


def test_json_is_one_object_with_all_rounds(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out, picture = tmp_path / "a.json", tmp_path / "a.svg"
    shown = run(
        capsys, "--against", "none", "--json", "--no-layers", "--out", out, "--picture", picture
    )
    found = shown.json()
    assert shown.code == 0
    assert found == json.loads(out.read_text())
    require_documented("bench", [found])
    assert ET.parse(picture).getroot().tag.endswith("svg")
    assert [one["name"] for one in found["contenders"]] == [base.OURS, base.DIRECT, base.BRANCHES]
    assert [len(one["seconds"]) for one in found["contenders"]] == [1, 1, 1]
    assert found["contenders"][0]["ratio"]["median"] == 1
    assert (found["kind"], found["network"], found["threads"]) == ("inference", "RepVGG-A0", 1)
    assert {"machine", "load_before", "load_after", "others", "busy", "layers", "skipped"} <= set(
        found
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.svg"]


@pytest.mark.slow  # the JSON that it shows is tested on every push
def test_people_see_ratios_memory_and_layers(
    capsys: pytest.CaptureFixture[str], no_peers: None
) -> None:
    shown = run(capsys)
    assert shown.code == 0
    for word in ("over ours", "theory", "stage3.13", "peak %", "pip install torch"):
        assert word in shown.out
    assert max(map(len, shown.out.splitlines())) <= 80
    assert all(line.startswith("note: ") for line in shown.err.splitlines())


def test_a_training_step_without_peers(capsys: pytest.CaptureFixture[str], no_peers: None) -> None:
    found = run(capsys, "--train", "--json", "--size", 32, "--batch", 2).json()
    assert found["kind"] == "training"
    assert [each["mend"] for each in found["skipped"]] == ["pip install torch"]


def test_a_training_step_of_a_rival(capsys: pytest.CaptureFixture[str], no_peers: None) -> None:
    small = "--size", 32, "--batch", 2, "--model", "EfficientNet-B0"
    found = run(capsys, "--train", "--json", *small).json()
    assert [one["name"] for one in found["contenders"]] == [base.OURS]
    assert found["network"] == "EfficientNet-B0"


def test_a_conversion_without_peers(capsys: pytest.CaptureFixture[str], no_peers: None) -> None:
    found = run(capsys, "--convert", "--json").json()
    (ours,) = found["contenders"]
    assert 40e6 < ours["memory"]["peak"] < 300e6
    assert found["checkpoint_bytes"] > 4 * 9_108_968


@pytest.mark.slow
def test_table_4_prints_the_papers_figures(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    few = {name: PAPER[name] for name in ("RepVGG-A0", "ResNet-18", "EfficientNet-B0")}
    monkeypatch.setattr("repvgg_ref.bench.table4.PAPER", few)
    out = tmp_path / "found.json"
    shown = run(capsys, "--table4", "--size", 32, "--out", out)
    assert shown.code == 0
    for words in ("RepVGG-A0", "3256", "ResNet-18", "2442", "rank correlation", "33 % faster"):
        assert words in shown.out
    found = json.loads(out.read_text())
    require_documented("bench", [found])
    assert [claim["faster"] for claim in found["claims"]] == ["RepVGG-A0", "3x3"]
    assert [each["kernel"] for each in found["density"]] == [1, 3, 5, 7]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--against", "caffe"), "'caffe' is not one of 'torch', 'onnxruntime'"),
        (("--against", "torch,"), "'' is not one of"),
        (("--against", ""), "'' is not one of"),
        (("--model", "RepVGG-Z9"), "no network of that name"),
        (("--batch", 0), "--batch"),
        (("--rounds", 0), "--rounds"),
        (("--threads", "many"), "--threads"),
        (("--algorithm", "winograd3"), "winograd3"),
        (("--train", "--table4"), "two different benchmarks"),
        (("--table4", "--against", "torch"), "leave --against out"),
        (("--train", "--against", "ncnn"), "ncnn takes no part"),
        (("--convert", "--against", "ncnn"), "ncnn does not convert"),
        (("--convert", "--backend", "reference"), "numpy backend only"),
        (("--out", "/no/such/folder/a.json"), "cannot be written"),
    ],
)
def test_bad_options_end_in_one_line(
    arguments: tuple[Any, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in run(capsys, *arguments).error_line()


@pytest.mark.parametrize("peer", bench.PEERS)
def test_a_missing_peer_that_was_asked_for_is_an_error(
    peer: str, capsys: pytest.CaptureFixture[str], no_peers: None
) -> None:
    line = run(capsys, "--against", peer).error_line()
    assert f"pip install {peer}" in line


def test_files_that_were_there_stay_if_it_fails(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, no_peers: None
) -> None:
    out = tmp_path / "old.json"
    out.write_text("old")
    run(capsys, "--against", "torch", "--out", out).error_line()
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.slow
def test_another_backend_is_timed_through_the_same_seam(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = run(capsys, "--backend", "reference", "--against", "none", "--json").json()
    assert [one["name"] for one in found["contenders"]] == [base.OURS, base.BRANCHES]
    assert (found["backend"], found["layers"]) == ("reference", None)
