"""5. The pool that takes every image for a square.

The port: squeeze as `avg_pool2d(x, kernel_size=x.size(3))`, the width twice instead of height and
width. On a square map that is the global mean.

Why no test saw it: all test images were square. On an upright one the pool sees the upper square,
on a wide one it fails.

The oracle: its own inputs are never square, for this bug's sake: `se-pool`, over a W x W square.
"""

from __future__ import annotations

from typing import Any

import pytest

from repvgg_ref.oracle import verify
from tests.museum.exhibit import SQUEEZED, Exhibit, blocks, torch_port, train_form, trained

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.peers


def _square(se: Any) -> Any:
    def forward(x: Any) -> Any:
        width = x.size(3)
        pooled = torch.nn.functional.avg_pool2d(x, kernel_size=width)
        gate = se.up(torch.relu(se.down(pooled)))
        return x * torch.sigmoid(gate).view(-1, x.size(1), 1, 1)

    return forward


def exhibits() -> list[Exhibit]:
    model = trained(SQUEEZED)
    network = train_form(model)
    for block in blocks(network):
        block.se.forward = _square(block.se)
    return [Exhibit("SE pools over W x W", model, torch_port(network), "se-pool")]


def test_the_square_pool_is_named() -> None:
    (exhibit,) = exhibits()
    assert "W x W" in exhibit.check().diagnosis[0].says


def test_a_square_image_hides_it_entirely() -> None:
    """In a dump; a port that can be called is asked for other images."""
    (exhibit,) = exhibits()
    square = exhibit.x[..., :48, :]
    layers = exhibit.port(square)
    assert verify(exhibit.model, layers, inputs=square).verdict == "agree"
    assert verify(exhibit.model, exhibit.port, inputs=square).verdict == "disagree"
