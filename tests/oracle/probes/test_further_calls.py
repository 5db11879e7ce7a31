"""Ports whose answer depends on the call are caught and named; right ports are not accused."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repvgg_ref.errors import ReportedError
from repvgg_ref.models.network import fuse
from repvgg_ref.oracle.candidates import Candidate, Outputs
from repvgg_ref.oracle.probes.first_call import first_call
from repvgg_ref.oracle.probes.probing import probed
from repvgg_ref.oracle.programs.distinguishing import distinguishing_model
from repvgg_ref.oracle.programs.inputs import distinguishing_inputs
from repvgg_ref.oracle.programs.layers import Programs
from repvgg_ref.oracle.report import Report
from repvgg_ref.oracle.verification import judge, verify
from tests.models.small import SMALL
from tests.oracle.probes.call_dependent_ports import (
    PORTS,
    Port,
    caches_by_shape,
    keeps_the_first_result,
    spoilt,
    wrong_if,
)

MODEL = distinguishing_model(SMALL["plain"])
DEPLOY = fuse(MODEL)
ALL_CALLS = 12


def net(x: Any) -> dict[str, Any]:
    """The right network, every layer."""
    outputs: dict[str, Any] = DEPLOY.forward(np.asarray(x, np.float32), layers=True)
    return outputs


def calls(report: Report, ok: bool | None) -> list[str]:
    return [probe.call for probe in report.probes if probe.ok is ok]


@pytest.mark.few(1)
@pytest.mark.parametrize("name", PORTS)
def test_a_port_that_depends_on_the_call_is_caught_and_named(name: str) -> None:
    make, names = PORTS[name]
    report = verify(MODEL, make(net))
    assert report.verdict == "disagree"
    assert report.diagnosis[0].bug in names
    assert calls(report, False)
    if report.first_bad_layer is not None:
        assert not next(layer for layer in report.layers if layer.name == report.first_bad_layer).ok


@pytest.mark.slow
@pytest.mark.parametrize("name", PORTS)
def test_it_shows_in_the_logits_alone(name: str) -> None:
    make, names = PORTS[name]
    port = make(net)
    report = verify(MODEL, lambda x: port(x)["linear"])
    if name == "last-tile-left-out":  # its logits are right: only the layer's output is not
        assert report.verdict == "agree"
    else:
        assert report.verdict == "disagree"
        assert report.diagnosis[0].bug in names


def _first_only(net: Port) -> Port:
    count: list[int] = []

    def port(x: Any) -> Any:
        count.append(1)
        return spoilt(net(x)) if len(count) == 1 else net(x)

    return port


@pytest.mark.few(2)
@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("make", "bug"),
    [
        (_first_only, "state-between-calls"),
        (wrong_if(lambda x: x.shape[2] != x.shape[3]), "square-assumed"),
        (wrong_if(lambda x: len(x) > 1), "batch-dependent"),
        (wrong_if(lambda x: x.shape[2] > 80), "depends-on-call"),
        (wrong_if(lambda x: True), "unknown"),
    ],
)
def test_what_is_wrong_in_the_first_call_only_is_told(make: Any, bug: str) -> None:
    report = verify(MODEL, make(net))
    assert report.verdict == "disagree"
    assert report.first_bad_layer == "stage1.0"
    assert report.diagnosis[0].bug == bug


@pytest.mark.slow
def test_square_images_that_go_wrong_alone_are_told() -> None:
    """The reverse of taking all for square, the first call being square itself."""
    x = distinguishing_inputs(MODEL.arch, height=32, width=32)
    report = verify(MODEL, wrong_if(lambda x: x.shape[2] == x.shape[3])(net), inputs=x)
    assert report.verdict == "disagree"
    assert report.diagnosis[0].bug == "square-image"


def test_a_port_that_loses_images_depends_on_the_batch() -> None:
    report = verify(MODEL, lambda x: net(x[:1]))
    assert (report.verdict, report.diagnosis[0].bug) == ("disagree", "batch-dependent")


# ------------------------------------------------------------------------- right ports


def needs(condition: Callable[[Any], Any], says: str = "bad binding 0") -> Port:
    """A right port that refuses other batches."""

    def port(x: Any) -> Any:
        if not condition(x):
            raise ValueError(says)
        return net(x)

    return port


def _per_image(x: Any) -> Any:
    parts = [net(image[None]) for image in x]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _reusing() -> Port:
    """Every call of a shape writes into the arrays that the last one returned."""
    buffers: dict[Any, Any] = {}

    def port(x: Any) -> Any:
        outputs = net(x)
        for name, array in outputs.items():
            buffer = buffers.setdefault((name, array.shape), np.empty_like(array))
            buffer[...] = array
            outputs[name] = buffer
        return outputs

    return port


def _unsteady() -> Port:
    """Sums in another order every other call."""
    count: list[int] = []

    def port(x: Any) -> Any:
        count.append(1)
        model = MODEL if len(count) % 2 else DEPLOY
        return model.forward(np.asarray(x, np.float32), layers=True)

    return port


def _channels_last(x: Any) -> Any:
    return {n: np.moveaxis(a, 1, -1) if a.ndim == 4 else a for n, a in net(x).items()}


# Name -> (port, how many of the calls it refuses).
RIGHT: dict[str, tuple[Port, int]] = {
    "plain": (net, 0),
    "per-image": (_per_image, 0),
    "reusing": (_reusing(), 0),
    "unsteady": (_unsteady(), 0),
    "channels-last": (_channels_last, 0),
    "float64": (lambda x: DEPLOY.forward(np.asarray(x, np.float64), layers=True), 0),
    "even-only": (needs(lambda x: x.shape[2] % 2 == 0 == x.shape[3] % 2), 2),
    "at-least-16": (needs(lambda x: min(x.shape[2:]) >= 16), 1),
    "at-most-128": (needs(lambda x: max(x.shape[2:]) <= 128), 1),
    "two-images": (needs(lambda x: len(x) == 2), 6),
}


@pytest.mark.few(2)
@pytest.mark.parametrize("name", RIGHT)
def test_a_right_port_is_not_accused(name: str) -> None:
    port, refused = RIGHT[name]
    report = verify(MODEL, port)
    assert report.verdict == "agree", report.reason
    assert calls(report, False) == []
    assert len(calls(report, None)) == refused
    assert len(calls(report, True)) == ALL_CALLS - refused


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((1, 3, 64, 64), "bad binding 0"),
        ((1, 3, 96, 80), "one at a time"),
        ((2, 3, 48, 72), "expected [2, 3, 48, 72], got [4, 3, 96, 80]"),
        ((1, 3, 40, 56), "this engine takes 3x40x56"),
        ((2, 3, 96, 80), "batch must be 2"),
        ((1, 3, 72, 72), "Image size 96*80 does not match model (72*72)"),
    ],
)
def test_the_shape_that_a_port_takes_is_found(shape: tuple[int, ...], says: str) -> None:
    report = verify(MODEL, needs(lambda x: x.shape == shape, says))
    assert report.verdict == "agree", report.reason
    taken = "x".join(map(str, shape))
    assert any(taken in note and "--inputs" in note for note in report.notes)


def test_a_shape_that_is_not_found_is_asked_for() -> None:
    report = verify(MODEL, needs(lambda x: x.shape == (3, 3, 71, 73)))
    assert report.verdict == "cannot-judge"
    assert all(word in report.reason for word in ("--inputs", "4x3x96x80", "bad binding 0"))


def test_outputs_of_no_shape_of_ours_at_a_guessed_shape_are_not_judged() -> None:
    def port(x: Any) -> Any:
        if x.shape != (1, 3, 224, 224):
            raise ValueError("bad binding 0")
        return np.zeros((1, 77), np.float32)

    report = verify(MODEL, port)
    assert report.verdict == "cannot-judge"
    assert "--inputs" in report.reason


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_a_dump_without_its_input_is_not_judged(batch: int) -> None:
    outputs = net(np.ones((batch, 3, 96, 80), np.float32))
    for dump in (outputs, {"linear": outputs["linear"]}, outputs["linear"]):
        report = verify(MODEL, dump)
        assert report.verdict == "cannot-judge"
        assert "--inputs" in report.reason
        assert report.probes == ()


def test_what_a_port_sets_for_its_process_stays_its_own(tmp_path: Path) -> None:
    before = _process()
    seen: list[Any] = []

    def port(x: Any) -> Any:
        seen.append((np.geterr()["over"], os.environ.get("REPVGG_PORT"), Path.cwd()))
        np.seterr(all="raise")
        np.random.seed(0)  # noqa: NPY002 - that is the point
        random.seed(0)
        warnings.simplefilter("error")
        os.environ["REPVGG_PORT"] = "1"
        os.chdir(tmp_path)
        with np.errstate(all="ignore"):
            return net(x)

    assert verify(MODEL, port).verdict == "agree"
    assert _process() == before
    # The port itself goes on where it stopped.
    assert seen[1] == ("raise", "1", tmp_path)


def _process() -> tuple[Any, ...]:
    environment, filters = dict(os.environ), list(warnings.filters)
    state = np.random.get_state()[1].tolist()  # type: ignore[index] # noqa: NPY002
    return np.geterr(), random.getstate(), state, filters, environment, Path.cwd()


def test_a_callers_own_error_state_does_not_stop_the_oracle() -> None:
    with np.errstate(all="raise"):
        assert verify(MODEL, net).verdict == "agree"


def test_the_calls_are_reported() -> None:
    report = verify(MODEL, needs(lambda x: max(x.shape[2:]) <= 128, "too large"))
    probes = report.to_json()["probes"]
    assert {"call", "ok", "says"} == set(probes[0])
    assert [p["says"] for p in probes if p["ok"] is None] == ["ValueError: too large"]
    (line,) = (note for note in report.notes if note.startswith("called again"))
    assert "not judged: an image above 128 pixels" in line


def test_a_reference_error_is_no_refusal() -> None:
    with pytest.raises(ReportedError):
        verify(MODEL, net, inputs=np.zeros((2, 5, 32, 32), np.float32))


class TakesBytes(Candidate):
    """A port that scales bytes by itself, and tells what it made of them; `make` spoils it."""

    name, is_called, takes_integers = "bytes", True, True

    def __init__(self, make: Callable[[Port], Port]) -> None:
        self.port = make(lambda x: {"input": x, **net(x)})

    def images(self, x: Any) -> Any:
        return np.rint((x - x.min()) * (255 / np.ptp(x)))

    def run(self, x: Any) -> Outputs:
        layers = dict(self.port((np.rint(x) / 255 - 0.5).astype(np.float32)))
        return Outputs(x=layers.pop("input"), layers=layers)


@pytest.mark.few(2)
@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("make", "verdict"),
    [
        (lambda port: port, "agree"),
        (keeps_the_first_result, "disagree"),
        (caches_by_shape, "disagree"),
        (wrong_if(lambda x: x.shape[2] % 2), "disagree"),
    ],
)
def test_what_a_port_makes_of_bytes_is_believed_where_it_can_be(make: Any, verdict: str) -> None:
    port = TakesBytes(make)
    first = first_call(port, MODEL.arch, None)
    report = probed(judge(MODEL, first.outputs, first.x), Programs(MODEL), port, first, judge)
    assert report.verdict == verdict, report.reason
    assert len(calls(report, None)) == 3
