"""22. Half a file.

The port: `model.half()`, then save, as trainers do to halve the file (ultralytics/yolov5 issue
1840). Every weight is right to the bits that float16 has.

Why no test saw it: it is right, if that was wanted; who holds the file to float32 is wrong.

The oracle: asked what the file is held to, agrees; unasked, agrees or calls it `weights-fp16`. It
used to say that taps contradict the rest of their channel.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.oracle import verify
from tests.museum.reports import model

pytest.importorskip("torch")
pytestmark = pytest.mark.peers


@pytest.fixture
def half(tmp_path: Path) -> Path:
    state = {n: a.astype(np.float16) for n, a in rr.fuse(model()).state_dict().items()}
    np.savez(tmp_path / "half.npz", **state)  # type: ignore[arg-type]
    return tmp_path / "half.npz"


def test_it_agrees_with_what_it_is_held_to(half: Path) -> None:
    report = verify(model(), half, precision="fp16")
    assert report.verdict == "agree", report.reason


def test_unasked_it_agrees_or_is_called_by_its_name(half: Path) -> None:
    report = verify(model(), half)
    named = {finding.bug for finding in report.diagnosis}
    assert report.verdict == "agree" or "weights-fp16" in named, report.reason
