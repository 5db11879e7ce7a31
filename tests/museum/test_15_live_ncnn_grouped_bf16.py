"""15. Alive: grouped convolutions in bfloat16 storage.

The port: ncnn 1.0.20261020 on x86 with AVX512-BF16, `use_bf16_storage`, a convolution of several
groups and several channels each. Its output is 1e35 here and NaN there, and not the same twice.
Found by this project's study of correct runtimes (`tests/studies/peers/false_alarm_study.py`). It
asked why the oracle accused ncnn, and found it right. The hazard is old: a grouped layer is made of
ordinary ones writing into parts of its output (Tencent/ncnn issues 329 and 1581).

Why no test saw it: depthwise and ungrouped convolutions are right.

The oracle: beyond its bound by a factor of 1e30, "unknown", in the first grouped layer. The bug may
be repaired in the reader's version: then the oracle must agree.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.oracle import verify
from repvgg_ref.oracle.programs.inputs import distinguishing_inputs
from tests.museum.exhibit import GROUPED, trained

pytest.importorskip("ncnn")
pytestmark = pytest.mark.peers


def _outputs(x: Array) -> dict[str, Array]:
    from tests.peers.right_ncnn import CANDIDATES

    bf16 = next(c for c in CANDIDATES if c.name == "ncnn bf16 storage")
    with tempfile.TemporaryDirectory() as folder:
        port = bf16.build(trained(GROUPED), Path(folder))
        assert not isinstance(port, Path)
        return {name: np.array(y) for name, y in port(x).items()}


def test_the_oracle_accuses_ncnn_exactly_if_a_plain_comparison_does() -> None:
    x = distinguishing_inputs(GROUPED, height=64, width=48)
    context = multiprocessing.get_context("spawn")
    try:  # a process of its own: who reads the wrong memory may crash
        with ProcessPoolExecutor(1, context) as pool:
            outputs = pool.submit(_outputs, x).result(timeout=120)
    except BrokenProcessPool:
        pytest.skip("ncnn crashed: as wrong as can be, and nothing to compare")
    model = trained(GROUPED)
    right = model.forward(x.astype(np.float64), layers=True)["stage1.1"]  # the first with groups
    wrong = not np.abs(outputs["stage1.1"] - right).max() < 0.1 * np.abs(right).max()
    report = verify(model, outputs, inputs=x, precision="bf16")
    assert report.verdict == ("disagree" if wrong else "agree"), report.reason
    assert report.first_bad_layer == ("stage1.1" if wrong else None)
