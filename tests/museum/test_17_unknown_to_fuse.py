"""17. Unknown to fuse().

The port: a framework's `fuse()` walks over the modules, folds batch norm into the convolution of
every class it knows, and then drops all batch norms, `delattr(m, "bn")` or `nn.Identity()`, also
those of blocks it does not know. Their convolutions keep their raw weights.

Why no test saw it: the framework's own networks hold no such block. The user's does.

The oracle: `default-batch-norm` (the batch norm does nothing), in the block that was unknown.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.museum.exhibit import PLAIN, Exhibit, blocks, torch_port, train_form, trained

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.peers


def _dropped(block: Any) -> None:
    """All batch norms of one block gone, whatever they did."""
    for name, module in list(block.named_modules()):
        if isinstance(module, torch.nn.BatchNorm2d):
            parent, _, own = name.rpartition(".")
            setattr(block.get_submodule(parent), own, torch.nn.Identity())


def exhibits() -> list[Exhibit]:
    model = trained(PLAIN)
    network = train_form(model)
    _dropped(blocks(network)[2])
    port = torch_port(network)
    return [Exhibit("batch norms dropped", model, port, "default-batch-norm", "stage1.1")]


def test_the_block_without_its_batch_norms_is_named() -> None:
    (exhibit,) = exhibits()
    assert len(exhibit.check().diagnosis) >= 1
