"""A training step and both forms of a PSPNet on the device's table, against the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.arrays import to_numpy
from repvgg_ref.errors import ReportedError
from tests.gpu.conftest import UnderTest
from tests.models.segmenters import pictures, small_model


def close(got: Any, wanted: Any, name: str, tolerance: float = 1e-9) -> None:
    wanted = np.asarray(wanted)
    error = np.abs(to_numpy(got) - wanted).max()
    assert error <= tolerance * max(1.0, np.abs(wanted).max()), f"{name}: {error}"


def test_both_forms_are_the_references(device: UnderTest) -> None:
    from repvgg_ref.gpu import cupy_ops

    model, (x, _) = small_model(), pictures(height=17, width=25)
    for form in (model, rr.fuse(model)):
        close(form.forward(x, backend=cupy_ops("fp32")), form.forward(x, backend="reference"), "")


def test_a_training_step_is_the_references(device: UnderTest) -> None:
    from repvgg_ref.gpu import cupy_ops

    model, (x, labels) = small_model(fast=True), pictures(height=17, width=17)
    step = model.loss_and_grads(x, labels, drop_seed=3, backend=cupy_ops("fp32"))
    wanted = model.loss_and_grads(x, labels, drop_seed=3, backend="reference")
    close(step.loss, wanted.loss, "loss")
    close(step.logits, wanted.logits, "logits")
    for name, grad in wanted.grads.items():
        close(step.grads[name], grad, name)


def test_wrong_labels_are_named_on_the_host_and_nan_on_the_device(device: UnderTest) -> None:
    from repvgg_ref.gpu import cupy_ops

    ops = cupy_ops("fp32")
    logits, labels = ops.from_host(np.zeros((1, 1, 2, 3))), np.array([[[0, 3]]])
    with pytest.raises(ReportedError, match=r"labels\[0, 0, 1\] \(=3\)"):
        ops.pixel_cross_entropy_forward(logits, labels, ignored=255)
    loss, _ = ops.pixel_cross_entropy_forward(logits, ops.from_host(labels), ignored=255)
    assert np.isnan(to_numpy(loss))
