"""`repvgg-ref table`."""

from __future__ import annotations

import pytest

from repvgg_ref import list_models
from repvgg_ref.blocks.catalogue import block_names
from tests.cli.runner import invoke


def test_json_has_exactly_the_keys_of_the_contract(capsys: pytest.CaptureFixture[str]) -> None:
    found = invoke(capsys, "table", "--json").json()
    assert list(found) == ["models"]
    assert [model["name"] for model in found["models"]] == [
        n for n in list_models() if not n.startswith("PSPNet")
    ]
    for model in found["models"]:
        assert list(model) == ["name", "params_train", "params_deploy", "macs", "wino_muls"]
        assert all(isinstance(model[key], int) for key in list(model)[1:])
    assert found["models"][0] == {
        "name": "RepVGG-A0",
        "params_train": 9_108_968,
        "params_deploy": 8_309_384,
        "macs": 1_361_451_008,
        "wino_muls": 747_296_768,
    }


def test_blocks_are_those_that_train_takes(capsys: pytest.CaptureFixture[str]) -> None:
    rows = invoke(capsys, "table", "--blocks", "--json").json()["blocks"]
    fields = ["name", "params_train", "params_deploy", "fusible", "reason", "top1", "certain"]
    assert all(list(row) == fields for row in rows)
    found = {row["name"]: row for row in rows}
    assert list(found) == block_names()
    whole = {"params_deploy": 14_339_048, "fusible": True, "reason": None}
    for name, row in found.items():
        if name == "relu-in-branches":
            assert row["params_deploy"] is None
            assert "ReLU stands before the sum" in row["reason"]
        elif name == "residual-reorg":
            assert (row["params_deploy"], row["fusible"]) == (14_384_552, False)
            assert row["reason"].startswith("its shortcut spans two convolutions")
            assert (row["top1"], row["certain"]) == (74.56, True)
        else:
            assert whole.items() <= row.items()
    (b0,) = (
        m for m in invoke(capsys, "table", "--json").json()["models"] if m["name"] == "RepVGG-B0"
    )
    assert found["repvgg"]["params_train"] == b0["params_train"]
    assert (found["repvgg"]["top1"], found["repvgg"]["certain"]) == (75.14, True)
    assert not found["dirac"]["certain"]
    shown = invoke(capsys, "table", "--blocks")
    assert (shown.code, shown.err) == (0, "")
    cells = {words[0]: words[1:] for line in shown.out.splitlines() if (words := line.split())}
    assert cells["repvgg"] == ["15.81", "14.33", "75.14"]
    assert cells["dirac"][-1] == "~73.97"
    assert "relu-in-branches is not fused: a ReLU stands before the sum" in shown.out


def test_people_see_the_columns_of_the_paper(capsys: pytest.CaptureFixture[str]) -> None:
    shown = invoke(capsys, "table")
    assert (shown.code, shown.err) == (0, "")
    rows = {cells[0]: cells[1:] for line in shown.out.splitlines() if (cells := line.split())}
    assert rows["RepVGG-A0"] == ["9.10", "8.30", "1.4", "0.7"]
    assert rows["RepVGG-B2g4"][1:] == ["55.77", "11.3", "6.0"]
    assert rows["ResNet-101"] == ["44.54", "44.49", "7.6", "5.5"]
    assert rows["EfficientNet-B0"][1:3] == ["5.26", "0.4"]
