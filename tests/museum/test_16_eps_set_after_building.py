"""16. The eps that is set after building.

The port: the YOLO line builds its modules with torch's eps of 1e-5 and then walks over them,
`if type(m) is nn.BatchNorm2d: m.eps = 1e-3`. Whoever reads its state dict into blocks built by
themselves normalises with 1e-5; the walk is in no file. Of the same line: layers that the walk
never reaches, because they are put in afterwards.

Why no test saw it: keys and shapes fit, detections are a little worse, and "a little worse" is what
everybody expects of a conversion.

The oracle: `eps-value`, and measures 1e-5 where the reference says 1e-3, in all layers or in the
one that came late.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from repvgg_ref.models.network import Model
from tests.museum.exhibit import PLAIN, Exhibit, blocks, torch_port, train_form, trained

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.peers

YOLO, FRESH = 1e-3, 1e-5


def _walked(network: Any) -> Any:
    """What the line's own code does once the network is built."""
    for module in network.modules():
        if type(module) is torch.nn.BatchNorm2d:
            module.eps = YOLO
    return network


def _model() -> Model:
    return replace(trained(PLAIN), eps=YOLO)


def exhibits() -> list[Exhibit]:
    model = _model()
    fresh = train_form(model, eps=FRESH)
    late = _walked(train_form(model, eps=FRESH))
    for module in blocks(late)[3].modules():
        if type(module) is torch.nn.BatchNorm2d:
            module.eps = FRESH
    return [
        Exhibit("state dict in a fresh network", model, torch_port(fresh), "eps-value"),
        Exhibit("one block put in later", model, torch_port(late), "eps-value", "stage2.0"),
    ]


def test_the_network_that_was_walked_over_is_right() -> None:
    model = _model()
    port = torch_port(_walked(train_form(model, eps=FRESH)))
    assert Exhibit("", model, port, "").seen_by_layers().verdict == "agree"


def test_the_fresh_eps_is_measured() -> None:
    for exhibit in exhibits():
        assert exhibit.check().diagnosis[0].estimate == pytest.approx(FRESH, rel=0.05)
