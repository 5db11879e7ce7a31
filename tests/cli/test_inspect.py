"""`repvgg-ref inspect`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from repvgg_ref.files.checkpoint import save
from tests.cli.runner import invoke, save_small, small_model

KEYS = ["container", "dialect", "form", "model", "block", "tensors", "unexpected", "missing"]
KEYS += ["findings", "assumed", "metadata"]


def test_json_has_exactly_the_keys_of_the_contract(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shown = invoke(capsys, "inspect", save_small(tmp_path / "a.safetensors"), "--json")
    assert (shown.code, shown.err) == (0, "")
    found = shown.json()
    assert list(found) == KEYS
    findings = found.pop("findings")
    assert found.pop("metadata")["block"] == "repvgg"
    assert all(list(finding) == ["level", "layer", "message"] for finding in findings)
    assert found == {
        "container": "safetensors",
        "dialect": "official",
        "form": "train",
        "model": "custom",
        "block": "repvgg",
        "tensors": len(small_model().params),
        "unexpected": [],
        "missing": [],
        "assumed": {"eps": None, "strides": {}, "dilations": {}},
    }


def test_a_file_of_something_else_is_described(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "other.npz"
    np.savez(path, a=np.zeros(3), b=np.array([np.nan]))
    found = invoke(capsys, "inspect", path, "--json").json()
    assert (found["dialect"], found["form"], found["model"]) == (None, "unknown", None)
    messages = [finding["message"] for finding in found["findings"]]
    assert any("no RepVGG in any known dialect" in message for message in messages)
    assert "b: 1 NaN and 0 infinite of 1 values" in messages


def test_people_see_every_finding_in_the_width_of_the_terminal(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "72")
    monkeypatch.chdir(tmp_path)
    model = small_model()
    model.params["stage1.0.branch_3x3.bn.running_var"][:2] = -1
    model.params["linear.bias"][0] = np.nan
    save(model, "a.npz")
    shown = invoke(capsys, "inspect", "a.npz")
    assert (shown.code, shown.err) == (0, "")
    lines = shown.out.splitlines()
    assert lines[:7] == [
        "a.npz",
        "  container  npz",
        "  names      official",
        "  form       train",
        "  model      custom",
        "  block      repvgg",
        f"  tensors    {len(model.params)}",
    ]
    assert any(line.startswith("  error      stage1.0: branch_3x3: running_var") for line in lines)
    assert any(line.startswith("  error      linear: linear.bias: 1 NaN") for line in lines)
    assert max(map(len, lines)) <= 72


def test_long_lists_are_cut_and_names_made_printable(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "a.npz"
    state = dict(small_model().state_dict())
    extra = {f"extra.\x1b[31m{i}": np.zeros(1) for i in range(12)}
    np.savez(path, **state, **extra)  # type: ignore[arg-type]
    shown = invoke(capsys, "inspect", path)
    assert shown.code == 0
    assert "unexpected 12" in shown.out
    assert "... 2 more" in shown.out
    assert "\x1b" not in shown.out


def test_what_is_said_of_every_layer_is_said_once(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    model = small_model()
    for name, array in model.params.items():
        if name.endswith(".gamma"):
            array[0] = 0
    save(model, tmp_path / "a.npz")
    norms = sum(name.endswith(".gamma") for name in model.params)
    listed = invoke(capsys, "inspect", tmp_path / "a.npz", "--json").json()["findings"]
    assert sum("gamma is 0" in finding["message"] for finding in listed) == norms
    lines = invoke(capsys, "inspect", tmp_path / "a.npz").out.splitlines()
    (at,) = [i for i, line in enumerate(lines) if "gamma is 0" in line]
    assert f"and {norms - 1} more like it: stage0, stage1.0" in lines[at + 1]
    assert "--json lists all" in lines[at + 1]


def test_a_file_is_named_with_or_without_its_option(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = save_small(tmp_path / "a.npz")
    plain = invoke(capsys, "inspect", path)
    for option in ("--checkpoint", "--in"):
        assert invoke(capsys, "inspect", option, path) == plain
    assert "name one" in invoke(capsys, "inspect", path, "--in", path).error_line()
    assert "--checkpoint FILE" in invoke(capsys, "inspect").error_line()
