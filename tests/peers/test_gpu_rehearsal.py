"""torch's side of the GPU races, rehearsed on the CPU: the same work, the same numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gpu import emulator
from tests.gpu.test_settle import rehearse

pytest.importorskip("torch")
pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(emulator.why_missing() is not None, reason="g++ is not installed"),
]


def test_torch_takes_part_in_the_races(tmp_path: Path) -> None:
    told = rehearse(tmp_path / "result.json", "inference", "training", "compiled")
    found = told["sections"]
    raced = found["inference"]["plain x 2"]
    assert raced["left_out"] == {}
    assert raced["contenders"]["torch channels_last fp16"]["times_ours"]["median"] > 0
    assert raced["largest_difference"]["torch channels_last fp16"] < 0.01
    steps = found["training"]["plain x 2"]["contenders"]
    assert steps["torch AMP bf16 channels_last"]["images_per_s"] > 0
    compiled = found["compiled"]["inference"]["plain x 2"]["contenders"]
    assert "images_per_s" in compiled["torch channels_last fp16, torch.compile"]
