"""7. The identity of a grouped layer.

The port: fuses the identity branch with a kernel made by `for i in range(C // groups): K[i, i] = 1`
(right for one group). A grouped kernel has C rows of C / groups inputs: rows of the other groups
stay empty. `kernel.view(C, -1).fill_diagonal_(1)` does the same: it does not wrap unless it is told
to. A sibling divides where it should take the remainder; another, in a hurry, fills the identity
with `torch.ones`.

Why no test saw it: A0 to A2 and B0 have no groups; the models that have them are the large ones.

The oracle: `identity-group-index` in the first grouped layer with an identity, and which index;
`identity-all-ones`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.museum.exhibit import GROUPED, Exhibit, deploy_form, torch_port, train_form, trained

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.peers

Column = Callable[[int, int], int | None]  # (row, inputs a group) -> where its 1 goes


def _misplaced(model: Any, column: Column) -> Any:
    """The fused network with its grouped identities taken off and put back at `column`."""
    network, branches = deploy_form(model), train_form(model)
    for path in network.paths:
        conv, block = network.get_submodule(path).rbr_reparam, branches.get_submodule(path)
        if conv.groups == 1 or not hasattr(block, "rbr_identity"):
            continue
        bn = block.rbr_identity
        scale, inputs = bn.weight / (bn.running_var + bn.eps).sqrt(), conv.weight.shape[1]
        with torch.no_grad():
            for row in range(conv.weight.shape[0]):
                conv.weight[row, row % inputs, 1, 1] -= scale[row]
                if (at := column(row, inputs)) is not None:
                    conv.weight[row, at, 1, 1] += scale[row]
    return torch_port(network)


def _refilled(model: Any, fill: Callable[[Any], Any]) -> Any:
    """The fused network with its grouped identities taken off and put back as `fill` makes them."""
    network, branches = deploy_form(model), train_form(model)
    for path in network.paths:
        conv, block = network.get_submodule(path).rbr_reparam, branches.get_submodule(path)
        if conv.groups == 1 or not hasattr(block, "rbr_identity"):
            continue
        bn = block.rbr_identity
        scale, (outputs, inputs) = (
            bn.weight / (bn.running_var + bn.eps).sqrt(),
            conv.weight.shape[:2],
        )
        right = torch.eye(inputs).repeat(outputs // inputs, 1)
        with torch.no_grad():
            wrong = fill(torch.zeros(outputs, inputs))
            conv.weight[:, :, 1, 1] += scale[:, None] * (wrong - right)
    return torch_port(network)


def exhibits() -> list[Exhibit]:
    model = trained(GROUPED)
    diagonal = _refilled(model, lambda kernel: kernel.fill_diagonal_(1))
    ones = _refilled(model, torch.ones_like)
    first = _misplaced(model, lambda row, inputs: row if row < inputs else None)
    slow = _misplaced(model, lambda row, inputs: row // inputs)
    bug, layer = "identity-group-index", "stage1.1"
    return [
        Exhibit("identity in the first group only", model, first, bug, layer),
        Exhibit("identity at K[i, i // (C / groups)]", model, slow, bug, layer),
        Exhibit("fill_diagonal_ on (C, C / groups)", model, diagonal, bug, layer),
        Exhibit("an identity of all ones", model, ones, "identity-all-ones", layer),
    ]


def test_both_misplaced_identities_are_named() -> None:
    first, slow, *_ = exhibits()
    assert "first group only" in first.check().diagnosis[0].says
    assert "//" in slow.check().diagnosis[0].says


def test_a_diagonal_that_does_not_wrap_is_named() -> None:
    assert "first group only" in exhibits()[2].check().diagnosis[0].says


def test_an_identity_of_ones_is_named() -> None:
    exhibits()[3].check()
