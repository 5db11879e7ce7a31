"""Equal networks in another order or scale agree; where nothing takes it back they do not."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.arrays import Array
from repvgg_ref.models.network import Model, fuse
from repvgg_ref.oracle.arithmetic.sample import Sample, sample_of
from repvgg_ref.oracle.bounds.precision import PRECISIONS
from repvgg_ref.oracle.candidates import Outputs
from repvgg_ref.oracle.programs.distinguishing import distinguishing_model
from repvgg_ref.oracle.programs.inputs import distinguishing_inputs
from repvgg_ref.oracle.programs.layers import Programs
from repvgg_ref.oracle.programs.program import layer_output
from repvgg_ref.oracle.symmetry.factors import columns_of, compensated
from repvgg_ref.oracle.symmetry.match import matched
from repvgg_ref.oracle.symmetry.outputs import align
from repvgg_ref.oracle.symmetry.taken_back import asked
from tests.models.small import SMALL
from tests.oracle.symmetry.ports import changed, drawn_order
from tests.studies.oracle.arithmetics import run

KINDS = ("plain", "grouped", "se-before-relu", "plus")


def judged(how: str, model: Model, port: Model, folder: Path) -> Any:
    if how == "file":
        path = folder / "port.npz"
        rr.save(port, path)
        return rr.verify(model, path)
    x = distinguishing_inputs(model.arch, height=48, width=40)
    return rr.verify(model, port.forward(x, layers=True), inputs=x)


@pytest.mark.few(2)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["file", "layers"])
def test_an_equal_network_agrees_and_says_so(how: str, kind: str, tmp_path: Path) -> None:
    model, rng, port = distinguishing_model(SMALL[kind]), np.random.default_rng(1), None
    for spec in model.arch.blocks:
        factor = np.exp(rng.uniform(-1, 1, spec.out_channels)).astype(np.float32)
        order = drawn_order(model, spec.name, rng)
        port = changed(port or fuse(model), spec.name, order, factor)
    assert port is not None
    x = distinguishing_inputs(model.arch)
    assert np.allclose(port.forward(x), fuse(model).forward(x), rtol=1e-3, atol=1e-4)
    report = judged(how, model, port, tmp_path)
    assert report.verdict == "agree", report.reason
    kinds = {entry["kind"] for entry in report.to_json()["equivalences"]}
    assert kinds == {"permutation", "scaling"}
    assert {e.layer for e in report.equivalences} == set(model.arch.layer_names) - {"linear"}


@pytest.mark.few(4)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["file", "layers"])
def test_an_order_that_is_not_taken_back_is_named(how: str, kind: str, tmp_path: Path) -> None:
    model = distinguishing_model(SMALL[kind])
    layer = model.arch.blocks[1].name
    order = drawn_order(model, layer, np.random.default_rng(4))
    assert (order != np.arange(len(order))).any()
    port = changed(model, layer, order, np.ones(len(order), np.float32), taken_back=False)
    report = judged(how, model, port, tmp_path)
    assert report.verdict == "disagree"
    assert report.first_bad_layer == layer
    assert report.diagnosis[0].bug == "channels-permuted"
    assert not report.equivalences


@pytest.mark.parametrize("how", ["file", "layers"])
def test_a_scale_that_is_not_taken_back_is_found(how: str, tmp_path: Path) -> None:
    model = distinguishing_model(SMALL["plain"])
    order = np.arange(6)
    factor = np.ones(6, np.float32)
    factor[3] = 1.01
    port = changed(model, "stage1.1", order, factor, taken_back=False)
    report = judged(how, model, port, tmp_path)
    assert report.verdict == "disagree"
    assert report.first_bad_layer == "stage1.1"


@pytest.mark.few(1)
@pytest.mark.parametrize("size", [1e-4, 1e-5])
@pytest.mark.parametrize("kind", KINDS)
def test_factors_near_1_are_a_symmetry_if_they_are_taken_back(kind: str, size: float) -> None:
    model = distinguishing_model(SMALL[kind])
    layer, x = model.arch.blocks[1].name, distinguishing_inputs(model.arch)
    channels = model.arch.block(layer).out_channels
    drawn = np.random.default_rng(3).uniform(-1, 1, channels)
    factor = (1 + size * drawn).astype(np.float32)
    for taken_back in (True, False):
        port = changed(model, layer, np.arange(channels), factor, taken_back=taken_back)
        report = rr.verify(model, port.forward(x, layers=True), inputs=x)
        hidden = model.arch.block(layer).se == "after_relu" and size < 1e-4
        if taken_back:  # the gate's own error is 4e-6 there
            assert report.verdict == ("cannot-judge" if hidden else "agree"), report.reason
            assert [(e.layer, e.kind) for e in report.equivalences] == [(layer, "scaling")]
        elif model.arch.block(layer).se == "none":  # a gate's own rounding hides factors so small
            assert report.verdict == "disagree"
            assert report.first_bad_layer == layer
            assert not report.equivalences


def scaled_throughout(model: Model, size: float, seed: int) -> Model:
    """All channels of all layers scaled by 1 + N(0, size), the next layer dividing."""
    port, rng = fuse(model), np.random.default_rng(seed)
    for spec in model.arch.blocks:
        factor = np.exp(size * rng.normal(size=spec.out_channels)).astype(np.float32)
        port = changed(port, spec.name, np.arange(spec.out_channels), factor)
    return port


@pytest.mark.few(2)
@pytest.mark.parametrize("size", [1e-3, 1e-6])
@pytest.mark.parametrize("kind", ["grouped", "se-before-relu"])
@pytest.mark.parametrize("how", ["file", "layers"])
def test_factors_that_scatter_about_1_are_all_solved_for(
    how: str, kind: str, size: float, tmp_path: Path
) -> None:
    model = distinguishing_model(SMALL[kind], 100)
    report = judged(how, model, scaled_throughout(model, size, 100), tmp_path)
    hidden = (how, kind, size) == ("layers", "grouped", 1e-6)  # four images' logits tell too little
    assert report.verdict == ("cannot-judge" if hidden else "agree"), report.reason
    assert not hidden or "rounding hides whether linear divides by them" in report.reason
    assert {e.kind for e in report.equivalences} == {"scaling"}


def test_an_equal_network_with_factors_as_near_to_1_as_rounding_agrees() -> None:
    model = distinguishing_model(SMALL["grouped"], 100)
    report = judged("layers", model, scaled_throughout(model, 5e-7, 2), Path())
    assert report.verdict == "agree", report.reason


def test_one_factor_as_near_to_1_as_rounding_that_is_not_taken_back_is_placed() -> None:
    model = distinguishing_model(SMALL["plain"], 100)
    factor = np.ones(6, np.float32)
    factor[3] = 1 + 1e-6
    port = changed(model, "stage1.1", np.arange(6), factor, taken_back=False)
    report = judged("layers", model, port, Path())
    assert report.verdict == "disagree"
    assert report.first_bad_layer == "stage1.1", report.reason


@pytest.mark.parametrize(("noise", "answer"), [(1e-9, "known"), (1e-5, "unsure")])
def test_the_next_layer_says_of_each_factor_whether_it_is_taken_back_or_that_it_cannot(
    noise: float, answer: str
) -> None:
    model, rng = distinguishing_model(SMALL["plain"], 100), np.random.default_rng(0)
    program = Programs(model)["linear"]
    channels = program.weight.shape[1]
    factor = 1 + 1e-6 * rng.choice((-1, 1), channels)
    taken = np.arange(channels) != 3
    x = rng.normal(size=(64, channels, 1, 1))
    y = layer_output(program, x)
    y_hat = layer_output(program, x * np.where(taken, 1, factor)[:, None, None])
    y_hat = y_hat * (1 + noise * rng.normal(size=y.shape))
    found = asked(sample_of(program, x, y, y_hat, PRECISIONS["fp32"]), factor, 1e-9)
    assert (found.wrong == ~taken).all() if answer == "known" else not found.wrong.any()
    assert found.unsure.all() == (answer == "unsure")


@pytest.mark.parametrize("noise", [1e-9, 1e-7])
def test_a_common_factor_of_all_channels_is_not_taken_back_because_its_parts_hide_one_another(
    noise: float,
) -> None:
    """Each alone seems to be: all together are a scale of the next layer."""
    model, rng = distinguishing_model(SMALL["plain"], 100), np.random.default_rng(0)
    program = Programs(model)["stage2.0"]
    channels = program.fused_kernel().weight.shape[1]
    factor = 1 + 5e-6 + rng.normal(0, 1.5e-6, channels)  # as gates leave a factor of all: roughly
    x = np.abs(rng.normal(size=(2, channels, 8, 8)))
    y = layer_output(program, x)
    y_hat = layer_output(program, x * factor[:, None, None])
    y_hat *= 1 + noise * rng.normal(size=y.shape)
    found = asked(sample_of(program, x, y, y_hat, PRECISIONS["fp32"]), factor, 1e-10)
    assert (found.wrong | found.unsure).all()


def test_a_part_that_is_a_scale_of_the_next_layer_says_nothing() -> None:
    model, rng = distinguishing_model(SMALL["plain"], 100), np.random.default_rng(0)
    program = Programs(model)["stage2.0"]
    channels = program.fused_kernel().weight.shape[1]
    x = np.zeros((2, channels, 8, 8))
    x[:, 0] = rng.uniform(size=(2, 8, 8))
    y = layer_output(program, x)
    sample = sample_of(program, x, y, y, PRECISIONS["fp32"])
    sample = replace(sample, y=sample.y - sample.bias[:, None])  # of which nothing is left then
    found = asked(sample, np.where(np.arange(channels) == 0, 1.25, 1.0), 1e-9)
    assert found.unsure[0]
    assert not asked(sample, np.where(np.arange(channels) == 1, 1.25, 1.0), 1e-9).unsure.any()


def test_one_output_an_image_behind_a_gate_says_nothing_of_factors() -> None:
    """Its own scale explains it, and what float64 leaves of that is no evidence."""
    model, rng = distinguishing_model(SMALL["se-before-relu"], 100), np.random.default_rng(0)
    program = Programs(model)["stage2.0"]
    channels = program.fused_kernel().weight.shape[1]
    factor = 1 + 1e-5 * rng.normal(size=channels)
    x = np.abs(rng.normal(size=(3, channels, 2, 2)))
    y = layer_output(program, x)
    assert y.shape[2:] == (1, 1)
    y_hat = layer_output(program, x * factor[:, None, None])
    found = asked(sample_of(program, x, y, y_hat, PRECISIONS["fp32"]), factor, 1e-9)
    assert found.unsure.all()


@pytest.mark.few(1)
@pytest.mark.parametrize(("layer", "size"), [("stage2.1", 2e-6), ("stage3.0", 5e-6)])
def test_no_layer_agrees_whose_common_factor_the_next_one_seems_to_take_back(
    layer: str, size: float
) -> None:
    """Behind gates a realigned layer is held to its bounds alone, and those are wider."""
    x = distinguishing_inputs(SMALL["plus"], batch=3, height=24, width=24, seed=43004)
    model = distinguishing_model(SMALL["plus"], 43004, x=x)
    faults = {layer: lambda _program, _x, y: (1 + size) * y}
    report = rr.verify(model, run(Programs(model), x, "blocked", faults), inputs=x)
    assert report.verdict != "agree", report.equivalences


@pytest.mark.parametrize(("size", "wrong"), [(1e-3, 0.0), (1e-2, 3e-3)])
def test_a_head_behind_factors_that_gates_blur_is_called_wrong_if_it_is_beyond_what_they_explain(
    size: float, wrong: float
) -> None:
    x = distinguishing_inputs(SMALL["plus"], batch=3, height=24, width=24, seed=92016)
    model = distinguishing_model(SMALL["plus"], 92016, x=x)
    port = scaled_throughout(model, size, 92016)
    port.params["linear.bias"][0] += np.float32(wrong)
    report = rr.verify(model, port.forward(x, layers=True), inputs=x)
    assert report.verdict == ("disagree" if wrong else "cannot-judge"), report.reason
    assert "linear" in report.reason
    assert report.first_bad_layer == ("linear" if wrong else None)


@pytest.mark.parametrize("unit", [1e-12, 1e-9, 1e-7, 1e-5])
def test_bounds_settle_of_factors_what_errors_of_weights_would(
    unit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The product as large as the layer is made for those alone that are near."""
    model, rng = distinguishing_model(SMALL["plain"], 100), np.random.default_rng(0)
    program = Programs(model)["stage2.0"]
    channels = program.fused_kernel().weight.shape[1]
    factor = 1 + rng.normal(0, 1e-6, channels)
    x = np.abs(rng.normal(size=(2, channels, 8, 8)))
    y = layer_output(program, x)
    y_hat = layer_output(program, x * factor[:, None, None]) * (1 + 1e-7 * rng.normal(size=y.shape))
    sample = sample_of(program, x, y, y_hat, PRECISIONS["fp32"])
    made: list[Array] = []
    met = Sample.met

    def counted(self: Sample, outputs: Array) -> Array:
        made.append(outputs)
        return met(self, outputs)

    monkeypatch.setattr(Sample, "met", counted)
    found = asked(sample, factor, unit)
    assert len(made) < channels
    monkeypatch.setattr("repvgg_ref.oracle.symmetry.taken_back._odds", odds_with_all)
    assert (found.wrong == (exact := asked(sample, factor, unit)).wrong).all()
    assert (found.unsure == exact.unsure).all()


def odds_with_all(sample: Sample, weighted: Array, part: Array, error: Array, unit: float) -> float:
    """With errors of weights, always."""
    met, power = float((weighted * error).sum()), float((weighted * part).sum())
    variance = float(((weighted * error) ** 2).sum()) + unit**2 * float(sample.met(weighted).sum())
    if not power > 0:
        return 0.0 if (sample.active & (part != 0)).any() else np.inf
    return power * (power - 2 * met) / (2 * variance)


def test_one_factor_that_is_not_taken_back_is_placed_among_many_that_are(tmp_path: Path) -> None:
    model = distinguishing_model(SMALL["plain"], 100)
    port = scaled_throughout(model, 1e-3, 100)
    factor = np.ones(6, np.float32)
    factor[3] = 1 + 2e-4
    port = changed(port, "stage1.1", np.arange(6), factor, taken_back=False)
    report = judged("file", model, port, tmp_path)
    assert report.verdict == "disagree"
    assert report.first_bad_layer == "stage1.1", report.reason


@pytest.mark.parametrize("wrong", [1.0, 3.0])
def test_factors_of_inputs_are_found_whatever_rows_and_one_tap_are(wrong: float) -> None:
    rng = np.random.default_rng(5)
    ours, bias = rng.normal(size=(8, 5, 9)), rng.normal(size=8)
    columns, rows = (np.exp(rng.normal(size=n)) for n in (5, 8))
    theirs = ours * rows[:, None, None] * columns[:, None]
    theirs[2, 3, 4] *= wrong
    found, _ = columns_of(ours, theirs, (bias, rows * bias), 1, 2.0**-53)
    assert np.allclose(found, columns, rtol=1e-12)


def test_a_factor_of_one_rounding_is_none() -> None:
    unit = 2.0**-24
    rows, error = 1 + unit * np.array([4.0, 0.1, 4.0]), np.full(3, 0.1 * unit)
    columns = 1 / rows
    columns[2] = 1.0  # not taken back
    found = compensated(rows, columns, error, unit, 16)
    assert (found != 1).tolist() == [True, False, False]


@pytest.mark.slow
def test_a_negative_factor_is_no_symmetry(tmp_path: Path) -> None:
    model = distinguishing_model(SMALL["plain"])
    factor = np.ones(6, np.float32)
    factor[2] = -1
    port = changed(model, "stage1.0", np.arange(6), factor)
    for how in ("file", "layers"):
        report = judged(how, model, port, tmp_path)
        assert report.verdict == "disagree"
        assert report.first_bad_layer == "stage1.0"


def test_an_order_that_crosses_the_groups_of_the_next_layer_disagrees(tmp_path: Path) -> None:
    model = distinguishing_model(SMALL["grouped"])
    grouped = next(spec for spec in model.arch.blocks if spec.groups > 1)
    names = list(model.arch.layer_names)
    layer = names[names.index(grouped.name) - 1]
    channels = model.arch.block(layer).out_channels
    order = np.roll(np.arange(channels), 1)
    port = changed(model, layer, order, np.ones(channels, np.float32), taken_back=False)
    for how in ("file", "layers"):
        report = judged(how, model, port, tmp_path)
        assert report.verdict == "disagree"
        assert report.first_bad_layer == layer


def test_a_reordered_network_with_a_fault_still_disagrees(tmp_path: Path) -> None:
    model, rng = distinguishing_model(SMALL["plain"]), np.random.default_rng(2)
    order = drawn_order(model, "stage1.0", rng)
    port = changed(model, "stage1.0", order, np.ones(len(order), np.float32))
    port.params["stage2.0.fused.weight"][1, 2, 0, 1] *= np.float32(1.01)
    for how in ("file", "layers"):
        report = judged(how, model, port, tmp_path)
        assert report.first_bad_layer == "stage2.0", report.reason
        assert report.equivalences


def test_channels_that_are_off_stay_where_they_are() -> None:
    rng = np.random.default_rng(0)
    ours = rng.normal(size=(6, 40))
    ours[[1, 4]] = 0
    change, _ = matched(ours, ours.copy(), 1e-6)
    assert change.is_nothing
    order = np.array([2, 1, 0, 5, 4, 3])
    change, left = matched(ours, 2 * ours[order], 1e-6)
    assert (change.order[[0, 2, 3, 5]] == order[[0, 2, 3, 5]]).all()
    assert (change.factor[[0, 2, 3, 5]] == 2).all()
    assert left.max() < 1e-20


def test_nothing_is_done_to_a_port_in_our_order() -> None:
    model = rr.build("RepVGG-A0", seed=0)
    x = distinguishing_inputs(model.arch, batch=1)
    outputs = Outputs(fuse(model).forward(x, layers=True))
    started = time.process_time()
    same, found, *_ = align(Programs(model), x, outputs)
    assert same is outputs
    assert not found
    assert not time.process_time() - started > 0.5  # measured: 0.03


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300, 0.0])
def test_a_lost_channel_hides_no_order_and_is_explained_by_none(value: float) -> None:
    ours = np.random.default_rng(0).standard_normal((8, 10)) * 1e5
    order = np.roll(np.arange(8), 3)
    theirs = ours[order]
    theirs[2] = value
    change, left = matched(ours, theirs, 1e-6)
    assert change.order.tolist() == order.tolist()
    assert left[2] == 1
    assert not np.delete(left, 2).any()
