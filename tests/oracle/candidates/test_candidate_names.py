from __future__ import annotations

import pytest

from repvgg_ref.models.architectures import architecture as official
from repvgg_ref.oracle.candidates import CandidateFailure
from repvgg_ref.oracle.candidates.names import LayerNames
from tests.oracle.candidates.ports import architecture

names = LayerNames(architecture())


@pytest.mark.parametrize(
    ("given", "layer"),
    [
        ("stage0", "stage0"),
        ("stage1.0", "stage1.0"),
        ("stage2_1", "stage2.1"),
        ("stage2/1:0", "stage2.1"),
        ("module.stage1.1", "stage1.1"),
        ("stem", "stage0"),
        ("stages.0.1", "stage1.1"),
        ("stages_1_2", "stage2.2"),
        ("backbone.stem", "stage0"),
        ("backbone.stage_2.0", "stage2.0"),
        ("head.fc", "linear"),
        ("logits", "linear"),
        ("Linear_output_0", "linear"),
        ("/stage0/nonlinearity/Relu_output_0", "stage0"),
        ("/stage1/stage1.1/nonlinearity/Relu_output_0", "stage1.1"),
        ("/stage1/stage1.1/rbr_dense/conv/Conv_output_0", None),
        ("stage3.0", None),
        ("stage1.9", None),
        ("stage1.0.rbr_reparam.weight", None),
        ("", None),
        ("\x1b[31m", None),
    ],
)
def test_a_name_means_one_layer_or_none(given: str, layer: str | None) -> None:
    assert names.layer(given) == layer


def test_the_halves_of_stage_3_of_repvggplus_are_one_stage() -> None:
    plus = LayerNames(official("RepVGGplus-L2pse"))
    assert plus.layer("stage1.blocks.7") == "stage1.7"
    assert plus.layer("stage3_first.blocks.11") == "stage3.11"
    assert plus.layer("stage3_second.blocks.0") == "stage3.12"
    assert plus.layer("/stage3_second/blocks.0/post_se/Mul_output_0") == "stage3.12"


def test_every_own_name_is_understood() -> None:
    for layer in (arch := official("RepVGG-A0")).layer_names:
        assert LayerNames(arch).layer(layer) == layer


@pytest.mark.parametrize("first", [0, 1])
def test_numbers_are_positions_counted_from_0_or_1(first: int) -> None:
    layers = architecture().layer_names
    found = names.sort([f"{i + first:02}" for i in range(len(layers))] + ["input"])
    assert list(found.layers) == list(layers)
    assert found.layers["stage0"] == f"{first:02}"
    assert found.input == "input"
    assert found.notes


def test_two_names_for_one_layer_are_refused() -> None:
    with pytest.raises(CandidateFailure, match=r"both the output of stage1\.0"):
        names.sort(["stage1.0", "module.stage1.0"])


def test_a_number_behind_the_last_layer_is_unknown() -> None:
    assert names.sort(["0", "99"]).unknown == ["99"]


def test_in_a_graph_the_later_of_two_tensors_is_the_layers_output() -> None:
    tensors = ["input", "125", "/stage0/relu", "stage0", "/stage1/x/Conv_output_0"]
    assert names.find(tensors) == ("input", {"stage0": "stage0"})
