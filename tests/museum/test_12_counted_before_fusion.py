"""12. Parameters and FLOPs of the other form.

The port: a model zoo's table with the counts of the training-time network beside the speed of the
deployed one; or a profiler run before `switch_to_deploy`.

Why no test saw it: both counts are right, of different networks. A0: 9.11 M with branches, 8.31 M
fused.

What says so here: not the oracle but `repvgg-ref table`: both counts side by side, here held
against torch's own.
"""

from __future__ import annotations

import pytest

import repvgg_ref as rr

pytest.importorskip("torch")
from tests.peers.torch_repvgg import build_torch

pytestmark = pytest.mark.peers


@pytest.mark.parametrize("name", ["RepVGG-A0", "RepVGG-A1"])
def test_both_counts_are_those_of_torch_and_they_differ(name: str) -> None:
    arch = rr.architecture(name)
    counts = rr.cost(arch)
    for deploy, ours in ((False, counts.params_train), (True, counts.params_deploy)):
        assert sum(p.numel() for p in build_torch(arch, deploy).parameters()) == ours
    assert counts.params_train > 1.09 * counts.params_deploy
