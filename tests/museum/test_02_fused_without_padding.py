"""2. All keys matched, and two pixels short.

The port: the fused `Conv2d(C, O, 3, stride, bias=True)` was built without `padding=1`. Padding has
no weights, so `load_state_dict` says "all keys matched successfully".

Why no test saw it: nobody compared shapes; a global average pool follows, and takes any size.
An 8 x 8 map became 6 x 6.

The oracle: the first layer's output has another shape. Which of the ways to get this shape is it?
The one whose values are these: `padding-missing`.
"""

from __future__ import annotations

import pytest

from tests.museum.exhibit import PLAIN, Exhibit, blocks, deploy_form, torch_port, trained

pytest.importorskip("torch")
pytestmark = pytest.mark.peers


def exhibits() -> list[Exhibit]:
    model = trained(PLAIN)
    network = deploy_form(model)
    for block in blocks(network):
        block.rbr_reparam.padding = (0, 0)
    return [Exhibit("fused kernel, padding 0", model, torch_port(network), "padding-missing")]


def test_the_missing_border_is_named_from_a_smaller_output() -> None:
    (exhibit,) = exhibits()
    assert "instead of" in exhibit.check().reason
