"""Memory: what the system counts, and what section 3.1 of the paper says should be needed."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from repvgg_ref.bench.memory import (
    branches_count,
    fused_count,
    peak_bytes,
    reset_peak,
    resident_bytes,
    settle_memory,
)
from repvgg_ref.cpu.engine import Engine
from repvgg_ref.models.network import fuse
from tests.models.small import SMALL, distinct_model

MODEL = distinct_model(SMALL["plain"], dtype="float32")
X = np.zeros((2, 3, 16, 16), np.float32)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets an old peak")
def test_the_peak_is_that_since_the_reset() -> None:
    np.ones(30_000_000, np.float32)  # 120 MB, gone again
    settle_memory()
    assert reset_peak()
    before = peak_bytes()
    assert before - resident_bytes() < 20e6
    np.ones(15_000_000, np.float32)
    assert 55e6 < peak_bytes() - before < 80e6


def test_branches_need_an_output_each_beside_the_input() -> None:
    """Block stage1.1 of the small network: 4 x 4 x 6 in, three branches of 4 x 4 x 6."""
    fused = fused_count(fuse(MODEL), engine(), X)
    branches = branches_count(MODEL, X.shape)
    # Counted by hand, in float32, batch 2: the largest layer is stage0, 16 x 16 x 3 in, 8 x 8 x 4.
    assert fused["activations"] == 4 * 2 * (16 * 16 * 3 + 8 * 8 * 4)
    assert branches["activations"] == 4 * 2 * (16 * 16 * 3 + 2 * 8 * 8 * 4)
    assert fused["theory"] == fused["weights"] + fused["activations"]


def test_the_plan_holds_what_it_says() -> None:
    found = fused_count(fuse(MODEL), engine(), X)
    plan = engine().plan(X.shape)
    assert found["buffers"] + found["scratch"] == plan.scratch_bytes
    parts = ("weights", "packed", "buffers", "scratch")
    assert found["held"] == sum(found[part] for part in parts)
    assert all(found[part] > 0 for part in parts)


def engine() -> Engine:
    deploy = fuse(MODEL)
    return Engine(deploy.arch.blocks, deploy.params, dtype=X.dtype, threads=1)
