"""1. The squeeze-and-excitation that fusion forgot.

The port: a block whose forward has two paths. The training path ends in `relu(se(sum))`; the
deploy path, written first and for networks without SE, ends in `relu(rbr_reparam(x))`.

Why no test saw it: the fused kernel itself is right, and the tests compared kernels, or blocks
without SE. A gate is near 1/2, so the network still classifies, only worse.

The oracle: layer by layer the gate is missing from the first block on, and nowhere else does it
look for it: `se-missing`, coefficient 1.
"""

from __future__ import annotations

import pytest

from tests.museum.exhibit import SQUEEZED, Exhibit, blocks, deploy_form, torch_port, trained

pytest.importorskip("torch")
pytestmark = pytest.mark.peers


def exhibits() -> list[Exhibit]:
    from torch import nn

    model = trained(SQUEEZED)
    network = deploy_form(model)
    for block in blocks(network):
        block.se = nn.Identity()
    return [Exhibit("deploy forward without SE", model, torch_port(network), "se-missing")]


def test_the_missing_gate_is_named() -> None:
    (exhibit,) = exhibits()
    exhibit.check()
