"""Integer ports: right ones agree and their scheme is named; every bug in every layer is named."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from repvgg_ref.errors import ReportedError
from repvgg_ref.files.integer_npz import write_network
from repvgg_ref.integer.network import IntegerNetwork
from repvgg_ref.integer.schemes import ANY, SCHEMES
from repvgg_ref.oracle.bugs.base import planted
from repvgg_ref.oracle.integers import question
from repvgg_ref.oracle.integers.bugs import BUGS, IntegerSite, bugs_of
from repvgg_ref.oracle.integers.golden import write_integer_golden
from repvgg_ref.oracle.integers.judge import judge_numbers
from repvgg_ref.oracle.integers.probe import rounding_probe, separated
from repvgg_ref.oracle.integers.program import IntegerProgram, Sheet, as_images, program_of
from repvgg_ref.oracle.integers.report import IntegerLayerReport, IntegerReport
from repvgg_ref.oracle.verification import verify
from tests.integer.networks import chain, images

_FEW = 2  # wrong numbers, which may have no name
NETWORK = chain(seed=3, dtype=np.uint8, rounding="single")
X = images(NETWORK, seed=3, size=24)


def judged(network: IntegerNetwork, numbers: Any) -> IntegerReport:
    return judge_numbers(network, numbers, reference="reference", candidate="candidate")


def dump(network: IntegerNetwork, x: Any, wrong: dict[str, Any] | None = None) -> dict[str, Any]:
    """What a port gives that computes some layers by other programs."""
    numbers = {"input": x}
    for layer in network.layers:
        if wrong and layer.name in wrong:
            y = Sheet(as_images(x)).numbers(wrong[layer.name])
            x = y[:, :, 0, 0] if layer.kind != "conv" else y
        else:
            x = layer.forward(x, network.rounding)
        numbers[layer.name] = x
    return numbers


def site_of(network: IntegerNetwork, name: str, x: Any) -> IntegerSite:
    """The layer `name` as it should be, and its input in a right port."""
    for step in network.walk(x):
        if step.layer.name == name:
            inside = as_images(step.x)
            program = program_of(step.layer, network.rounding, inside.shape[1:])
            return IntegerSite(program, inside, as_images(step.y))
    raise KeyError(name)


def mutants(network: IntegerNetwork, name: str, x: Any) -> list[Any]:
    """Planted bugs that show on `x`; a permutation is drawn, since nobody can read it off."""
    site = site_of(network, name, x)
    right = Sheet(site.x).numbers(site.program)
    found = [
        mutant
        for mutant in planted(
            [b for b in bugs_of(network[name]) if b.name != "channels-permuted"], site, name
        )
        if (y := Sheet(site.x).numbers(mutant.variant.program)).shape == right.shape
        and (y != right).any()
    ]
    assert len(found) > 5
    return found


@pytest.mark.parametrize("rounding", SCHEMES)
def test_a_right_port_agrees_and_its_scheme_is_named(rounding: str) -> None:
    report = judged(NETWORK.rounded(ANY), dump(NETWORK.rounded(rounding), X))
    assert report.verdict == "agree", report.reason
    assert rounding in report.schemes
    own = judged(NETWORK.rounded(rounding), dump(NETWORK.rounded(rounding), X))
    assert (own.verdict, own.to_json()["mismatches"]) == ("agree", 0)


def test_a_scheme_that_is_not_the_claimed_one_is_named() -> None:
    report = judged(NETWORK, dump(NETWORK.rounded("floor"), X))
    assert report.verdict == "disagree"
    (finding,) = report.diagnosis
    assert (finding.bug, finding.layer) == ("other-rounding", "all")
    assert "floor" in finding.says


@pytest.mark.few(3)
@pytest.mark.parametrize("name", [layer.name for layer in NETWORK.layers])
def test_every_bug_in_every_layer_is_caught_placed_and_named(name: str) -> None:
    named, tried = Counter[str](), Counter[str]()
    for mutant in mutants(NETWORK, name, X):
        report = judged(NETWORK, dump(NETWORK, X, {name: mutant.variant.program}))
        assert report.verdict == "disagree", mutant.says
        assert report.first_bad_layer == name, mutant.says
        assert [layer.name for layer in report.layers if not layer.ok] == [name], mutant.says
        tried[mutant.bug.name] += 1
        known = {finding.bug for finding in report.diagnosis}
        known |= {other for finding in report.diagnosis for other in finding.equivalents}
        named[mutant.bug.name] += mutant.bug.name in known
        (bad,) = (layer for layer in report.layers if not layer.ok)
        assert isinstance(bad, IntegerLayerReport)
        few = (bad.mismatches or 0) <= _FEW
        assert report.diagnosis[0].bug != "unknown" or few, mutant.says
    assert named == tried


def test_a_wrong_number_or_two_have_no_name_but_what_fits_them() -> None:
    """A bias or a weight of the classifier that is off, in one image: anything fits by chance."""
    numbers, count = dump(NETWORK, X[:1]), 0
    for channel in range(10):
        for by in (-2, 1, 7, 40):
            wrong = numbers["linear"].copy()
            wrong[0, channel] = np.clip(int(wrong[0, channel]) + by, 0, 255)
            report = judged(NETWORK, numbers | {"linear": wrong})
            if report.verdict == "disagree":
                (finding,) = report.diagnosis
                assert (finding.bug, finding.confidence) == ("unknown", 0), finding.says
                assert "1 of 10 numbers differ" in finding.says
                assert all(name in finding.says for name in finding.equivalents)
                count += bool(finding.equivalents)
    assert count > 2  # else nothing fitted, and the test would show nothing


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_scheme_is_named_from_several_numbers_only(count: int) -> None:
    """Pixels at so many of which another scheme sends one sum on a half elsewhere."""
    network, x = rounding_probe("double")
    pixels = x.reshape(*x.shape[:2], 1, -1)
    a, b = (network.rounded(name).forward(pixels)["rounding"] for name in ("double", "double-up"))
    apart = (a != b).sum(axis=(0, 1, 2))
    seen = pixels[..., [*np.flatnonzero(apart == 1)[:count], *np.flatnonzero(apart == 0)]]
    numbers = {"input": seen} | network.rounded("double-up").forward(seen)
    report = judged(network, numbers)
    assert (report.verdict, report.first_bad_layer) == ("disagree", "rounding")
    (finding,) = report.diagnosis
    assert "double-up" in (finding.says if count > 2 else finding.equivalents)
    if count > 2:
        assert (finding.bug, finding.layer) == ("other-rounding", "all")
    else:
        assert (finding.bug, finding.confidence) == ("unknown", 0)
        assert "consistent with" in finding.says


def test_one_channel_alone_is_said() -> None:
    site = site_of(NETWORK, "stage1.1", X)
    y = dump(NETWORK, X)
    scaling = site.program.finish.scaling
    shift = scaling.shift.copy()
    shift[5] += 1
    numerator = scaling.numerator.copy()
    numerator[5] /= 2
    wrong = replace(
        site.program,
        finish=replace(
            site.program.finish, scaling=replace(scaling, shift=shift, numerator=numerator)
        ),
    )
    report = judged(NETWORK, dump(NETWORK, X, {"stage1.1": wrong}))
    assert (report.diagnosis[0].bug, report.first_bad_layer) == ("shift-off", "stage1.1")
    assert "channel 5 alone" in report.diagnosis[0].says
    assert (y["stage1.0"] == dump(NETWORK, X, {"stage1.1": wrong})["stage1.0"]).all()


def test_channels_in_another_order_are_put_back() -> None:
    order = np.random.default_rng(0).permutation(16)
    numbers = dump(NETWORK, X)
    numbers["stage1.1"] = numbers["stage1.1"][:, order]
    y = numbers["stage1.1"]
    for name in ("stage2.0", "pool", "linear"):
        y = numbers[name] = NETWORK[name].forward(y, NETWORK.rounding)
    report = judged(NETWORK, numbers)
    assert [(f.bug, f.layer) for f in report.diagnosis] == [("channels-permuted", "stage1.1")]


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("one", "two"),
    list(
        combinations(
            [
                "padding-zero",
                "bias-dropped",
                "shift-off",
                "kernel-flipped",
                "output-wraps",
                "relu-missing",
                "one-scale-for-all",
                "weights-unsigned",
            ],
            2,
        )
    ),
)
def test_two_bugs_in_one_layer_are_both_named(one: str, two: str) -> None:
    site = site_of(NETWORK, "stage1.0", X)
    bugs = {bug.name: bug for bug in BUGS}
    first = next(planted([bugs[one]], site))
    second = next(planted([bugs[two]], replace(site, program=first.variant.program)))
    numbers = dump(NETWORK, X, {"stage1.0": second.variant.program})
    report = judged(NETWORK, numbers)
    assert report.first_bad_layer == "stage1.0"
    found = [finding.bug for finding in report.diagnosis]
    alone = {name: next(planted([bugs[name]], site)).variant.program for name in (one, two)}
    for name, program in alone.items():  # numbers that one bug gives by itself are that bug's
        if (dump(NETWORK, X, {"stage1.0": program})["stage1.0"] == numbers["stage1.0"]).all():
            assert found == [name]
            return
    both = " and ".join(sorted((one, two)))
    assert sorted(found) == sorted((one, two)) or both in report.diagnosis[0].equivalents, found


def test_an_unknown_bug_is_measured_and_called_unknown() -> None:
    numbers = dump(NETWORK, X)
    y = numbers["stage1.0"].astype(int)
    numbers["stage1.0"] = np.clip(y + (np.arange(y.shape[3]) % 3 == 0), 0, 255).astype(np.uint8)
    y = numbers["stage1.0"]
    for name in ("stage1.1", "stage2.0", "pool", "linear"):
        y = numbers[name] = NETWORK[name].forward(y, NETWORK.rounding)
    report = judged(NETWORK, numbers)
    assert [(f.bug, f.layer) for f in report.diagnosis] == [("unknown", "stage1.0")]
    assert "differ, by at most 1" in report.diagnosis[0].says


def test_a_port_that_forgets_the_zero_points_of_weights_is_told_so(tmp_path: Path) -> None:
    """Asymmetric weights: numbers less their zero points, computed as any others are."""
    layer = NETWORK["stage1.0"]
    assert layer.weight is not None
    zero = np.arange(len(layer.weight)) % 5 * 20 - 40
    numbers = layer.weight.astype(np.int16) - zero.reshape(-1, 1, 1, 1).astype(np.int16)
    uneven = replace(layer, weight=numbers, weight_zero_point=zero)
    assert [end.reshape(-1)[1] for end in uneven.weight_ends] == [-128 + 20, 127 + 20]
    network = replace(
        NETWORK,
        layers=tuple(uneven if each.name == layer.name else each for each in NETWORK.layers),
    )
    # What the zero points take from an accumulator, by hand: their product with the window's sum.
    x = dump(network, X)["stage0"]
    windows = replace(layer, weight=np.ones_like(layer.weight), bias=np.zeros_like(layer.bias))
    taken = zero[:, None, None] * windows.accumulate(x)
    np.testing.assert_array_equal(uneven.accumulate(x), layer.accumulate(x) - taken)
    wrong = site_of(network, layer.name, X).program
    wrong = replace(wrong, sums=replace(wrong.sums, weight=layer.weight.astype(np.int64)))
    assert judged(network, dump(network, X)).verdict == "agree"
    report = judged(network, dump(network, X, {layer.name: wrong}))
    assert [(f.bug, f.layer) for f in report.diagnosis] == [("weight-zero-point", layer.name)]
    with pytest.raises(ReportedError, match=r"stage1\.0 has asymmetric weights"):
        write_network(tmp_path / "network.npz", network)
    assert not list(tmp_path.iterdir())


def test_bugs_in_two_layers_are_both_placed() -> None:
    sites = {name: site_of(NETWORK, name, X) for name in ("stage0", "stage2.0")}
    bugs = {bug.name: bug for bug in BUGS}
    wrong: dict[str, IntegerProgram] = {
        "stage0": next(planted([bugs["bias-dropped"]], sites["stage0"])).variant.program,
        "stage2.0": next(planted([bugs["kernel-transposed"]], sites["stage2.0"])).variant.program,
    }
    report = judged(NETWORK, dump(NETWORK, X, wrong))
    assert [(f.layer, f.bug) for f in report.diagnosis] == [
        ("stage0", "bias-dropped"),
        ("stage2.0", "kernel-transposed"),
    ]


def test_dumps_that_cannot_be_judged_say_why() -> None:
    numbers = dump(NETWORK, X)
    assert judged(NETWORK, {"input": X}).verdict == "cannot-judge"
    assert (
        judged(NETWORK, {k: v for k, v in numbers.items() if k != "input"}).verdict
        == "cannot-judge"
    )
    wrong_type = numbers | {"stage0": numbers["stage0"].astype(np.int32) + 256}
    report = judged(NETWORK, wrong_type)
    assert (report.verdict, report.first_bad_layer) == ("disagree", "stage0")
    assert "type int32" in report.layers[0].note
    partial = {k: v for k, v in numbers.items() if k != "stage1.0"}
    report = judged(NETWORK, partial)
    assert report.verdict == "agree"
    assert any("stage1.0 is not in the dump" in note for note in report.notes)


def test_golden_vectors_notice_every_bug_and_tell_every_scheme_apart(tmp_path: Path) -> None:
    done = write_integer_golden(NETWORK, tmp_path / "bundle", name="small")
    assert done.score.planted > 150
    # 16 bits are enough where larger sums leave the range of the output anyway.
    assert {bug for _, bug, _ in done.score.survivors} <= {"accumulator-16-saturates"}
    assert len(done.score.survivors) <= 1
    assert done.score.probe_alike == ()
    report = verify(tmp_path / "bundle", tmp_path / "bundle" / "vectors.npz")
    assert report.verdict == "agree"
    with np.load(tmp_path / "bundle" / "vectors.npz") as plain:
        numbers = dict(plain)
        said = numbers["stage1.0"]
        raw = np.fromfile(tmp_path / "bundle" / "raw" / "stage1.0.bin", said.dtype)
        assert (raw.reshape(said.shape) == said).all()
    numbers["stage1.0"] = numbers["stage1.0"] ^ 1
    np.savez(tmp_path / "wrong.npz", **numbers)
    report = verify(tmp_path / "bundle", tmp_path / "wrong.npz")
    assert (report.verdict, report.first_bad_layer) == ("disagree", "stage1.0")
    write_integer_golden(NETWORK, tmp_path / "bundle", name="small")  # its own may be replaced
    with pytest.raises(ReportedError, match="another model"):
        write_integer_golden(NETWORK, tmp_path / "bundle", name="other")


def test_the_probe_is_a_network_on_which_all_schemes_differ() -> None:
    network, x = rounding_probe("single")
    assert separated(network, x) == [(name,) for name in SCHEMES]


def test_header_files_compile_and_hold_the_numbers(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    write_integer_golden(NETWORK, tmp_path / "bundle", name="small")
    held, pool = NETWORK["stage0"].scaling(), _pool_scaling(tmp_path / "bundle")
    (tmp_path / "main.c").write_text(
        '#include "bundle/network.h"\n#include <stdio.h>\nint main(void) {\n'
        'printf("%d %d %d", stage0_multiplier[1], stage0_shift[1], stage0_output_zero_point);\n'
        'printf(" %a %a", stage0_weight_scale[1], pool_input_scale[0]);\n'
        'printf(" %d %d %a", pool_multiplier[0], pool_shift[0], pool_scale[0]);\n'
        "return 0; }\n"
    )
    subprocess.run([compiler, "main.c", "-o", "main"], cwd=tmp_path, check=True)
    said = subprocess.run([str(tmp_path / "main")], check=True, capture_output=True, text=True)
    zero = int(NETWORK["stage0"].output.zero_point)
    whole, single = said.stdout.split()[:3], said.stdout.split()[3:5]
    assert whole == [str(held.multiplier[1]), str(held.shift[1]), str(zero)]
    scales = NETWORK["stage0"].weight_scale[1], NETWORK["pool"].input.scale  # type: ignore[index]
    assert [float.fromhex(each) for each in single] == [float(each) for each in scales]
    *fixed, real = said.stdout.split()[5:]
    assert fixed == [str(pool.multiplier), str(pool.shift)]
    assert float.fromhex(real) == float(pool.single)


def _pool_scaling(bundle: Path) -> Any:
    """Of the pool for the images of the bundle's vectors."""
    with np.load(bundle / "vectors.npz") as vectors:
        pixels = vectors["stage2.0"][0, 0].size
    return NETWORK["pool"].scaling(pixels)


def test_raw_numbers_are_enough_to_compute_every_layer(tmp_path: Path) -> None:
    """From the files alone, with float32's M: what a bench reads that has no npz."""
    network = NETWORK.rounded("float-even")
    write_integer_golden(network, tmp_path / "bundle", name="small")

    def raw(name: str, dtype: Any) -> Any:
        return np.fromfile(tmp_path / "bundle" / "raw" / f"{name}.bin", dtype)

    for layer in network.layers:
        read = {key: raw(f"{layer.name}.{key}", "<f4") for key in ("input_scale", "output_scale")}
        assert read["input_scale"] == layer.input.scale
        assert read["output_scale"] == layer.output.scale
        if layer.weight_scale is not None:
            wide = raw(f"{layer.name}.weight_scale", "<f4")
            made = read["input_scale"] * wide / read["output_scale"]
            assert (raw(f"{layer.name}.scale", "<f4") == made).all()
    pool, y = raw("pool", np.uint8), raw("stage2.0", np.uint8)
    before, after = network["pool"].input, network["pool"].output
    sums = (y.astype(np.int64) - int(before.zero_point)).reshape(pool.size, -1).sum(axis=1)
    whole = np.rint(sums.astype(np.float32) * raw("pool.scale", "<f4")) + int(after.zero_point)
    assert (np.clip(whole, 0, 255) == pool).all()
    t = 31 + int(raw("pool.shift", np.int8)[0])
    fixed = (sums * raw("pool.multiplier", "<i4")[0] + (1 << (t - 1))) >> t
    single = NETWORK["pool"].forward(y.reshape(-1, 24, *_square(y.size // pool.size)), "single")
    assert (np.clip(fixed + int(after.zero_point), 0, 255) == single.ravel()).all()


def _square(pixels: int) -> tuple[int, int]:
    side = int(pixels**0.5)
    return side, side


def test_a_graph_is_parsed_once_to_tell_whether_it_is_quantised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def load(path: Path) -> Any:
        read.append(path.read_text())
        return SimpleNamespace(graph=SimpleNamespace(node=[SimpleNamespace(op_type=read[-1])]))

    monkeypatch.setattr("repvgg_ref.oracle.candidates.onnx_load.load_onnx", load)
    path = tmp_path / "model.onnx"
    for operator, quantised in (("Conv", False), ("QLinearConv", True)):
        path.write_text(operator)
        assert question.is_about_integers(None, path) is quantised
        assert question.is_about_integers(path, None) is quantised
    assert read == ["Conv", "QLinearConv"]
