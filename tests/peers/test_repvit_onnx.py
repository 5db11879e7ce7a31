# mypy: allow-subclassing-any
"""Layers that an ``.onnx`` file of a RepViT leaves out: no tensor is called like them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import repvgg_ref as rr

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

import onnx  # noqa: E402
from torch import nn  # noqa: E402

from tests.peers.test_repvit_torch import export, pictures, port_of, tiny  # noqa: E402

pytestmark = pytest.mark.peers


class Straight(nn.Module):
    """A channel mixer that forgot its shortcut."""

    def __init__(self, mixer: Any) -> None:
        super().__init__()
        self.m = mixer.m

    def forward(self, x: Any) -> Any:
        return self.m(x)


def leave_out(port: Any, layer: str) -> None:
    name, part = layer.removeprefix("block").split(".")
    block = port.features[0 if name == "stem0" else int(name)]
    if name == "stem0":
        block[1] = nn.Identity()
    elif part == "gate":
        block.token_mixer[1] = nn.Identity()
    elif part == "gelu":
        block.channel_mixer.m[1] = nn.Identity()
    else:
        block.channel_mixer = Straight(block.channel_mixer)


LEFT_OUT = {"gate": "gate-missing", "gelu": "activation-between", "add": "shortcut-missing"}


@pytest.mark.few(1)
@pytest.mark.parametrize("norms", ["kept", "folded"])
@pytest.mark.parametrize(
    "layers",
    [["stem0.gelu"], ["block1.gate"], ["block4.gate"], ["block2.gelu"], ["block1.add"],
     ["block2.add"], ["block4.add"], ["block1.gate", "block1.add"], ["block3.add", "block4.gate"]],
    ids=" ".join,
)  # fmt: skip
def test_what_a_graph_leaves_out_is_placed_and_named(
    layers: list[str], norms: str, tmp_path: Path
) -> None:
    """No tensor is called like it; what reads it reads what stands before it."""
    model, wrong = tiny(), port_of(tiny())
    for layer in layers:
        leave_out(wrong, layer)
    export(wrong, tmp_path / "m.onnx", folded=norms == "folded")
    report = rr.verify(model, tmp_path / "m.onnx", inputs=pictures()[:1])
    assert (report.verdict, report.first_bad_layer) == ("disagree", layers[0])
    found = {finding.layer: finding.bug for finding in report.diagnosis}
    assert found == {layer: LEFT_OUT[layer.split(".")[1]] for layer in layers}
    assert any("left out of the graph" in note for note in report.notes)


@pytest.mark.slow
def test_a_gate_whose_tensors_are_called_otherwise_is_not_taken_for_left_out(
    tmp_path: Path,
) -> None:
    """What is behind the unknown may be anything."""
    model = tiny()
    export(port_of(model), tmp_path / "m.onnx", folded=True)
    graph = onnx.load(tmp_path / "m.onnx")
    for node in graph.graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if "token_mixer.1/" in name or "channel_mixer/Add" in name:
                    names[place] = name.replace("/", "_")
    onnx.save(graph, tmp_path / "m.onnx")
    report = rr.verify(model, tmp_path / "m.onnx", inputs=pictures()[:1])
    assert report.verdict == "cannot-judge"
    assert "block1.gate" in report.reason
