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
from tests.oracle.dense.ports import FUSED, MODEL, RIGHT, X, port

HEAD = MODEL.arch.head.name
FLAT = {spec.name: 1 for spec in MODEL.arch.blocks if spec.dilation > 1}


def logits(x: Array, **wrong: Any) -> Array:
    return port({name.replace("_", "."): change for name, change in wrong.items()})[HEAD]


def last(xs: list[Array]) -> Array:
    return np.concatenate([*xs[1:], xs[0]], axis=1)


def undilated(x: Array) -> Array:
    arch = with_geometry(FUSED.arch, Geometry({}, FLAT))
    return np.asarray(replace(FUSED, arch=arch).forward(x))


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
}


@pytest.mark.parametrize("name", PORTS)
def test_what_gives_the_logits_is_named(name: str) -> None:
    give, bug, layer = PORTS[name]
    report = rr.verify(MODEL, give, inputs=X)
    assert (report.verdict, report.first_bad_layer) == ("disagree", layer), report.reason
    assert report.diagnosis[0].bug == bug
    json.dumps(report.to_json(), allow_nan=False)


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
