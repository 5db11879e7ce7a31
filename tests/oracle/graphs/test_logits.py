"""Logits of a PSPNet alone: never said to agree, but bugs that give exactly these are named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.arrays import Array
from repvgg_ref.models.geometry import Geometry, with_geometry
from repvgg_ref.models.graph import INPUT
from repvgg_ref.models.layers import Pass
from repvgg_ref.ops import REFERENCE
from tests.oracle.graphs.ports import FUSED, MODEL, RIGHT, X, port

HEAD = MODEL.arch.head.name
FLAT = {spec.name: 1 for spec in MODEL.arch.blocks if spec.dilation > 1}


def logits(x: Array, **wrong: Any) -> Array:
    return port({name.replace("_", "."): change for name, change in wrong.items()})[HEAD]


def last(xs: list[Array]) -> Array:
    return np.concatenate([*xs[1:], xs[0]], axis=1)


def undilated(x: Array) -> Array:
    arch = with_geometry(FUSED.arch, Geometry({}, FLAT))
    return np.asarray(replace(FUSED, arch=arch).forward(x))


def dilated(**steps: int) -> Callable[[Array], Array]:
    """The port whose blocks of a stage, or one block, have another dilation."""
    said = {
        spec.name: step
        for spec in MODEL.arch.blocks
        for stage, step in steps.items()
        if spec.name.startswith(stage.replace("_", "."))
    }
    arch = with_geometry(FUSED.arch, Geometry({}, said))
    return lambda x: np.asarray(replace(FUSED, arch=arch).forward(x))


def exchanged(x: Array) -> Array:
    other = {"ppm.0": "ppm.1", "ppm.1": "ppm.0"}
    params = {
        name: FUSED.params[name.replace(name[:5], other.get(name[:5], name[:5]), 1)]
        for name in FUSED.params
    }
    return np.asarray(replace(FUSED, params=params).forward(x))


def unpadded(x: Array) -> Array:
    """Each dilated convolution takes some pixels of every side away."""
    torch = pytest.importorskip("torch")
    found: dict[str, Any] = {INPUT: torch.tensor(x)}
    run = Pass(FUSED.params, REFERENCE, FUSED.eps, FUSED.form)
    for node in FUSED.arch.evaluated:
        xs = [found[name] for name in node.inputs]
        spec = getattr(node.op, "spec", None)
        if spec is not None and spec.dilation > 1:
            arrays = (torch.tensor(FUSED.params[f"{node.name}.fused.{p}"]) for p in PARTS)
            step = spec.dilation
            y = torch.relu(torch.nn.functional.conv2d(xs[0], *arrays, padding=1, dilation=step))
        else:
            given = [each.numpy() for each in xs]
            y = torch.tensor(np.asarray(node.op.forward(node.name, given, run)[0]))
        found[node.name] = y
    return np.asarray(found[HEAD].numpy())


PARTS = ("weight", "bias")
WIDE = np.random.default_rng(3).normal(size=(1, 3, 177, 185)).astype(np.float32)


PORTS: dict[str, tuple[Callable[[Array], Array], str, str]] = {
    "order": (partial(logits, ppm=last), "concat-order", "ppm"),
    "dropout": (
        partial(logits, cls_dropout=lambda xs: xs[0] * 0.9),
        "dropout-scaled",
        "cls.dropout",
    ),
    "size": (lambda x: RIGHT["cls.4"], "resize-missing", HEAD),
    "transposed": (lambda x: RIGHT[HEAD].swapaxes(2, 3), "output-height-width-swapped", HEAD),
    "colours": (lambda x: FUSED.forward(x[:, ::-1].copy()), "input-bgr", "stage0"),
    "eps": (lambda x: rr.fuse(replace(MODEL, eps=1e-3)).forward(x), "eps-value", "stage0"),
    "dilations": (undilated, "dilation-ignored", "stage3.0"),
    "stage 4 flat": (dilated(stage4=1), "dilation-ignored", "stage4.0"),
    "fast": (dilated(stage3_0=1, stage3_1=1), "dilation-ignored", "stage3.0"),
    "torchvision": (dilated(stage3_0=1, stage4_0=2), "dilation-other", "stage3.0"),
    "exchanged dilations": (dilated(stage3=4, stage4=2), "dilation-other", "stage3.0"),
    "exchanged kernels": (exchanged, "layers-swapped", "ppm.0"),
}


@pytest.mark.parametrize("name", PORTS)
def test_what_gives_the_logits_is_named(name: str) -> None:
    give, bug, layer = PORTS[name]
    report = rr.verify(MODEL, give, inputs=X)
    assert (report.verdict, report.first_bad_layer) == ("disagree", layer), report.reason
    assert report.diagnosis[0].bug == bug
    json.dumps(report.to_json(), allow_nan=False)


@pytest.mark.slow
def test_a_dilation_without_its_padding_is_named() -> None:
    report = rr.verify(MODEL, {HEAD: unpadded(WIDE)}, inputs=WIDE)
    assert report.verdict == "disagree"
    found = report.diagnosis[0]
    assert (found.bug, found.layer) == ("padding-of-dilation", "stage3.0"), report.reason


def test_right_logits_are_not_said_to_agree() -> None:
    report = rr.verify(MODEL, FUSED.forward, inputs=X)
    assert report.verdict == "cannot-judge"
    assert "give its layers" in report.reason


@pytest.mark.parametrize(
    "wrong",
    [lambda y: 1.1 * y, lambda y: y[:, :3], lambda y: y + np.nan],
    ids=["scaled", "few", "nan"],
)
def test_logits_that_nothing_explains_are_wrong(wrong: Callable[[Array], Array]) -> None:
    report = rr.verify(MODEL, {HEAD: wrong(RIGHT[HEAD])}, inputs=X)
    assert (report.verdict, report.first_bad_layer) == ("disagree", None)
    assert [(finding.bug, finding.layer) for finding in report.diagnosis] == [("unknown", None)]
    json.dumps(report.to_json(), allow_nan=False)


def test_a_small_difference_is_left_open() -> None:
    report = rr.verify(MODEL, {HEAD: RIGHT[HEAD] * np.float32(1.001)}, inputs=X)
    assert report.verdict == "cannot-judge"
    assert "0.001 of their size" in report.reason
