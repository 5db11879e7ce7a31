"""Attacks on the integer oracle that once got a wrong verdict, kind by kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repvgg_ref.integer.equalize import equalize
from repvgg_ref.integer.layers import IntegerLayer
from repvgg_ref.integer.quantize import as_chain, quantize
from repvgg_ref.integer.schemes import ANY, SCHEMES
from repvgg_ref.models.network import fuse
from repvgg_ref.oracle.integers.factors import across
from repvgg_ref.oracle.integers.front import verify_integers
from repvgg_ref.oracle.integers.golden import write_integer_golden
from repvgg_ref.oracle.integers.weights import real_array
from tests.integer.networks import chain, images
from tests.oracle.test_integer_weights import IMAGES, MODEL, NAMES, with_layer
from tests.oracle.test_integer_weights import NETWORK as QUANTISED
from tests.oracle.test_integer_weights import judged as judged_weights
from tests.oracle.test_integers import NETWORK, X, dump, judged

FLAT = np.full_like(X, NETWORK.layers[0].input.zero_point)


def part(*names: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda numbers: {name: numbers[name] for name in ("input", *names)}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda numbers: {name: y[:0] for name, y in numbers.items()}, "at least one image"),
        (part("stage0"), "stage1.0, stage1.1, stage2.0, pool, linear cannot be judged"),
        (part("stage0", "pool"), "linear cannot be judged"),
        (part(), "no layer"),
        (lambda numbers: numbers | {"input": X[:, :2]}, "the network reads (N, 3, H, W)"),
        (lambda numbers: numbers | {"input": X[0]}, "the network reads (N, 3, H, W)"),
        (lambda numbers: numbers | {"input": X + np.float32(0.5)}, "the network reads uint8"),
        (lambda numbers: dump(NETWORK, FLAT), "one number everywhere"),
    ],
    ids=["empty", "one layer", "no head", "input only", "channels", "rank", "type", "flat"],
)
def test_what_a_dump_cannot_show_is_not_judged(
    change: Callable[[dict[str, Any]], dict[str, Any]], says: str
) -> None:
    report = judged(NETWORK, change(dump(NETWORK, X)))
    assert report.verdict == "cannot-judge"
    assert says in report.reason


def test_a_wrong_part_of_a_dump_is_wrong_all_the_same() -> None:
    numbers = part("stage0")(dump(NETWORK, X))
    report = judged(NETWORK, numbers | {"stage0": numbers["stage0"][..., ::-1]})
    assert (report.verdict, report.first_bad_layer) == ("disagree", "stage0")


def test_pooled_numbers_may_keep_their_axes() -> None:
    numbers = dump(NETWORK, X)
    for name in ("pool", "linear"):
        numbers[name] = numbers[name][:, :, None, None]
    assert judged(NETWORK, numbers).verdict == "agree"


@pytest.mark.few(1)
@pytest.mark.parametrize("rounding", ["single", "floor", "float-away", "double"])
def test_layers_that_are_left_out_are_computed_by_the_ports_own_scheme(rounding: str) -> None:
    numbers = dump(NETWORK.rounded(rounding), X)
    del numbers["stage1.0"], numbers["stage2.0"]
    report = judged(NETWORK.rounded(ANY), numbers)
    assert report.verdict == "agree", report.reason
    assert rounding in report.schemes


def test_numbers_of_another_input_than_the_bundles_are_not_judged(tmp_path: Path) -> None:
    write_integer_golden(NETWORK, tmp_path / "bundle", name="small")
    report = verify_integers(tmp_path / "bundle", dump(NETWORK, X))
    assert report.verdict == "cannot-judge"
    assert "another input" in report.reason


def clipped(layer: IntegerLayer) -> IntegerLayer:
    """Integers of a scale too small for its weights, each the nearest that there is."""
    params, scale = fuse(MODEL).params, np.asarray(layer.weight_scale) / 8
    real = params[f"{layer.name}.fused.weight"] / scale[:, None, None, None]
    bias = params[f"{layer.name}.fused.bias"] / (float(layer.input.scale) * scale)
    return replace(
        layer,
        weight=np.clip(np.rint(real), -128, 127).astype(np.int8),
        bias=np.rint(bias).astype(np.int32),
        weight_scale=scale.astype(np.float32),
    )


def clipped_at(end: int, *, beyond: float) -> Callable[[IntegerLayer], IntegerLayer]:
    """The layer's least weight is `beyond` in its scale; `end` is the least that is stored."""

    def change(layer: IntegerLayer) -> IntegerLayer:
        params = as_chain(MODEL).params
        weight, bias = (real_array(params, layer.name, part) for part in ("weight", "bias"))
        scale = np.array(layer.weight_scale)
        channel = int(weight.reshape(len(weight), -1).min(axis=1).argmin())
        scale[channel] = weight[channel].min() / beyond
        steps = np.rint(weight / across(scale.astype(np.float64), weight))
        units = float(layer.input.scale) * scale.astype(np.float64)
        return replace(
            layer,
            weight=np.clip(steps, end, 127).astype(np.int8),
            bias=np.rint(bias / units).astype(np.int32),
            weight_scale=scale,
        )

    return change


@pytest.mark.parametrize("name", ["stage0", "stage1.1", "linear"])
@pytest.mark.parametrize("beyond", [-127.8, -128.4, -131.0])
def test_weights_may_be_clipped_at_either_least_number(name: str, beyond: float) -> None:
    """TensorFlow Lite's end at -127; where one is -128, the others of the layer are no less."""
    for end in (-127, -128):
        report = judged_weights(with_layer(name, clipped_at(end, beyond=beyond)))
        assert report.verdict == "agree", report.reason
    short = judged_weights(with_layer(name, clipped_at(-126, beyond=beyond)))
    assert (short.verdict, short.first_bad_layer) == ("disagree", name)

    def mixed(layer: IntegerLayer) -> IntegerLayer:
        held = clipped_at(-127, beyond=beyond)(layer)
        weight = np.array(held.weight)
        weight[np.unravel_index(np.abs(weight).argmin(), weight.shape)] = -128
        return replace(held, weight=weight)

    report = judged_weights(with_layer(name, mixed))
    assert (report.verdict, report.first_bad_layer) == ("disagree", name)
    assert report.layers[NAMES.index(name)].note.startswith("2 of")


def off_multiplier(layer: IntegerLayer) -> IntegerLayer:
    held = layer.scaling()
    multiplier, shift = held.multiplier.astype(np.int32), held.shift.astype(np.int8)
    return replace(layer, multiplier=multiplier, shift=shift + np.int8(1))


def no_relu(layer: IntegerLayer) -> IntegerLayer:
    """Where the type goes below the zero point, so that it shows."""
    output = replace(layer.output, zero_point=layer.output.zero_point + np.int8(8))
    return replace(layer, relu=False, output=output)


@pytest.mark.parametrize(
    ("bug", "change"),
    [
        ("stride", lambda layer: replace(layer, stride=3 - layer.stride)),
        ("padding", lambda layer: replace(layer, padding=0)),
        ("multiplier", off_multiplier),
        ("weights-clipped", clipped),
    ],
)
@pytest.mark.parametrize("name", ["stage0", "stage1.1", "stage2.1"])
def test_how_a_layer_computes_is_judged_beside_its_weights(
    name: str, bug: str, change: Callable[[IntegerLayer], IntegerLayer]
) -> None:
    report = judged_weights(with_layer(name, change))
    assert (report.verdict, report.first_bad_layer) == ("disagree", name)
    assert bug in {finding.bug for finding in report.diagnosis if finding.layer == name}


@pytest.mark.parametrize("name", NAMES[:-1])
def test_a_relu_is_needed_where_the_type_goes_below_the_zero_point(name: str) -> None:
    """At the zero point of the type's least number, clipping to the type is the ReLU."""
    assert (
        judged_weights(with_layer(name, lambda each: replace(each, relu=False))).verdict == "agree"
    )
    place = NAMES.index(name)
    layers = list(QUANTISED.layers)
    layers[place] = no_relu(layers[place])
    layers[place + 1] = replace(layers[place + 1], input=layers[place].output)
    report = judged_weights(replace(QUANTISED, layers=tuple(layers)))
    assert (report.verdict, report.first_bad_layer) == ("disagree", name)
    assert "relu-missing" in {finding.bug for finding in report.diagnosis}


def test_a_relu_behind_the_linear_layer_and_a_lost_pooling_are_found() -> None:
    report = judged_weights(with_layer("linear", lambda layer: replace(layer, relu=True)))
    assert (report.verdict, report.first_bad_layer) == ("disagree", "linear")
    layers = tuple(layer for layer in QUANTISED.layers if layer.kind != "pool")
    report = judged_weights(replace(QUANTISED, layers=layers))
    assert report.verdict == "disagree"
    assert "no pooling" in report.reason


def stated(by: Callable[[Any], Any]) -> Callable[[IntegerLayer], IntegerLayer]:
    """Multipliers that the network states itself, changed."""

    def change(layer: IntegerLayer) -> IntegerLayer:
        held = layer.scaling()
        multiplier, shift = by(held.multiplier).astype(np.int32), held.shift.astype(np.int8)
        return replace(layer, multiplier=multiplier, shift=shift)

    return change


def test_stated_multipliers_are_said_to_be_as_near_as_they_are() -> None:
    """The nearest, others within 16 bits with their distance, and wrong ones."""
    right = judged_weights(with_layer("stage1.1", stated(lambda m: m)))
    assert right.verdict == "agree"
    assert "multipliers are those of the scales" in right.reason
    assert len(right.notes) == 2  # on ranges and pooling
    assert "multipliers follow from the scales" in judged_weights(QUANTISED).reason
    near = judged_weights(
        with_layer("stage1.1", stated(lambda m: m - 1000 * (np.arange(m.size) < 3)))
    )
    assert near.verdict == "agree"
    assert "near those of the scales (see notes)" in near.reason
    assert "stage1.1: 3 of" in near.notes[-1]
    assert "off by up to 1000" in near.notes[-1]
    wrong = judged_weights(with_layer("stage1.1", stated(lambda m: m - m // 1000)))
    assert (wrong.verdict, wrong.diagnosis[0].bug) == ("disagree", "multiplier")


def biased(by: int, places: Any = 2) -> Callable[[IntegerLayer], IntegerLayer]:
    def change(layer: IntegerLayer) -> IntegerLayer:
        bias = np.array(layer.bias)
        bias[places] += by
        return replace(layer, bias=bias)

    return change


@pytest.mark.parametrize("name", NAMES)
def test_a_bias_one_off_is_a_note_with_its_size(name: str) -> None:
    """Nothing changes but numbers that lay within the step's own size of a half."""
    for by, places, count in ((1, 2, "1 of"), (-1, slice(None), "are 1 beside")):
        report = judged_weights(with_layer(name, biased(by, places)))
        assert report.verdict == "agree", report.reason
        layer = report.layers[NAMES.index(name)]
        assert count in layer.note
        assert "of a step of the output at most" in layer.note
        assert layer.ratio <= 1
        assert "or the one beside it" in report.reason
    worth = float(layer.note.split("integer, ")[1].split(" of a step")[0])
    held = next(each for each in QUANTISED.layers if each.name == name)
    single = np.max(held.scaling().single)
    assert worth == pytest.approx(single, rel=0.05)
    assert judged_weights(with_layer(name, biased(2))).verdict == "disagree"


def test_a_bias_one_off_counts_where_a_step_is_much() -> None:
    """The same layer with an output scale so coarse in accumulators that it would show."""

    def wide(layer: IntegerLayer) -> IntegerLayer:
        fine = np.asarray(float(layer.output.scale) * float(layer.scaling().single.max()) * 10)
        return replace(
            biased(1)(layer), output=replace(layer.output, scale=fine.astype(np.float32))
        )

    report = judged_weights(with_layer("linear", wide))
    assert (report.verdict, report.first_bad_layer) == ("disagree", "linear")
    assert "not the nearest" in report.reason


def test_of_equalised_networks_no_more_is_said_than_is_known() -> None:
    evened, _ = equalize(MODEL)
    report = judged_weights(quantize(evened, IMAGES))
    assert report.verdict == "agree"
    assert "times its channel's factor" in report.reason
    assert "weight and bias" not in report.reason
    assert any(each.kind == "scaling" for each in report.equivalences)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("moves_zero", [False, True])
def test_bytes_read_with_the_wrong_sign_are_named_where_padding_is_skipped(
    dtype: Any, moves_zero: bool
) -> None:
    """A loop that leaves out the taps outside reads no wrong bytes there."""
    network = chain(seed=5, dtype=dtype, post_relu=True)
    numbers = dump(network, images(network, seed=5))
    layer, other = network["stage1.0"], np.uint8 if dtype == np.int8 else np.int8
    zero = layer.input.zero_point.view(other) if moves_zero else layer.input.zero_point
    inside = numbers["stage0"].view(other).astype(int) - int(zero)
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(inside, ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 3), axis=(2, 3)
    )[:, :, ::2, ::2]
    sums = np.einsum("nchwij,ocij->nohw", windows, np.asarray(layer.weight, int))
    sums = sums + np.asarray(layer.bias)[:, None, None]
    whole = SCHEMES[network.rounding].requantize(sums, layer.scaling().across(4))
    y = layer.output.saturated(whole + int(layer.output.zero_point), relu=layer.relu)
    report = judged(
        network, {"input": numbers["input"], "stage0": numbers["stage0"], "stage1.0": y}
    )
    assert report.first_bad_layer == "stage1.0"
    assert [finding.bug for finding in report.diagnosis] == ["input-unsigned"]
