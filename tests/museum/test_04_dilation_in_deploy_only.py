"""4. The dilation that only the deploy form has.

The port: a block took `dilation` as an argument and passed it to the fused convolution, not to the
branches. Whoever trained a segmentation backbone trained an undilated one, and deployed another.

Why no test saw it: classification networks have dilation 1, where both are the same.

The oracle: `dilation-ignored`, in the first dilated layer, all layers before it being right.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.museum.exhibit import PLAIN, Exhibit, blocks, torch_port, train_form, trained

pytest.importorskip("torch")
pytestmark = pytest.mark.peers

DILATED = replace(
    PLAIN,
    blocks=tuple(
        replace(spec, stride=1, dilation=2) if spec.name.startswith("stage2.") else spec
        for spec in PLAIN.blocks
    ),
)


def exhibits() -> list[Exhibit]:
    model = trained(DILATED)
    network = train_form(model)
    for block in blocks(network):
        block.rbr_dense.conv.dilation = block.rbr_dense.conv.padding = (1, 1)
    port = torch_port(network)
    return [Exhibit("branches undilated", model, port, "dilation-ignored", "stage2.0")]


def test_the_missing_dilation_is_named_in_the_first_dilated_layer() -> None:
    (exhibit,) = exhibits()
    exhibit.check()
