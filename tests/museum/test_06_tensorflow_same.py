"""6. TensorFlow's SAME, and the 1x1 kernel that lost its centre.

The port: `padding="same"` everywhere. With stride 2 on an even image TensorFlow pads one pixel at
the bottom and at the right, none at the top and left: the 3x3 starts one pixel later, the 1x1 does
not, and lies on its tap (0, 0). (Found by a user of a TensorFlow port, who proposed to pad the 1x1
kernel by [0, 2] when fusing: hoangthang1607/RepVGG-Tensorflow-2 issue 2.)

Why no test saw it: the port was compared with itself, fused against not fused.

The oracle: `tf-same-padding` in the first block, which has stride 2.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.museum.exhibit import PLAIN, Exhibit, blocks, torch_port, train_form, trained

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.peers


def _same(conv: Any) -> Any:
    def forward(x: Any) -> Any:
        wider = torch.nn.functional.pad(x, (0, 1, 0, 1))
        return torch.nn.functional.conv2d(wider, conv.weight, stride=2)

    return forward


def exhibits() -> list[Exhibit]:
    model = trained(PLAIN)
    network = train_form(model)
    for block in blocks(network):
        if block.rbr_dense.conv.stride == (2, 2):
            block.rbr_dense.conv.forward = _same(block.rbr_dense.conv)
    return [Exhibit("padding='same'", model, torch_port(network), "tf-same-padding")]


def test_sames_shifted_kernel_is_named() -> None:
    (exhibit,) = exhibits()
    exhibit.check()
