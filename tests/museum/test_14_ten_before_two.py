"""14. Layer 10 comes before layer 2.

The port: weights exported to one array a layer, loaded in the order of `sorted(names)`. As text
"stage1.10" is less than "stage1.2". Blocks of one stage have the same shapes, so all fits.

Why no test saw it: the port's test network had fewer than eleven blocks a stage.

The oracle: `layers-swapped`, and whose weights they are, in the first layer that is out of order.
"""

from __future__ import annotations

import pytest

from repvgg_ref.models.architectures import plain_architecture
from tests.museum.exhibit import Exhibit, blocks, deploy_form, torch_port, trained

pytest.importorskip("torch")
pytestmark = pytest.mark.peers

DEEP = plain_architecture(depths=(12,), channels=(8, 8), num_classes=10)


def exhibits() -> list[Exhibit]:
    model = trained(DEEP)
    network, source = deploy_form(model), deploy_form(model)
    order = [network.paths.index(path) for path in sorted(network.paths)]
    for block, at in zip(blocks(network), order, strict=True):
        block.rbr_reparam.load_state_dict(blocks(source)[at].rbr_reparam.state_dict())
    port = torch_port(network)
    return [Exhibit("blocks in text order", model, port, "layers-swapped", "stage1.2")]


def test_the_stolen_weights_are_named() -> None:
    (exhibit,) = exhibits()
    assert "stage1.10" in exhibit.check().diagnosis[0].says
