"""Bugs inside the residual blocks of a port that shows the blocks' outputs alone: named, placed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.arrays import Array
from repvgg_ref.blocks.fusion import FusedConv
from repvgg_ref.models.baselines import resnet
from repvgg_ref.models.graph import INPUT
from repvgg_ref.oracle.bugs import Mutant, bugs_for
from repvgg_ref.oracle.bugs.base import planted
from repvgg_ref.oracle.bugs.harness import output_of, site_of
from repvgg_ref.oracle.programs.block import BlockProgram
from repvgg_ref.oracle.programs.distinguishing import distinguishing_model
from repvgg_ref.oracle.programs.layers import Programs
from repvgg_ref.oracle.programs.node import wide_pass
from repvgg_ref.oracle.programs.program import batch_output

ARCH = resnet("small", depths=(1, 1), bottleneck=True, num_classes=5)
X = np.random.default_rng(1).standard_normal((2, 3, 48, 40)).astype(np.float32)
MODEL = distinguishing_model(ARCH, seed=2, x=X)
PROGRAMS = Programs(MODEL)
RIGHT: dict[str, Array] = MODEL.forward(X, layers=True)
INNER = [name for name in RIGHT if name.count(".") == 2 and not name.endswith(".add")]
_LARGE = 1e-4  # of an output: what is smaller drowns in the rounding of what is not shown


def port(wrong: Mapping[str, BlockProgram]) -> dict[str, Array]:
    """The outputs of residual blocks of a port some of whose convolutions are others."""
    known, run = {INPUT: np.asarray(X, np.float64)}, wide_pass(MODEL)
    for node in ARCH.evaluated:
        xs = [known[source] for source in node.inputs]
        own = wrong.get(node.name)
        y = node.op.forward(node.name, xs, run)[0] if own is None else batch_output(own, xs[0])
        known[node.name] = np.asarray(y, np.float32).astype(np.float64)
    return {n: known[n].astype(np.float32) for n in RIGHT if n not in INNER}


def mutants_of(layer: str) -> Iterator[Mutant[Any]]:
    """The bugs that change what a hidden layer gives, and not its size."""
    source = next(node.inputs[0] for node in ARCH.evaluated if node.name == layer)
    x = np.asarray(RIGHT[source], np.float64)
    site = site_of(PROGRAMS, layer, x)
    for mutant in planted(bugs_for(site.program), site, layer):
        y = output_of(mutant.variant.program, x)
        if y is None or y.shape != RIGHT[layer].shape:
            continue
        if np.abs(y - RIGHT[layer]).max() > _LARGE * np.abs(y).max():
            yield mutant


def names(report: rr.Report) -> set[str]:
    assert report.verdict == "disagree", report.reason
    return {name for each in report.diagnosis for name in (each.bug, *each.equivalents)}


NAMED = [
    ("conv1", "eps-value"),
    ("conv1", "relu-missing"),
    ("conv2", "kernel-flipped"),
    ("conv2", "padding-replicate"),
    ("conv2", "padding-asymmetric"),
    ("conv3", "gamma-ignored"),
    ("downsample", "mean-ignored"),
]


@pytest.mark.few(3)
@pytest.mark.parametrize(("part", "bug"), NAMED)
def test_a_bug_of_a_hidden_layer_is_named(part: str, bug: str) -> None:
    layer = f"layer2.0.{part}"
    mutant = next(each for each in mutants_of(layer) if each.bug.name == bug)
    report = rr.verify(MODEL, port({layer: mutant.variant.program}), inputs=X)
    assert bug in names(report)
    assert report.first_bad_layer == "layer2.0.add"
    assert report.diagnosis[0].is_in(layer), report.diagnosis


def test_torchvisions_stride_is_told_from_the_papers() -> None:
    """In the 3x3 convolution (v1.5), not in the first (v1)."""
    conv1, conv2 = (replace(PROGRAMS[f"layer2.0.conv{n}"], stride=n) for n in (1, 2))
    outputs = port({"layer2.0.conv1": conv1, "layer2.0.conv2": conv2})
    (found,) = rr.verify(MODEL, outputs, inputs=X).diagnosis
    assert found.bug == "stride-elsewhere"
    assert found.says == "the stride is that of layer2.0.conv2, not of layer2.0.conv1"


def test_one_bug_in_all_hidden_layers_of_a_block_is_one_finding() -> None:
    """Each alone explains a part of it: found with the others or not at all."""
    inner = [name for name in INNER if name.startswith("layer1.0.")]
    wrong = {
        name: next(m.variant.program for m in mutants_of(name) if m.bug.name == "beta-ignored")
        for name in inner
    }
    (found,) = rr.verify(MODEL, port(wrong), inputs=X).diagnosis
    assert (found.bug, found.layer) == ("beta-ignored", inner[0])
    assert all(name in found.says for name in inner[1:])


def test_one_bug_in_the_hidden_layers_of_all_blocks_is_one_finding() -> None:
    """In all layers, shown ones included; else it is said in which others it is."""
    other = replace(MODEL, eps=1e-3).forward(X, layers=True)
    (found,) = rr.verify(MODEL, {n: other[n] for n in other if n not in INNER}, inputs=X).diagnosis
    assert (found.bug, found.layer) == ("eps-value", "all")
    assert "(in all 9 layers that show it)" in found.says
    assert found.estimate == pytest.approx(1e-3, rel=1e-6)
    programs = Programs(replace(MODEL, eps=1e-3))
    outputs = port({name: programs[name] for name in INNER})
    (found,) = rr.verify(MODEL, outputs, inputs=X).diagnosis
    assert (found.bug, found.layer) == ("eps-value", INNER[0])
    assert all(name in found.says for name in INNER[1:])


@pytest.mark.few(2)
@pytest.mark.parametrize("layer", ["layer1.0.conv1", "layer2.0.conv2", "layer2.0.downsample"])
def test_noise_in_a_hidden_layer_is_no_rounding(layer: str) -> None:
    """A tenth of the weights: plainly wrong, though the largest rounding of all may be as large."""
    rng = np.random.default_rng(0)

    def noisy(kernel: FusedConv) -> FusedConv:
        noise = rng.standard_normal(kernel.weight.shape)
        return kernel._replace(weight=kernel.weight * (1 + 0.1 * noise))

    report = rr.verify(MODEL, port({layer: PROGRAMS[layer].with_kernel(noisy)}), inputs=X)
    assert report.verdict == "disagree", report.reason
    assert report.first_bad_layer == layer.rsplit(".", 1)[0] + ".add"
    assert layer in report.diagnosis[0].says


@pytest.mark.parametrize("block", ["layer1.0", "layer2.0"])
def test_a_projection_left_out_is_named(block: str) -> None:
    """Zeros for the channels that are missing, and every other pixel where it strides."""
    right = PROGRAMS[f"{block}.downsample"]
    wide, narrow = right.spec.out_channels, right.spec.in_channels
    kernel = FusedConv(np.eye(wide, narrow)[:, :, None, None], np.zeros(wide))
    outputs = port({right.name: replace(right, branches={}, fused=kernel)})
    (found,) = rr.verify(MODEL, outputs, inputs=X).diagnosis
    assert (found.bug, found.layer) == ("layer-skipped", right.name)
    assert "zeros for the channels that it lacks" in found.says


TOLD = [f"layer{n}.0.{part}" for n in (1, 2) for part in ("downsample", "conv1", "conv2", "conv3")]


@pytest.mark.few(1)
@pytest.mark.parametrize("layer", TOLD)
def test_a_factor_of_the_size_that_is_told_is_seen_in_a_hidden_layer(layer: str) -> None:
    """And named if it is larger; a hundredth of it, which is within the bounds, is not seen."""
    report = rr.verify(MODEL, port({}), inputs=X)
    assert report.verdict == "agree", report.reason
    told = {each.name: each.detects.get("hidden") for each in report.layers}
    size = told[layer.rsplit(".", 1)[0] + ".add"]
    assert size is not None
    assert 0 < size < 1e-3

    def judged(share: float) -> rr.Report:
        factor = 1 + share * size
        wrong = replace(PROGRAMS[layer], output_map=lambda y: factor * y)
        return rr.verify(MODEL, port({layer: wrong}), inputs=X)

    assert judged(0.01).verdict == "agree"
    assert judged(1.0).verdict != "agree"
    (found,) = judged(10.0).diagnosis
    assert (found.bug, found.layer) == ("outputs-scaled", layer)
    assert found.estimate == pytest.approx(10 * size, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("layer", INNER)
def test_nine_of_ten_bugs_of_a_hidden_layer_are_named(
    layer: str, record_property: Callable[[str, object], None]
) -> None:
    told = [
        mutant.bug.name in names(rr.verify(MODEL, port({layer: mutant.variant.program}), inputs=X))
        for mutant in mutants_of(layer)
    ]
    record_property(f"bugs named, hidden in {layer}", f"{sum(told)} of {len(told)}")
    assert sum(told) >= 0.9 * len(told)
