"""`repvgg-ref table`."""

from __future__ import annotations

import pytest

from repvgg_ref import list_models
from tests.cli.runner import invoke


def test_json_has_exactly_the_keys_of_the_contract(capsys: pytest.CaptureFixture[str]) -> None:
    found = invoke(capsys, "table", "--json").json()
    assert list(found) == ["models"]
    assert [model["name"] for model in found["models"]] == list_models()
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


def test_people_see_the_columns_of_the_paper(capsys: pytest.CaptureFixture[str]) -> None:
    shown = invoke(capsys, "table")
    assert (shown.code, shown.err) == (0, "")
    rows = {cells[0]: cells[1:] for line in shown.out.splitlines() if (cells := line.split())}
    assert rows["RepVGG-A0"] == ["9.10", "8.30", "1.4", "0.7"]
    assert rows["RepVGG-B2g4"][1:] == ["55.77", "11.3", "6.0"]
    assert rows["ResNet-101"] == ["44.54", "44.49", "7.6", "5.5"]
    assert rows["EfficientNet-B0"][1:3] == ["5.26", "0.4"]
