"""Biases summed over all branches in any order: right ones agree, and one that is off is found."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.arrays import Array
from repvgg_ref.blocks.branches import Branch, branches_of, window
from repvgg_ref.models.architectures import plain_architecture
from repvgg_ref.models.network import Model, fuse
from repvgg_ref.oracle.programs.distinguishing import distinguishing_model

ARCH = plain_architecture(depths=[1], channels=[6, 8], num_classes=3, in_channels=3)

# A slope times a number, and the root of the variance.
PRODUCTS = (
    lambda x, g, s: x * (g / s),
    lambda x, g, s: (x * g) / s,
    lambda x, g, s: (x / s) * g,
    lambda x, g, s: x * (g * (1 / s)),
)
ROOTS = (np.sqrt, lambda v: np.power(v, v.dtype.type(0.5)))
# One more branch in the bias: its beta, and its mean times its slope.
SUMS = (
    lambda bias, beta, shift: bias + (beta - shift),
    lambda bias, beta, shift: bias + beta - shift,
    lambda bias, beta, shift: bias - shift + beta,
    lambda bias, beta, shift: bias + (-shift + beta),
)
WAYS = list(product(range(4), range(2), range(4), (1, -1), (False, True)))


def converted(model: Model, way: tuple[Any, ...], dtype: Any, stored: Any) -> Model:
    """Fused in `dtype`: the orders of product, root, sum and branches, and whose eps."""
    times, root, add, step, narrow_eps = way
    eps = dtype(np.float32(model.eps) if narrow_eps else model.eps)
    deploy = fuse(model)
    for spec in model.arch.blocks:
        names = [f"{spec.name}.fused.{part}" for part in ("weight", "bias")]
        weight, bias = (np.zeros(deploy.params[name].shape, dtype) for name in names)
        for branch in list(branches_of(spec, model.params, model.eps).values())[::step]:
            raw, g, beta, mean, var = (a.astype(dtype) for a in norm_of(branch))
            s = ROOTS[root](var + eps)
            c = (slice(None), None, None, None)
            at = (slice(None), slice(None), *window(raw.shape[2:], weight.shape[2:]))
            weight[at] += PRODUCTS[times](raw, g[c], s[c])
            bias = SUMS[add](bias, beta, PRODUCTS[times](mean, g, s))
        for name, array in zip(names, (weight, bias), strict=True):
            deploy.params[name] = array.astype(stored)
    return deploy


def norm_of(branch: Branch) -> list[Array]:
    assert branch.has_norm
    return [np.asarray(array) for array in branch[:5]]


def judged(model: Model, port: Model, folder: Path) -> Any:
    rr.save(port, folder / "port.npz")
    return rr.verify(model, folder / "port.npz")


@pytest.mark.parametrize("stored", [np.float64, np.float32], ids=["float64", "float32"])
def test_float64_fusions_agree_in_every_order(stored: Any, tmp_path: Path) -> None:
    for seed, way in enumerate(WAYS[::11]):
        model = distinguishing_model(ARCH, seed)
        report = judged(model, converted(model, way, np.float64, stored), tmp_path)
        assert report.verdict == "agree", (way, report.reason)


def test_float32_sums_over_all_branches_agree(tmp_path: Path) -> None:
    for seed, way in enumerate(WAYS[5::17]):
        model = distinguishing_model(ARCH, seed)
        report = judged(model, converted(model, way, np.float32, np.float32), tmp_path)
        assert report.verdict == "agree", (way, report.reason)


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(("part", "ulps"), [("weight", 4), ("bias", 16)])
def test_one_number_that_is_off_is_found(part: str, ulps: int, dtype: Any, tmp_path: Path) -> None:
    model = distinguishing_model(ARCH, 2)
    port = converted(model, (1, 0, 1, 1, False), dtype, dtype)
    array = port.params[f"stage1.0.fused.{part}"]
    array[-1:].flat[0] += ulps * np.spacing(np.float32(array[-1:].flat[0]))
    report = judged(model, port, tmp_path)
    assert report.first_bad_layer == "stage1.0", report.reason
    assert report.diagnosis[0].bug == "taps-altered"
