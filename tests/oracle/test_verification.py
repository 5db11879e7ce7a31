"""The tester is tested: break the oracle on purpose, in many ways, and its own checks must fail."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from repvgg_ref.models.architectures import plain_architecture
from repvgg_ref.oracle import comparing, verification
from repvgg_ref.oracle.bounds import comparison
from repvgg_ref.oracle.bounds.block import Bound
from repvgg_ref.oracle.bounds.precision import PRECISIONS
from repvgg_ref.oracle.candidates import Outputs
from repvgg_ref.oracle.diagnosis import explain
from repvgg_ref.oracle.estimates import port as estimated
from repvgg_ref.oracle.programs.distinguishing import distinguishing_model
from repvgg_ref.oracle.programs.inputs import distinguishing_inputs
from repvgg_ref.oracle.report import LayerReport, Report, VerificationError
from tests.models.small import SMALL, distinct_model
from tests.studies.oracle.matrix_study import Port

MODEL = distinguishing_model(SMALL["plain"])
PORT = Port(MODEL, distinguishing_inputs(MODEL.arch, height=28, width=24))
LAYERS = PORT.names


def _judge(**changed: Any) -> Report:
    given = {name: changed.get(name, array) for name, array in PORT.outputs.items()}
    return verification.judge(
        MODEL, Outputs({n: a for n, a in given.items() if a is not None}), PORT.x
    )


def _wrong(layer: str, bug: str) -> Any:
    return next(wrong for name, _, wrong in PORT.plants(layer) if name == bug)


# What the oracle must do. Each is an ordinary assertion; together they are the oracle's own test.


def right_port_agrees() -> None:
    assert _judge().verdict == "agree"


def nan_disagrees() -> None:
    spoilt = PORT.outputs["stage1.1"].copy()
    spoilt[0, 0, 0, 0] = np.nan
    assert _judge(**{"stage1.1": spoilt}).verdict == "disagree"


def large_bug_disagrees_in_its_layer() -> None:
    report = _judge(**{"stage1.1": _wrong("stage1.1", "identity-missing")})
    assert report.verdict == "disagree"
    assert report.first_bad_layer == "stage1.1"
    assert report.diagnosis[0].bug == "identity-missing"


def bug_in_the_first_layer_is_found_there() -> None:
    assert _judge(stage0=_wrong("stage0", "relu-missing")).first_bad_layer == "stage0"


def bug_within_the_bound_disagrees() -> None:
    """eps outside the root where it changes less than the certified bound allows."""
    wide = plain_architecture(depths=[1], channels=[48, 48], num_classes=3)
    model = distinct_model(wide, dtype=np.float32)
    port = Port(model, distinguishing_inputs(wide, height=28, width=24))
    wrong = next(w for bug, _, w in port.plants("stage1.0") if bug == "eps-outside-root")
    outputs = Outputs(port.outputs | {"stage1.0": wrong})
    report = verification.judge(model, outputs, port.x)
    assert report.verdict == "disagree"
    assert report.layers[1].ratio < 1
    assert report.diagnosis[0].bug == "eps-outside-root"


def bug_in_the_head_disagrees() -> None:
    assert _judge(linear=_wrong("linear", "head-bias")).verdict == "disagree"


def one_element_disagrees() -> None:
    spoilt = PORT.outputs["stage2.0"].copy()
    spoilt[np.unravel_index(np.argmax(spoilt), spoilt.shape)] *= 1.01
    assert _judge(**{"stage2.0": spoilt}).verdict == "disagree"


def output_on_where_relu_is_off_disagrees() -> None:
    """Estimates look at active outputs only: the certified bound sees the others."""
    spoilt = PORT.outputs["stage2.0"].copy()
    last_off = np.argwhere(spoilt == 0)[-1]
    spoilt[tuple(last_off)] = 1e-4 * spoilt.max()
    assert _judge(**{"stage2.0": spoilt}).first_bad_layer == "stage2.0"


def wrong_shape_disagrees() -> None:
    assert _judge(**{"stage2.0": PORT.outputs["stage2.0"][:, :1]}).verdict == "disagree"


def missing_layer_cannot_be_judged() -> None:
    assert _judge(**{"stage1.0": None}).verdict == "cannot-judge"


def empty_dump_is_no_pass() -> None:
    assert verification.judge(MODEL, Outputs({}), PORT.x).verdict == "cannot-judge"


def unknown_names_are_no_pass() -> None:
    outputs = Outputs({"another": PORT.outputs["stage0"]})
    assert verification.judge(MODEL, outputs, PORT.x).verdict == "cannot-judge"


def half_precision_is_not_taken_for_single() -> None:
    rounded = PORT.outputs["stage1.0"].astype(np.float16).astype(np.float32)
    assert _judge(**{"stage1.0": rounded}).verdict == "disagree"


def report_raises_for_a_bad_port() -> None:
    with pytest.raises(VerificationError):
        _judge(linear=_wrong("linear", "head-bias")).raise_if_bad()


CHECKS: tuple[Callable[[], None], ...] = (
    right_port_agrees,
    nan_disagrees,
    report_raises_for_a_bad_port,
    large_bug_disagrees_in_its_layer,
    bug_in_the_first_layer_is_found_there,
    bug_in_the_head_disagrees,
    one_element_disagrees,
    output_on_where_relu_is_off_disagrees,
    wrong_shape_disagrees,
    missing_layer_cannot_be_judged,
    empty_dump_is_no_pass,
    unknown_names_are_no_pass,
    half_precision_is_not_taken_for_single,
    bug_within_the_bound_disagrees,  # the slowest last: most broken oracles fail before it
)


@pytest.mark.few(3)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_oracle_passes_its_own_checks(check: Callable[[], None]) -> None:
    check()


# Ways to break it: what to patch, and by what.

Sabotage = tuple[Any, str, Callable[[Any], Any]]


def _judging(change: Callable[[Any, Any, Any, LayerReport], LayerReport]) -> Callable[[Any], Any]:
    def patched(original: Any) -> Any:
        def judged(name: str, y: Any, y_hat: Any, bound: Any, *rest: Any) -> LayerReport:
            return change(y, y_hat, bound, original(name, y, y_hat, bound, *rest))

        return judged

    return patched


def _wider(factor: float) -> Callable[[Any], Any]:
    def patched(original: Any) -> Any:
        def bound(*args: Any, **kwargs: Any) -> Bound:
            return Bound(*(part * factor for part in original(*args, **kwargs)))

        return bound

    return patched


def _compare_without(skipped: str) -> Callable[[Any], Any]:
    def patched(original: Any) -> Any:
        def compare(*args: Any) -> Any:
            comparisons, unjudged = original(*args)
            comparisons.pop(skipped, None)
            return comparisons, unjudged

        return compare

    return patched


def _first(original: Any) -> Any:
    """Compares the first output of every channel only."""

    def judged(name: str, y: Any, y_hat: Any, bound: Any, *rest: Any) -> LayerReport:
        if y.ndim == 4:
            y, y_hat = y[:, :, :1, :1], y_hat[:, :, :1, :1]
            bound = Bound(*(part[:, :, :1, :1] for part in bound))
        report: LayerReport = original(name, y, y_hat, bound, *rest)
        return report

    return judged


SABOTAGE: dict[str, Sabotage] = {
    "tolerance inverted": (
        comparison,
        "_judged",
        _judging(lambda y, y_hat, b, r: replace(r, ok=bool((abs(y_hat - y) >= b.certified).all()))),
    ),
    "NaN passes": (
        comparison,
        "_judged",
        _judging(
            lambda y, y_hat, b, r: replace(r, ok=not bool((abs(y_hat - y) > b.certified).any()))
        ),
    ),
    "everything is within its bound": (
        comparison,
        "_judged",
        _judging(lambda y, y_hat, b, r: replace(r, ok=True)),
    ),
    "nothing is within its bound": (
        comparison,
        "_judged",
        _judging(lambda y, y_hat, b, r: replace(r, ok=False)),
    ),
    "the mean error is judged instead of the largest": (
        comparison,
        "_judged",
        _judging(
            lambda y, y_hat, b, r: replace(
                r, ok=bool(np.nanmean(abs(y_hat - y)) <= np.mean(b.certified))
            )
        ),
    ),
    "one pixel is compared": (comparison, "_judged", _first),
    "bounds a million times too wide": (comparison, "layer_bound", _wider(1e6)),
    "bounds a thousand times too narrow": (comparison, "layer_bound", _wider(1e-3)),
    "first layer skipped": (comparing, "compare_all", _compare_without("stage0")),
    "head skipped": (comparing, "compare_all", _compare_without("linear")),
    "missing layers forgotten": (
        comparing,
        "compare_all",
        lambda original: lambda *args: (original(*args)[0], {}),
    ),
    "another shape is cut to fit": (
        comparison,
        "_incomparable",
        lambda original: (
            lambda name, y, y_hat, inherited: comparison.Comparison(
                LayerReport(name, 0.0, 1.0, 0.0, ok=True), y, y, Bound(abs(y) + 1, abs(y) + 1)
            )
        ),
    ),
    "small errors not looked for": (estimated, "_alarms", lambda _: lambda *args: {}),
    "everything is held to bfloat16": (
        verification,
        "_precision",
        lambda _: lambda *args: PRECISIONS["bf16"],
    ),
    "the last bad layer is reported": (
        explain,
        "Report",
        lambda original: (
            lambda *args, first_bad_layer=None, **kw: original(
                *args, first_bad_layer=first_bad_layer and LAYERS[-1], **kw
            )
        ),
    ),
    "an empty dump agrees": (
        verification,
        "judge",
        lambda original: (
            lambda model, outputs, x: (
                original(model, outputs, x)
                if outputs.layers
                else Report("agree", "nothing differs", model.name, "", "fp32")
            )
        ),
    ),
    "the report does not raise": (Report, "raise_if_bad", lambda _: lambda self: None),
}


@contextmanager
def _broken(sabotage: Sabotage) -> Iterator[None]:
    where, name, change = sabotage
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where, name, change(getattr(where, name)))
        yield


@pytest.mark.few(1)
@pytest.mark.parametrize("name", SABOTAGE)
def test_a_broken_oracle_fails_its_checks(name: str) -> None:
    failed = []
    with _broken(SABOTAGE[name]):
        for check in CHECKS:
            try:
                check()
            except (AssertionError, pytest.fail.Exception):
                failed.append(check.__name__)
            if failed:
                break
    assert failed, f"nobody noticed: {name}"


def test_blas_has_one_thread_while_layers_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenBLAS's threads spin beside small products, here as anywhere."""
    seen: list[int] = []

    def watched(*given: Any) -> Any:
        seen.extend(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
        return comparing.aligned(*given)

    monkeypatch.setattr(verification, "aligned", watched)
    with threadpool_limits(limits=2, user_api="blas"):
        assert _judge().verdict == "agree"
    assert seen
    assert max(seen) == 1


def test_verify_loads_no_judge_that_is_not_asked() -> None:
    """Rooms that a weight file, or a chain's outputs, need nothing of: half a second of imports."""
    rooms = ("training", "integers.judge", "golden.read", "graphs", "families.family", "render")
    program = f"""
import sys, repvgg_ref.oracle.verification, repvgg_ref.oracle.families.kind
print([m for m in sys.modules if m.startswith(tuple('repvgg_ref.oracle.' + r for r in {rooms}))])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
