"""Errors as small as roundings: what is no rounding gets no such name, and what is one, its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.models.architectures import plain_architecture
from repvgg_ref.oracle.estimates.randomness import bits_kept
from repvgg_ref.oracle.programs.distinguishing import distinguishing_model
from repvgg_ref.oracle.programs.inputs import distinguishing_inputs
from repvgg_ref.oracle.programs.layers import Programs
from repvgg_ref.oracle.programs.program import layer_output
from repvgg_ref.oracle.report import Report
from repvgg_ref.oracle.verification import verify

ARCH = plain_architecture(depths=[1, 2], channels=[16, 24, 48], num_classes=10)
X = distinguishing_inputs(ARCH, batch=2, height=40, width=32, seed=1)
MODEL = distinguishing_model(ARCH, 1, x=X)
SIZE = 4e-6  # of the outputs: some tens of roundings, far within the bounds
UNIT = 2.0**-24

Spoil = Callable[[Any, Array], Array]  # the layer's program and its input: what it gives


def port(layer: str, spoil: Spoil) -> dict[str, Array]:
    """Every layer once rounded, but for one."""
    found, y = {}, X.astype(np.float32)
    for name, program in Programs(MODEL).items():
        wide = y.astype(np.float64)
        right = spoil(program, wide) if name == layer else layer_output(program, wide)
        y = found[name] = right.astype(np.float32)
    return found


def judged(layer: str, spoil: Spoil, **settings: Any) -> Report:
    return verify(MODEL, port(layer, spoil), inputs=X, **settings)


def factors(draw: Callable[[tuple[int, ...]], Array]) -> Spoil:
    """Outputs off by `SIZE`, times what is drawn for their shape."""

    def spoil(program: Any, x: Array) -> Array:
        y = layer_output(program, x)
        return np.asarray(y * (1 + SIZE * draw(y.shape)))

    return spoil


def checkers(shape: tuple[int, ...]) -> Array:
    rows, columns = np.indices(shape[2:])
    return np.asarray((-1.0) ** (rows + columns))


def signs(*axes: int) -> Callable[[tuple[int, ...]], Array]:
    """A checkerboard whose sign is drawn anew along some axes."""

    def drawn(shape: tuple[int, ...]) -> Array:
        size = [length if axis in axes else 1 for axis, length in enumerate(shape)]
        return np.asarray(checkers(shape) * np.random.default_rng(3).choice([-1.0, 1.0], size))

    return drawn


def mask(*axes: int) -> Callable[[tuple[int, ...]], Array]:
    """Drawn once, and the same along some axes."""

    def drawn(shape: tuple[int, ...]) -> Array:
        size = [1 if axis in axes else length for axis, length in enumerate(shape)]
        return np.random.default_rng(4).normal(size=size)

    return drawn


PATTERNS: Mapping[str, Callable[[tuple[int, ...]], Array]] = {
    "a checkerboard": checkers,
    "a checkerboard with another sign in each channel": signs(1),
    "with another sign in each channel of each image": signs(0, 1),
    "a mask": mask(0, 1),
    "a mask of each channel": mask(0),
    "a mask of each image": mask(1),
}


@pytest.mark.few(3)
@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_is_no_rounding_at_random(name: str) -> None:
    report = judged("stage1.0", factors(PATTERNS[name]))
    assert (report.verdict, report.first_bad_layer) == ("disagree", "stage1.0")
    (finding,) = report.diagnosis
    assert finding.bug == "unknown"
    assert "its errors come back" in finding.says or "alike in all channels" in finding.says


def test_errors_at_random_are_called_so_and_may_be_an_arithmetic() -> None:
    report = judged("stage1.0", factors(mask()))
    assert report.verdict == "cannot-judge"
    assert [finding.bug for finding in report.diagnosis] == ["outputs-rounded"]


def rounded(values: Array, bits: int, cut: Callable[[Array], Array] = np.rint) -> Array:
    mantissa, exponent = np.frexp(values)
    return np.asarray(np.ldexp(cut(mantissa * 2.0**bits), exponent - bits))


def test_outputs_that_all_have_few_bits_are_rounded_beyond_doubt() -> None:
    report = judged("stage1.0", lambda program, x: rounded(layer_output(program, x), 17))
    assert report.verdict == "disagree"
    assert [finding.bug for finding in report.diagnosis] == ["outputs-rounded"]
    assert "17 bits" in report.diagnosis[0].says


@pytest.mark.parametrize("bits", [8, 11, 20])
def test_bits_are_counted(bits: int) -> None:
    values = rounded(np.random.default_rng(0).normal(size=99), bits)
    assert bits_kept(values, UNIT) == bits
    assert bits_kept(values, 2.0**-bits) == 0  # what the format has is no rounding
    assert bits_kept(values + 1e-6, UNIT) == 0


def tf32(bits: int, cut: Callable[[Array], Array], parts: int = 1) -> Spoil:
    """A classifier whose factors are cut to few bits, or split into two such parts each."""

    def classified(program: Any, x: Array) -> Array:
        features, weight = x.mean(axis=(2, 3)), program.weight.astype(np.float32)
        heads = [rounded(np.asarray(v, np.float64), bits, cut) for v in (features, weight)]
        tails = [rounded(v - h, bits, cut) for v, h in zip((features, weight), heads, strict=True)]
        product = heads[0] @ heads[1].T
        if parts == 2:  # 3xTF32
            product = product + heads[0] @ tails[1].T + tails[0] @ heads[1].T
        return np.asarray(product + program.bias)

    return classified


@pytest.mark.few(2)
@pytest.mark.parametrize("cut", [np.rint, np.trunc])
@pytest.mark.parametrize("bits", [10, 11])
def test_a_classifier_in_tf32_is_named_however_its_bits_are_counted(
    bits: int, cut: Callable[[Array], Array]
) -> None:
    report = judged("linear", tf32(bits, cut))
    assert (report.verdict, report.first_bad_layer) == ("disagree", "linear")
    assert [finding.bug for finding in report.diagnosis] == ["tf32-arithmetic"]
    assert judged("linear", tf32(bits, cut, parts=2)).verdict == "agree"


def test_logits_kept_in_float16_are_no_rounded_weights() -> None:
    def narrow(program: Any, x: Array) -> Array:
        return layer_output(program, x).astype(np.float16)

    report = judged("linear", narrow)
    assert (report.verdict, report.first_bad_layer) == ("disagree", "linear")
    assert [finding.bug for finding in report.diagnosis] == ["output-rounded"]
