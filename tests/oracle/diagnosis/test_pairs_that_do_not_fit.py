"""The diagnosis composes bugs that make no sense together: it must not fall over them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from repvgg_ref.models.architectures import plain_architecture
from repvgg_ref.oracle import verify
from repvgg_ref.oracle.programs.inputs import distinguishing_inputs
from tests.random_networks import random_model

_GROUPED = plain_architecture(depths=(2, 1), channels=(8, 8, 16), groups=4, num_classes=3)


@pytest.mark.slow
def test_a_grouped_layer_of_noise_is_called_unknown_and_not_a_traceback() -> None:
    """Groups ignored leaves a quarter of the channels; no permutation of all fits behind it."""
    model = random_model(_GROUPED, seed=0)
    rng = np.random.default_rng(0)

    def port(x: Any) -> Any:
        layers = model.forward(x, layers=True)
        noise = rng.normal(size=layers["stage1.1"].shape).astype(np.float32)
        return layers | {"stage1.1": noise}

    report = verify(model, port, inputs=distinguishing_inputs(_GROUPED, height=32, width=40))
    assert (report.verdict, report.first_bad_layer) == ("disagree", "stage1.1")
    assert report.diagnosis[0].bug == "unknown"


def test_float16_weights_are_no_bug_where_sums_are_float16_too() -> None:
    """What the format of numbers excuses does not depend on the accumulator's."""
    arch = plain_architecture(depths=(1,), channels=(8, 16), num_classes=32)
    model = random_model(arch, seed=0)
    head = model.params["linear.weight"].astype(np.float16).astype(np.float32)
    halved = type(model)(arch, "train", model.params | {"linear.weight": head})
    x = distinguishing_inputs(arch, height=32, width=40)
    assert verify(model, halved, inputs=x, precision="fp16-acc16").verdict == "agree"
    assert verify(model, halved, inputs=x, precision="fp32").verdict == "disagree"
