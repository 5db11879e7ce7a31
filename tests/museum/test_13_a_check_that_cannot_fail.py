"""13. The check that cannot fail.

The ports: a test calls `np.allclose(a, b)` and drops the result; a verifier prints the largest
difference, calls it "small" in the eyes of whoever reads it, and exits with 0. Of the same kind:
`assert compare(a, b)` where `compare` returns an object, which is always true.

Why no test saw it: it was the test.

What says so here: `raise_if_bad()` raises; the command exits with 1, and with 2 if it could not
judge; a report is true only if the verdict is "agree".
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from repvgg_ref.oracle import VerificationError, verify
from tests.museum.exhibit import PLAIN, trained

_model = trained(PLAIN)


def _wrong(x: Any) -> Any:
    layers = _model.forward(x, layers=True)
    return layers | {"linear": layers["linear"] * np.float32(1.001)}


def test_the_dropped_allclose_passes() -> None:
    x = np.ones((1, 3, 32, 32), np.float32)
    np.allclose(_wrong(x)["linear"], _model.forward(x), rtol=1e-6)  # False, and nothing happens


def test_ours_raises() -> None:
    with pytest.raises(VerificationError, match="linear"):
        verify(_model, _wrong).raise_if_bad()


def test_a_report_is_true_only_if_it_agrees() -> None:
    assert not verify(_model, _wrong)
    assert verify(_model, lambda x: _model.forward(x, layers=True))
    assert not verify(_model, lambda x: {"linear": np.zeros((len(x), 3), np.float32)})
