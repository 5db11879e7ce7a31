"""11. Fewer bits than promised.

The ports: TF32 (the default of convolutions in a well-known framework on GPUs since 2020) taken for
float32; weights kept as float16 "to save space" and served as float32; float16 activations beyond
65504, which are infinite, or, after somebody's `nan_to_num`, a stage of zeros.

Why no test saw it: tolerances of 1e-2 were chosen until tests passed. The overflow needs trained
weights and a bright image.

The oracle: rounding operands is deterministic, so it predicts the wrong outputs to the last bit:
`tf32-arithmetic`, `weights-fp16`. Infinite, or zero, where the right value is beyond 65504:
`fp16-overflow`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.models.network import Model
from tests.museum.exhibit import PLAIN, Exhibit, blocks, deploy_form, torch_port, trained

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.peers


def _tf32(values: Any) -> Any:
    """Round to nearest at 10 bits after the point, ties to even, as tensor cores are fed."""
    bits = values.detach().contiguous().view(torch.int32)
    odd = (bits >> 13) & 1
    return ((bits + 0xFFF + odd) & ~0x1FFF).view(torch.float32)


def _rounded_operands(conv: Any) -> Any:
    def forward(x: Any) -> Any:
        weight = _tf32(conv.weight)
        return torch.nn.functional.conv2d(
            _tf32(x), weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups
        )

    return forward


def _on_tensor_cores(model: Model) -> Any:
    network = deploy_form(model)
    for block in blocks(network):
        block.rbr_reparam.forward = _rounded_operands(block.rbr_reparam)
    return torch_port(network)


def _small_file(model: Model) -> Any:
    network = deploy_form(model)
    for block in blocks(network):
        block.rbr_reparam.weight.data = block.rbr_reparam.weight.data.half().float()
    return torch_port(network)


def _bright(layer: str) -> Model:
    """A reference whose activations exceed float16 in one layer."""
    model = trained(PLAIN)
    loud = {
        name: float(2**15) * array
        for name, array in model.params.items()
        if name.startswith(layer + ".") and name.endswith((".gamma", ".beta"))
    }
    return Model(PLAIN, "train", model.params | {n: a.astype(np.float32) for n, a in loud.items()})


def _in_float16(model: Model) -> Any:
    """All of it in half precision: what overflows is infinite."""
    network = deploy_form(model).half()

    def run(x: Array) -> dict[str, Any]:
        with torch.no_grad():
            return dict(network.layers(torch.from_numpy(x).half()))

    return run


def _cleaned(model: Model, loud: str) -> Any:
    """Float32 but for one layer, and what overflowed there is zero."""
    network = deploy_form(model)

    def hook(_block: Any, _given: Any, y: Any) -> Any:
        return torch.nan_to_num(y.half(), posinf=0.0).float()

    network.get_submodule(loud).register_forward_hook(hook)
    return torch_port(network)


def exhibits() -> list[Exhibit]:
    loud = "stage1.1"
    model, bright = trained(PLAIN), _bright(loud)
    zeros = _cleaned(bright, loud)
    return [
        Exhibit("TF32 taken for float32", model, _on_tensor_cores(model), "tf32-arithmetic"),
        Exhibit("float16 weights", model, _small_file(model), "weights-fp16"),
        Exhibit("float16 overflow", bright, _in_float16(bright), "fp16-overflow", loud),
        Exhibit("overflow set to zero", bright, zeros, "fp16-overflow", loud),
    ]


def test_tf32_and_float16_weights_are_named() -> None:
    for exhibit in exhibits()[:2]:
        exhibit.check()


@pytest.mark.parametrize("at", [2, 3], ids=["infinite", "zeros"])
def test_overflow_is_named_in_its_layer(at: int) -> None:
    exhibits()[at].check()
