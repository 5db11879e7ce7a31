"""9. Squeeze-and-excitation in the wrong place.

The ports: SE after the ReLU in a network that wants it before (RepVGG-D2se: SE, ReLU; RepVGGplus:
ReLU, SE; both are "RepVGG with SE"). And SE on each branch's convolution, before its batch norm.

Why no test saw it: shapes and parameters are the same; both orders train; converted weights lose
accuracy that is blamed on the conversion.

The oracle: `se-order`; `se-before-batch-norm`.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.museum.exhibit import SQUEEZED, Exhibit, blocks, torch_port, train_form, trained

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.peers


def exhibits() -> list[Exhibit]:
    model = trained(SQUEEZED)
    network = train_form(model)
    for block in blocks(network):
        block.post_se, block.se = block.se, block.post_se
    early = train_form(model)
    for block in blocks(early):
        block.forward = _before_batch_norm(block)
    return [
        Exhibit("ReLU, then SE", model, torch_port(network), "se-order"),
        Exhibit("SE before BN", model, torch_port(early), "se-before-batch-norm"),
    ]


def _before_batch_norm(block: Any) -> Any:
    def forward(x: Any) -> Any:
        total = 0
        for name, branch in block.named_children():
            if name.startswith("rbr_"):
                conv = getattr(branch, "conv", torch.nn.Identity())
                total = total + getattr(branch, "bn", branch)(block.se(conv(x)))
        return torch.relu(total)

    return forward


def test_both_wrong_places_are_named() -> None:
    for exhibit in exhibits():
        exhibit.check()
