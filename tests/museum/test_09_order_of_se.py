"""9. Squeeze-and-excitation in the wrong place.

The ports: SE after the ReLU in a network that wants it before (RepVGG-D2se: SE, ReLU; RepVGGplus:
ReLU, SE; both are "RepVGG with SE"). And SE on each branch's convolution, before its batch norm.

Why no test saw it: shapes and parameters are the same; both orders train; converted weights lose
accuracy that is blamed on the conversion.

The oracle: `se-order`. The second is none of its hypotheses: it says so ("unknown") and where.
"""

from __future__ import annotations

from typing import Any

import pytest

from repvgg_ref.oracle import verify
from tests.museum.exhibit import SQUEEZED, Exhibit, blocks, torch_port, train_form, trained

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.peers


def exhibits() -> list[Exhibit]:
    model = trained(SQUEEZED)
    network = train_form(model)
    for block in blocks(network):
        block.post_se, block.se = block.se, block.post_se
    return [Exhibit("ReLU, then SE", model, torch_port(network), "se-order")]


def _before_batch_norm(block: Any) -> Any:
    def forward(x: Any) -> Any:
        total = 0
        for name, branch in block.named_children():
            if name.startswith("rbr_"):
                conv = getattr(branch, "conv", torch.nn.Identity())
                total = total + getattr(branch, "bn", branch)(block.se(conv(x)))
        return torch.relu(total)

    return forward


def test_the_exchanged_order_is_named() -> None:
    (exhibit,) = exhibits()
    exhibit.check()


def test_se_before_batch_norm_is_found_and_honestly_called_unknown() -> None:
    model = trained(SQUEEZED)
    network = train_form(model)
    for block in blocks(network):
        block.forward = _before_batch_norm(block)
    report = verify(model, torch_port(network))
    assert (report.verdict, report.first_bad_layer) == ("disagree", "stage0")
    assert report.diagnosis[0].bug == "unknown"
