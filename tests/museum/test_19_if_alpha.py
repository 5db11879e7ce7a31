"""19. `if alpha:` is false at 0.

The port: PP-YOLOE weighs its 1x1 branch by a learned number alpha, one a block. Its fusion reads
`if self.alpha: kernel3x3 + self.alpha * kernel1x1`, `else: kernel3x3 + kernel1x1`, where it means
"if there is an alpha". An alpha that training drove to exactly 0 turns its branch on.

Why no test saw it: a fresh alpha is 1, where both are the same, and no test set it to 0.

The oracle: a weight of 0 leaves nothing of the branch in the reference, so that no bug can be
predicted from it: "unknown", in the block that has that alpha and in no other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from repvgg_ref.models.network import Model
from tests.museum.exhibit import PLAIN, Exhibit, blocks, torch_port, train_form, trained

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.peers

_ALPHAS = (1.0, 0.7, 0.0, 1.3, 0.4)


def _weighed(model: Model) -> Model:
    """The reference: alpha folded into the 1x1 branch's batch norm, as it is linear."""
    params = dict(model.params)
    for spec, alpha in zip(model.arch.blocks, _ALPHAS, strict=True):
        for part in ("gamma", "beta"):
            name = f"{spec.name}.branch_1x1.bn.{part}"
            params[name] = (params[name] * np.float32(alpha)).astype(np.float32)
    return Model(model.arch, "train", params, model.eps)


def _careless(model: Model) -> Any:
    """The same by a fusion that asks whether alpha is true."""
    network = train_form(model)
    with torch.no_grad():
        for block, alpha in zip(blocks(network), _ALPHAS, strict=True):
            if alpha:
                block.rbr_1x1.bn.weight *= alpha
                block.rbr_1x1.bn.bias *= alpha
    return network


def exhibits() -> list[Exhibit]:
    model = trained(PLAIN)
    port = torch_port(_careless(model))
    return [Exhibit("alpha is 0 in one block", _weighed(model), port, "unknown", "stage1.1")]


def test_the_block_whose_alpha_is_0_is_found() -> None:
    (exhibit,) = exhibits()
    report = exhibit.check()
    assert [layer.name for layer in report.layers if not layer.ok] == ["stage1.1"]
