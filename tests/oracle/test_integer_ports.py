"""Integer ports of every kind, and right ones that an attacker saw accused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.integer.network import IntegerNetwork
from repvgg_ref.integer.schemes import SCHEMES
from repvgg_ref.oracle.integers.front import verify_integers
from repvgg_ref.oracle.integers.program import Sheet
from repvgg_ref.oracle.integers.report import IntegerReport
from tests.integer.networks import chain, images
from tests.oracle.test_integers import NETWORK, X, dump, judged, site_of

NAMES = [layer.name for layer in NETWORK.layers]
NUMBERS = dump(NETWORK, X)


def verdict_of(candidate: Any, **settings: Any) -> IntegerReport:
    return verify_integers(NETWORK, candidate, **settings)


# ----------------------------------------------------------- names, kinds


@pytest.mark.few(2)
@pytest.mark.parametrize(
    "spelt",
    [
        lambda name: name if name == "input" else f"{name}.output",
        lambda name: f"/{name[:6]}/{name}/relu_output_0" if name.startswith("stage1") else name,
        lambda name: {"linear": "logits", "pool": "gap", "input": "x"}.get(name, name),
        lambda name: "images" if name == "input" else name.upper(),
    ],
)
def test_layers_are_known_by_the_names_that_floats_are(spelt: Callable[[str], str]) -> None:
    right = {spelt(name): y for name, y in NUMBERS.items()}
    assert verdict_of(right).verdict == "agree"
    wrong = right | {spelt("stage1.1"): 255 - NUMBERS["stage1.1"]}
    report = verdict_of(wrong)
    assert (report.verdict, report.first_bad_layer) == ("disagree", "stage1.1")


def test_a_name_that_means_no_layer_is_refused_and_so_is_one_layer_twice() -> None:
    report = verdict_of(NUMBERS | {"stage7.0": NUMBERS["pool"]})
    assert report.verdict == "cannot-judge"
    assert "stage7.0" in report.reason
    report = verdict_of(NUMBERS | {"stage1.1.output": NUMBERS["stage1.1"]})
    assert report.verdict == "cannot-judge"
    assert "two arrays" in report.reason


def test_a_function_of_the_inputs_numbers_is_called() -> None:
    assert verdict_of(lambda x: dump(NETWORK, x), inputs=X).verdict == "agree"
    assert verdict_of(lambda x: dump(NETWORK, x)).verdict == "agree"
    broken = verdict_of(lambda x: dump(NETWORK, x) | {"stage0": x[:, :1]})
    assert (broken.verdict, broken.first_bad_layer) == ("disagree", "stage0")
    last = verdict_of(lambda x: NETWORK.forward(x)["linear"], inputs=X)
    assert last.verdict == "agree"  # every layer was on the way to these logits


@pytest.mark.parametrize("given", [1 / np.arange(1, 3), {"stage0": "text"}, 7])
def test_a_function_that_gives_anything_else_is_a_result_not_a_traceback(given: Any) -> None:
    assert verdict_of(lambda x: given).verdict != "agree"
    assert verdict_of(lambda x: x.no_such).verdict == "cannot-judge"
    assert "no_such" in verdict_of(lambda x: x.no_such).reason


def test_a_program_reads_integers_and_writes_a_dump(tmp_path: Path) -> None:
    (tmp_path / "port.py").write_text(
        "import sys, numpy as np\n"
        "from tests.oracle.test_integers import NETWORK, dump\n"
        "x = np.load(sys.argv[1])\n"
        "assert x.dtype == np.uint8\n"
        "np.savez(sys.argv[2], **dump(NETWORK, x))\n"
    )
    command = f"exec:{sys.executable} {tmp_path / 'port.py'} {{input}} {{output}}"
    assert verdict_of(command, inputs=X).verdict == "agree"


def test_a_folder_of_npy_files_is_a_dump(tmp_path: Path) -> None:
    for name, y in NUMBERS.items():
        np.save(tmp_path / f"{name}.npy", y)
    assert verdict_of(tmp_path).verdict == "agree"
    np.save(tmp_path / "pool.npy", NUMBERS["pool"] ^ 1)
    assert verdict_of(tmp_path).first_bad_layer == "pool"


@pytest.mark.parametrize("text", ["port.py:run", "package.module:run", "nowhere.npz", "exec:x"])
def test_what_cannot_be_asked_says_what_can(text: str) -> None:
    report = verdict_of(text)
    assert report.verdict == "cannot-judge"
    assert "\n" not in report.reason


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (lambda y, side: y.tolist(), "whole numbers of type int64"),
        (lambda y, side: y.astype(np.int32), "whole numbers of type int32"),
        (lambda y, side: y.astype(np.float16), "whole numbers of type float16"),
        (lambda y, side: side.real(y), "real numbers of type float32, dequantised"),
        (lambda y, side: side.real(y).astype(np.float64), "of type float64, dequantised"),
    ],
    ids=["lists", "int32", "float16", "dequantised", "dequantised, float64"],
)
def test_numbers_in_another_type_are_the_numbers_that_they_are(how: Any, says: str) -> None:
    sides = {layer.name: layer.output for layer in NETWORK.layers}
    sides["input"] = NETWORK.layers[0].input
    report = verdict_of({name: how(y, sides[name]) for name, y in NUMBERS.items()})
    assert report.verdict == "agree", report.reason
    assert any(says in note and "uint8 that they are" in note for note in report.notes)
    wrong = NUMBERS | {"stage1.1": 255 - NUMBERS["stage1.1"]}
    report = verdict_of({name: how(y, sides[name]) for name, y in wrong.items()})
    assert (report.verdict, report.first_bad_layer) == ("disagree", "stage1.1")


@pytest.mark.parametrize("by", [0.25, -0.25, 300, np.nan])
def test_what_the_type_cannot_hold_is_no_number_of_it(by: float) -> None:
    wrong = NUMBERS["stage1.1"] + np.where(
        np.arange(NUMBERS["stage1.1"][0].size) == 7, by, 0.0
    ).reshape(NUMBERS["stage1.1"][0].shape)
    report = verdict_of(NUMBERS | {"stage1.1": wrong})
    assert (report.verdict, report.first_bad_layer) == ("disagree", "stage1.1")


# ------------------------------------------------- single channels, wrapping


@pytest.mark.parametrize("single", [False, True])
def test_channels_that_stand_last_are_told_by_their_number(single: bool) -> None:
    """In all layers; of those alone that are so, if layouts are mixed."""
    last = {
        name: np.ascontiguousarray(np.moveaxis(y, 1, 3)) if y.ndim == 4 else y
        for name, y in NUMBERS.items()
    }
    numbers = NUMBERS | {"stage1.0": last["stage1.0"]} if single else last
    report = judged(NETWORK, numbers)
    assert report.verdict == "agree", report.reason
    assert any("NHWC transposed to NCHW" in note for note in report.notes)
    assert single == ("the layers come in both layouts" in report.notes)
    wrong = last["stage1.0"] + (np.arange(16) == 3).astype(np.uint8)
    assert judged(NETWORK, numbers | {"stage1.0": wrong}).first_bad_layer == "stage1.0"


def changed(network: IntegerNetwork, name: str, y: Array) -> IntegerReport:
    """The judgement of a port whose layer `name` gives `y`, and all others what is right."""
    numbers, seen = {"input": X}, X
    for layer in network.layers:
        seen = y if layer.name == name else layer.forward(seen, network.rounding)
        numbers[layer.name] = seen
    return judged(network, numbers)


@pytest.mark.parametrize("value", [0, 7, 128, 255])
@pytest.mark.parametrize("channels", [[0], [-1], [1, 3]])
def test_channels_that_hold_one_number_are_called_stuck(value: int, channels: list[int]) -> None:
    y = NUMBERS["stage1.1"].copy()
    y[:, channels] = value
    report = changed(NETWORK, "stage1.1", y)
    assert [finding.bug for finding in report.diagnosis] == ["channel-stuck"]
    assert str(value) in report.diagnosis[0].says


def test_a_stuck_channel_lists_the_bugs_that_leave_it_so() -> None:
    """Without the output's zero point, the channel's numbers all end at 0."""
    site = site_of(NETWORK, "stage2.0", X)
    finish = replace(site.program.finish, added=0)
    wrong = Sheet(site.x).numbers(replace(site.program, finish=finish))
    y = NUMBERS["stage2.0"].copy()
    y[:, 6] = wrong[:, 6]
    assert np.unique(y[:, 6]).size == 1
    (finding,) = changed(NETWORK, "stage2.0", y).diagnosis
    assert finding.bug == "channel-stuck"
    assert "output-zero-point-ignored" in finding.equivalents
    assert finding.confidence == 1 / (1 + len(finding.equivalents))


@pytest.mark.parametrize("name", ["stage0", "stage1.1", "stage2.0", "linear"])
@pytest.mark.parametrize("pair", [(1, 2), (2, 1), (0, 4)])
def test_scales_taken_from_any_channel_are_named(name: str, pair: tuple[int, int]) -> None:
    site = site_of(NETWORK, name, X)
    scaling = site.program.finish.scaling
    places = np.arange(len(scaling.numerator))
    here, there = pair
    places[here] = there
    if pair == (1, 2):
        places[there] = here  # exchanged
    moved = replace(
        scaling,
        **{part: getattr(scaling, part)[places] for part in ("numerator", "multiplier", "shift")},
    )
    program = replace(site.program, finish=replace(site.program.finish, scaling=moved))
    numbers = dump(NETWORK, X, {name: program})
    if np.array_equal(numbers[name], NUMBERS[name]):
        pytest.skip("both scales give the same numbers here")
    report = judged(NETWORK, numbers)
    assert (report.verdict, report.first_bad_layer) == ("disagree", name)
    (finding,) = report.diagnosis
    assert finding.bug == "neighbours-scale"
    assert f"{here} has {there}'s" in finding.says or "in channel" in finding.says


def test_a_scale_that_any_of_two_bugs_gives_has_both_names() -> None:
    """Another's scale and a shift off by two, where the other's is four times as large."""
    layer = NETWORK["linear"]
    scale = np.array(layer.weight_scale)
    scale[4] = 4 * scale[0]
    held = replace(layer, weight_scale=scale)
    network = replace(NETWORK, layers=(*NETWORK.layers[:-1], held))
    numbers = {"input": X} | network.forward(X)
    wrong = scale.copy()
    wrong[0] = scale[4]
    numbers["linear"] = replace(held, weight_scale=wrong).forward(numbers["pool"], network.rounding)
    (finding,) = judged(network, {name: array[:3] for name, array in numbers.items()}).diagnosis
    assert {"neighbours-scale", "shift-off"} <= {finding.bug, *finding.equivalents}
    assert finding.confidence <= 0.5


def test_no_rounding_of_a_single_channel_is_made_up() -> None:
    """A weight off by one moves few numbers, by one: as another rounding of the channel might."""
    layer = NETWORK["stage1.1"]
    x = NUMBERS["stage1.0"]
    for tap in range(0, layer.weight[4].size, 5):  # type: ignore[index]
        weight = layer.weight.copy()  # type: ignore[union-attr]
        weight[4].reshape(-1)[tap] += 1 if weight[4].reshape(-1)[tap] < 127 else -1
        y = replace(layer, weight=weight).forward(x, NETWORK.rounding)
        if np.array_equal(y, NUMBERS["stage1.1"]):
            continue
        report = changed(NETWORK, "stage1.1", y)
        assert report.verdict == "disagree"
        assert "other-rounding" not in {finding.bug for finding in report.diagnosis}


@pytest.mark.parametrize("name", NAMES[:4])
@pytest.mark.parametrize("first", ["ReLU", "cast"])
def test_outputs_that_wrap_are_named_at_any_zero_point(name: str, first: str) -> None:
    """At -128 too, where clipping to the type is the ReLU."""
    network = chain(seed=7, dtype=np.int8)
    x = images(network, seed=7, size=24)
    for layer, step in zip(network.layers, network.walk(x), strict=True):
        if layer.name == name:
            scale = layer.scaling().across(4)
            whole = SCHEMES[network.rounding].requantize(step.accumulators, scale)
            whole, zero = whole + int(layer.output.zero_point), int(layer.output.zero_point)
            y = whole.astype(np.int8)
            if layer.relu and first == "ReLU":
                y = np.maximum(whole, zero).astype(np.int8)
            elif layer.relu:
                y = np.maximum(y, np.int8(zero))
            right = step.y
    if np.array_equal(y, right):
        pytest.skip("nothing is out of range here")
    numbers, seen = {"input": x}, x
    for layer in network.layers:
        seen = y if layer.name == name else layer.forward(seen, network.rounding)
        numbers[layer.name] = seen
    report = judged(network, numbers)
    assert (report.verdict, report.first_bad_layer) == ("disagree", name)
    found = report.diagnosis[0]
    assert "output-wraps" in {found.bug, *found.equivalents}
