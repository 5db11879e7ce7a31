"""Ports of operators in every form they come in; what is said of them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.arrays import Array
from repvgg_ref.errors import ReportedError
from repvgg_ref.ops.batch_norm import batch_norm_eval_forward
from repvgg_ref.ops.conv2d import conv2d_backward, conv2d_forward
from repvgg_ref.oracle import VerificationError
from repvgg_ref.oracle.operators.statistics import regularity, taps_wrong, two_tests
from tests.cli.runner import invoke

PLAIN: dict[str, Any] = {"stride": 1, "padding": 1, "dilation": 1, "groups": 1}


def conv(x: Array, weight: Array, bias: Array | None, **settings: Any) -> Array:
    return conv2d_forward(x, weight, bias, **settings)[0]


def linear(x: Array, weight: Array, bias: Array) -> Array:
    return x @ weight.T + bias


def conv_backward(grad_y: Array, x: Array, weight: Array, **settings: Any) -> tuple[Array, ...]:
    bias = np.zeros(len(weight), np.float32)
    grads = conv2d_backward(grad_y, conv2d_forward(x, weight, bias, **settings)[1])
    return grads.grad_x, grads.grad_weight, grads.grad_bias  # type: ignore[return-value]


def test_a_right_convolution_agrees_and_is_exact_on_integers() -> None:
    report = rr.verify_op("conv2d", conv, **PLAIN)
    assert report.verdict == "agree", report.reason
    assert report.exact
    assert len(report.calls) == 5
    report.raise_if_bad()


def test_a_flipped_kernel_is_named() -> None:
    report = rr.verify_op(
        "conv2d", lambda x, w, b, **s: conv(x, w[:, :, ::-1, ::-1], b, **s), **PLAIN
    )
    assert (report.verdict, report.first_bad_layer) == ("disagree", "y")
    assert report.diagnosis[0].bug == "kernel-flipped"
    with pytest.raises(VerificationError, match="flipped"):
        report.raise_if_bad()


def test_one_unit_in_the_last_place_shows_on_integers() -> None:
    def off(x: Array, w: Array, b: Array, **s: Any) -> Array:
        y = conv(x, w, b, **s)
        y[0, 0, 0, 0] = np.nextafter(y[0, 0, 0, 0], np.float32(np.inf))
        return y

    report = rr.verify_op("conv2d", off, **PLAIN)
    assert report.verdict == "disagree"
    assert report.diagnosis[0].bug in ("one-place-wrong", "few-outputs-wrong")


def test_a_gradient_is_named_by_its_output() -> None:
    def rotated(*arrays: Array, **s: Any) -> tuple[Array, ...]:
        gx, gw, gb = conv_backward(*arrays, **s)
        return gx, gw[:, :, ::-1, ::-1], gb

    report = rr.verify_op("conv2d-backward", rotated, **PLAIN)
    assert report.first_bad_layer == "grad_weight"
    assert report.diagnosis[0].bug == "gradient-rotated"
    assert rr.verify_op("conv2d-backward", conv_backward, **PLAIN)


def test_arrays_of_ones_own_are_taken_and_integers_of_their_shapes_added() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(1, 3, 8, 9)), rng.normal(size=(5, 3, 3, 3))
    seen = []

    def port(x: Array, w: Array, b: Array | None, **s: Any) -> Array:
        seen.append(x.shape)
        return conv(x, w, b, **s)

    report = rr.verify_op("conv2d", port, x.astype(np.float32), w.astype(np.float32), padding=1)
    assert report.verdict == "agree"
    assert seen == [(1, 3, 8, 9)] * 2
    assert report.calls == ("the arrays given", "integers of those shapes")


def test_an_output_that_is_not_returned_is_not_judged_in_silence() -> None:
    def part(*arrays: Array, **s: Any) -> Array:
        return conv_backward(*arrays, **s)[0]

    report = rr.verify_op("conv2d-backward", part, **PLAIN)
    assert report.verdict == "cannot-judge"
    assert "grad_weight" in report.reason
    assert rr.verify_op("conv2d-backward", part, outputs=["grad_x"], **PLAIN).verdict == "agree"


def test_running_statistics_may_be_updated_in_place() -> None:
    def port(x: Array, g: Array, b: Array, m: Array, v: Array, **s: Any) -> Array:
        n = x[:, 0].size
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
        m += s["momentum"] * (mean - m)
        v += s["momentum"] * (var * np.float32(n / (n - 1)) - v)
        return batch_norm_eval_forward(x, g, b, mean, var, eps=s["eps"])[0]

    report = rr.verify_op("batch_norm", port, training=True)
    assert report.verdict == "agree", report.reason
    assert {layer.name for layer in report.layers} == {"y", "running_mean", "running_var"}


def test_a_dump_is_judged_by_what_it_holds(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(4, 6)).astype(np.float32)
    w, b = rng.normal(size=(3, 6)).astype(np.float32), np.ones(3, np.float32)
    right = {"x": x, "weight": w, "bias": b, "y": linear(x, w, b)}
    assert rr.verify_op("linear", right).verdict == "agree"
    np.savez(tmp_path / "dump.npz", **{**right, "y": right["y"] + b})  # type: ignore[arg-type]
    report = rr.verify_op("linear", tmp_path / "dump.npz")
    assert report.diagnosis[0].bug == "constant-added" or "bias" in report.diagnosis[0].says
    assert rr.verify_op("linear", {"x": x}).verdict == "cannot-judge"


def test_settings_of_a_dump_are_read() -> None:
    rng = np.random.default_rng(2)
    x, w = (rng.normal(size=s).astype(np.float32) for s in ((1, 2, 7, 6), (4, 2, 3, 3)))
    y = conv(x, w, None, stride=2, padding=(1, 0), dilation=1, groups=1)
    dump = {"x": x, "weight": w, "y": y, "stride": np.array(2), "padding": np.array([1, 0])}
    assert rr.verify_op("conv2d", dump).verdict == "agree"


def test_half_precision_is_told_by_the_type_and_held_to_its_own_bound() -> None:
    def half(x: Array, w: Array, b: Array) -> Array:
        return (x.astype(np.float16).astype(np.float32) @ w.astype(np.float16).T + b).astype(
            np.float16
        )

    report = rr.verify_op("linear", half)
    assert (report.verdict, report.precision) == ("agree", "fp16")
    assert rr.verify_op("linear", half, precision="fp32").verdict == "disagree"


def test_a_port_that_fails_cannot_be_judged() -> None:
    report = rr.verify_op("linear", lambda x, w, b: 1 / 0)
    assert report.verdict == "cannot-judge"
    assert "ZeroDivisionError" in report.reason


def test_nan_disagrees() -> None:
    report = rr.verify_op("linear", lambda x, w, b: linear(x, w, b) * np.nan)
    assert report.verdict == "disagree"
    assert report.diagnosis[0].bug == "not-finite"


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"operator": "conv3d"}, "conv2d"),
        ({"operator": "conv2d", "strides": 2}, "stride"),
        ({"operator": "conv2d", "precision": "fp8"}, "bf16"),
    ],
)
def test_what_is_not_there_is_refused_by_name(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(ReportedError, match=words):
        rr.verify_op(port=conv, **asked)


def test_missing_arrays_are_refused() -> None:
    with pytest.raises(ReportedError, match="weight"):
        rr.verify_op("linear", linear, np.zeros((2, 3), np.float32))


def test_the_command_says_it_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "k.py").write_text("def f(x, w, b):\n    return x @ w.T\n")
    port = f"{tmp_path / 'k.py'}:f"
    done = invoke(capsys, "verify-op", "linear", "--candidate", port, "--json")
    assert done.code == 1, done.err
    found = json.loads(done.out)
    assert found["verdict"] == "disagree"
    assert found["operator"] == "linear"
    assert {"calls", "exact", "tests", "detectable", "layers", "diagnosis"} <= set(found)
    assert found["diagnosis"][0]["bug"] == "head-bias"


def test_the_command_refuses_what_it_cannot_read(capsys: pytest.CaptureFixture[str]) -> None:
    done = invoke(capsys, "verify-op", "linear", "--candidate", "nowhere.npz")
    assert done.code == 2
    assert done.err.startswith("error: cannot judge: nowhere.npz")
    done = invoke(capsys, "verify-op", "linear", "--candidate", "m:f", "--shape", "x=2x")
    assert done.code == 2


def test_the_two_tests_pass_rounding_and_fail_what_is_larger_or_biased() -> None:
    rng = np.random.default_rng(3)
    unit = np.ones(2000)
    assert two_tests(rng.uniform(-1, 1, 2000), unit).is_passed
    assert not two_tests(1.3 * rng.uniform(-1, 1, 2000), unit).is_passed
    assert not two_tests(rng.uniform(-1, 1, 2000) * 0.5 + 0.1, unit).is_passed
    assert two_tests(np.full(10, 5.0), np.ones(10)).is_passed  # ten numbers say nothing


def test_regular_errors_are_told_and_rounding_is_not() -> None:
    rng = np.random.default_rng(4)
    y = rng.normal(size=(2, 5, 9, 8))
    noise = 1e-7 * rng.normal(size=y.shape)
    nothing = np.zeros_like(y)

    def called(error: Array) -> str | None:
        found = regularity(error, y, 1, nothing)
        return None if found is None else found.bug

    assert called(1e-6 * y + noise) == "outputs-scaled"
    assert called(1e-6 * y * np.arange(5)[:, None, None] + noise) == "channels-scaled"
    assert called(1e-6 * np.arange(5)[:, None, None] + noise) == "constant-added"
    assert called(np.where(np.arange(8) == 3, noise, 0)) == "one-place-wrong"
    assert called(noise) is None


def test_wrong_weights_are_told_from_noise() -> None:
    rng = np.random.default_rng(5)
    columns = rng.normal(size=(1, 12, 200))
    wrong = 1e-6 * rng.normal(size=(3, 12))
    noise = 1e-8 * rng.normal(size=(3, 200))
    found = taps_wrong(wrong @ columns[0] + noise, columns)
    assert found is not None
    assert found.estimate == pytest.approx(wrong.ravel()[np.argmax(np.abs(wrong))], rel=0.01)
    assert taps_wrong(noise, columns) is None


def test_noise_is_not_excused_by_transforms_where_integers_are_exact() -> None:
    """Winograd's F(4 x 4) could err so much, but not be right to the last bit on integers."""
    rng = np.random.default_rng(6)

    def noisy(x: Array, w: Array, b: Array, **s: Any) -> Array:
        y = conv(x, w, b, **s)
        if (x == np.rint(x)).all():
            return y
        return np.asarray(y + 2e-5 * rng.normal(size=y.shape), np.float32)

    report = rr.verify_op("conv2d", noisy, **PLAIN)
    assert (report.verdict, report.exact) == ("disagree", True)


def test_sums_that_start_a_little_above_0_fail_the_test_of_bias() -> None:
    def started(x: Array, w: Array, b: Array) -> Array:
        y = linear(x, w, b)
        whole = (x == np.rint(x)).all()
        return y if whole else np.asarray(y + 4e-6 * np.abs(y).mean(), np.float32)

    report = rr.verify_op("linear", started)
    assert report.verdict == "disagree"
    assert report.tests["y"]["bias"] > 1
