"""Every block of the catalogue, whoever added it: exact, trainable, convertible, diagnosable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.arrays import Array
from repvgg_ref.blocks.block import train_block_backward, train_block_forward
from repvgg_ref.blocks.branches import branches_of, fuse_branches
from repvgg_ref.blocks.catalogue import KINDS, expression, fused_conv, is_fusible, part_of
from repvgg_ref.blocks.constructors import Pad
from repvgg_ref.blocks.fusion import fuse_block
from repvgg_ref.blocks.run import Reader
from repvgg_ref.blocks.selfcheck import check_block
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.errors import NotFusibleError
from repvgg_ref.exact.rounding import nearest
from repvgg_ref.files.convert import convert
from repvgg_ref.models.architectures import Architecture, plain_architecture
from repvgg_ref.models.cost import cost
from repvgg_ref.models.parameters import is_trainable
from repvgg_ref.ops import REFERENCE
from repvgg_ref.oracle.bugs import LAYER_BUGS
from repvgg_ref.oracle.bugs.harness import mutants
from repvgg_ref.oracle.programs.distinguishing import distinguishing_model
from repvgg_ref.oracle.programs.inputs import distinguishing_inputs
from repvgg_ref.oracle.programs.layers import Programs
from repvgg_ref.oracle.programs.program import layer_output
from tests.blocks.exact_blocks import EPS, branch_sum, exact_array, fused_output
from tests.gradcheck import assert_gradients
from tests.models.small import batch, distinct_model
from tests.ops.exact import assert_exact, rationals
from tests.random_networks import random_block

NETWORK_KINDS = [name for name, each in KINDS.items() if each.keys]  # those a RepVGG is built of
SHAPES = [
    (entry, out, stride, groups)
    for (entry, out), stride, groups in product([(4, 4), (2, 4)], (1, 2), (1, 2))
]
FUSIBLE = [n for n in NETWORK_KINDS if is_fusible(BlockSpec("stage0", 4, 4, 1, kind=n))]
every = pytest.mark.parametrize("name", NETWORK_KINDS)
every_fusible = pytest.mark.parametrize("name", FUSIBLE)
PARTS = 6  # of the mutants of a layer, so that a push can run some


def network(name: str) -> Architecture:
    return plain_architecture(
        depths=[2, 2], channels=[4, 6, 8], num_classes=5, in_channels=2, kind=name
    )


def freeze_borders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Borders are constants of the gradient, as in the published code."""
    first, fill = dict[str, Array](), Pad.fill
    monkeypatch.setattr(
        Pad, "fill", lambda pad, run: first.setdefault(pad.norm.name, fill(pad, run))
    )


@pytest.mark.few
@every_fusible
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_branch_sum_equals_fused_output(name: str, shape: tuple[int, int, int, int]) -> None:
    """In rationals, with ``==``: every stride, width, group; with and without an identity."""
    entry, out, stride, groups = shape
    spec = BlockSpec("stage0", entry, out, stride, groups, kind=name)
    rng = np.random.default_rng(hash(shape) % 1000)
    params = {
        f"stage0.{part}": exact_array(part, of, rng)
        for part, of in expression(spec).shapes().items()
        if not part.endswith("num_batches_tracked")
    }
    x = rationals(rng, 2, entry, 5, 4)
    assert_exact(fused_output(spec, params, x, EPS), branch_sum(spec, params, x, EPS))


@pytest.mark.parametrize("name", [*FUSIBLE, "repvit"])
def test_branches_of_an_untrained_block_sum_to_its_kernel(name: str) -> None:
    """Norms that shift nothing yet scale all the same, those inside a branch, too."""
    spec = BlockSpec("stage0", 4, 4, 1, 4 if name == "repvit" else 1, kind=name)
    rng, start = np.random.default_rng(0), {"gamma": 1.0, "running_var": 1.0, "beta": 0.0}
    params = {
        f"stage0.{part}": np.full(shape, start[part.rpartition(".")[2]])
        if part.rpartition(".")[2] in start
        else rng.normal(size=shape) * (not part.endswith("running_mean"))
        for part, shape in expression(spec).shapes().items()
    }
    got = fuse_branches(branches_of(spec, params, 0.01), 0.01)
    want = expression(spec).form(Reader(part_of(spec, params), 0.01), slice(None))
    assert not np.abs(got.weight - want.dense()).max() > 1e-12
    assert not np.abs(got.bias - want.bias).max() > 1e-12


@every_fusible
def test_every_tap_is_the_exact_one_correctly_rounded(name: str) -> None:
    model = distinguishing_model(network(name), seed=1)
    for spec in model.arch.blocks:
        fused = fuse_block(spec, model.params, eps=model.eps)
        read = Reader(part_of(spec, model.params), model.eps, exact=True)
        exact = expression(spec).form(read, slice(None))
        for got, want in ((fused.weight, exact.dense()), (fused.bias, exact.bias)):
            assert got.shape == want.shape
            rounded = [nearest(Fraction(value), np.float32) for value in want.flat]
            assert got.ravel().tolist() == rounded
        check = check_block(spec, model.params, fused, eps=model.eps)
        assert check.ok
        worse = fused._replace(weight=fused.weight * np.float32(1 + 1e-5))
        assert not check_block(spec, model.params, worse, eps=model.eps).ok


@every
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize(("entry", "stride"), [(4, 1), (2, 2)])
def test_gradients_by_finite_differences(
    name: str, training: bool, entry: int, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    freeze_borders(monkeypatch)
    spec = BlockSpec("block", entry, 4, stride, kind=name)
    model = distinct_model(Architecture("block", (spec,), 2))
    names = [n for n in model.params if n.startswith("block.") and is_trainable(n)]
    x = np.random.default_rng(2).standard_normal((2, entry, 7, 6))

    def forward(x: Array, *arrays: Array) -> tuple[Array, Any]:
        params = model.params | dict(zip(names, arrays, strict=True))
        return train_block_forward(spec, params, x, ops=REFERENCE, eps=model.eps, training=training)

    def backward(grad_y: Array, cache: Any) -> tuple[Array, ...]:
        grads = train_block_backward(spec, grad_y, cache)
        return grads.x, *(grads.params[name.removeprefix("block.")] for name in names)

    assert_gradients(forward, backward, x, *(model.params[name] for name in names), seed=3)


@pytest.mark.parametrize("name", sorted(set(NETWORK_KINDS) - set(FUSIBLE)))
def test_what_no_convolution_equals_is_refused_with_reason_and_place(
    name: str, tmp_path: Path
) -> None:
    model = distinguishing_model(network(name), seed=2)
    rr.save(model, tmp_path / "train.npz")
    assert rr.load(tmp_path / "train.npz").block == name
    calls: list[Callable[[], object]] = [
        lambda: rr.fuse(model),
        lambda: convert(tmp_path / "train.npz", tmp_path / "deploy.npz"),
        lambda: rr.save(model, tmp_path / "model.onnx"),
        lambda: cost(network(name)),
    ]
    for call in calls:
        with pytest.raises(NotFusibleError, match=r"stage0: .*before the sum"):
            call()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.npz"]


@every
def test_a_cache_can_be_gone_back_through_twice(name: str) -> None:
    spec = replace(network(name).blocks[2], name="stage0")
    shapes = expression(spec).shapes()
    params = random_block({f"stage0.{part}": of for part, of in shapes.items()}, 0)
    x = np.random.default_rng(0).normal(size=(2, spec.in_channels, 5, 6)).astype(np.float32)
    y, cache = train_block_forward(spec, params, x, ops=REFERENCE, eps=1e-5, training=True)
    first, second = (train_block_backward(spec, np.ones_like(y), cache) for _ in "12")
    np.testing.assert_array_equal(first.x, second.x)
    assert first.params.keys() == second.params.keys()
    for part, grad in first.params.items():
        np.testing.assert_array_equal(second.params[part], grad)


@every
def test_the_fast_table_trains_it_as_the_reference_does(name: str) -> None:
    model = distinct_model(network(name))
    x, labels = batch(model.arch, count=3)
    want = model.loss_and_grads(x, labels, backend="reference")
    got = model.loss_and_grads(x, labels, backend="numpy")
    assert got.loss == pytest.approx(want.loss, rel=1e-10)
    for ours, theirs in ((got.grads, want.grads), (got.stats, want.stats)):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            scale = max(1e-6, float(np.abs(value).max()))
            np.testing.assert_allclose(ours[key], value, rtol=1e-7, atol=1e-8 * scale)


@pytest.mark.few(18)
@every_fusible
@pytest.mark.parametrize("suffix", ["npz", "pth", "safetensors"])
def test_a_file_of_it_is_told_from_its_keys_and_converted(
    name: str, suffix: str, tmp_path: Path
) -> None:
    model = distinguishing_model(network(name), seed=2)
    path = tmp_path / f"train.{suffix}"
    rr.save(model, path)
    asked = "auto" if KINDS[name].auto else name
    loaded = rr.load(path, block=asked)
    assert (loaded.block, loaded.form) == (name, "train")
    assert loaded.arch == replace(network(name), name="custom")
    done = convert(path, tmp_path / f"deploy.{suffix}", block=asked)
    assert done.self_check is not None
    assert done.self_check.ok
    fused = rr.load(tmp_path / f"deploy.{suffix}")
    x = distinguishing_inputs(model.arch, height=13, width=12)
    apart = np.abs(fused.forward(x) - model.forward(x)).max()
    assert apart < 1e-4 * np.abs(model.forward(x)).max()
    key = next(iter(fused.state_dict()))
    assert key == f"stage0.{KINDS[name].fused}.weight"
    conv = fused_conv(model.arch.blocks[0])
    assert fused.state_dict()[key].shape == conv.shapes()["fused.weight"]


@pytest.mark.slow
@every
@pytest.mark.parametrize("part", range(PARTS))
def test_the_oracle_passes_what_is_right_and_names_every_mutant_of_a_layer(
    name: str, part: int
) -> None:
    """Deleted, doubled and moved branches, norms done wrongly: each named, in the right place."""
    model = distinguishing_model(network(name), seed=3)
    x = distinguishing_inputs(model.arch, height=18, width=16)
    right = (rr.fuse(model) if name in FUSIBLE else model).forward(x, layers=True)
    assert rr.verify(model, right, inputs=x).verdict == "agree"
    place = "stage1.1"
    programs, inputs, y = Programs(model), {}, x.astype(np.float64)
    for layer, program in programs.items():
        inputs[layer] = y
        y = layer_output(program, y)
    bugs = [b for b in LAYER_BUGS if b.name.startswith(("branch", "identity", "bn-of", "mean"))]
    planted = [m for _, m in mutants(programs, inputs, [place]) if m.bug in bugs]
    assert planted
    exact = programs[place].evaluate(inputs[place])
    for mutant in planted[part::PARTS]:
        program = mutant.variant.program
        wrong = program.evaluate(inputs[place])
        size = program.output_size(*inputs[place].shape[2:])
        if size != right[place].shape[2:]:
            continue
        if np.allclose(wrong, exact, rtol=1e-12, atol=1e-13):
            continue  # branches of one norm have no means to lose, and none to exchange
        outputs = dict(right)
        outputs[place] = wrong.reshape(right[place].shape).astype(np.float32)
        after = list(outputs)[list(outputs).index(place) + 1]
        outputs[after] = layer_output(programs[after], outputs[place].astype(np.float64)).astype(
            np.float32
        )
        report = rr.verify(model, outputs, inputs=x)
        assert report.verdict == "disagree", mutant.says
        assert report.first_bad_layer == place, mutant.says
        top = report.diagnosis[0]
        assert mutant.bug.name in (top.bug, *top.equivalents), (mutant.says, top)
