from __future__ import annotations

import re
from collections import namedtuple
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from repvgg_ref.oracle.candidates import CandidateFailure, Outputs, WeightsCandidate, resolve
from tests.oracle.candidates import strange_ports as strange
from tests.oracle.candidates.ports import architecture, assert_same, images, network, right_outputs


def run(candidate: Any, x: Any = None) -> Outputs:
    found = resolve(candidate, architecture())
    assert not isinstance(found, WeightsCandidate)
    assert not found.brings_input
    assert found.input_shape() is None
    return found.run(images() if x is None else x)


def test_a_function_may_return_logits() -> None:
    assert_same(run(strange.logits).layers, {"linear": right_outputs()["linear"]})


@pytest.mark.parametrize("port", [strange.layers, strange.sequence, network()])
def test_a_function_may_return_every_layer(port: Any) -> None:
    assert_same(run(port).layers, right_outputs())


def test_named_tuples_and_objects_with_logits_are_understood() -> None:
    pair = namedtuple("pair", ["stage0", "linear"])
    y = right_outputs()
    assert_same(
        run(lambda x: pair(y["stage0"], y["linear"])).layers,
        {name: y[name] for name in ("stage0", "linear")},
    )
    assert list(run(lambda x: SimpleNamespace(logits=y["linear"])).layers) == ["linear"]


def test_lists_of_numbers_are_an_array() -> None:
    y = right_outputs()["linear"]
    assert_same(run(lambda x: y.astype(float).tolist()).layers, {"linear": y})


class Framework:
    """A tensor of some framework: only what it can do tells that it is one."""

    def __init__(self, array: Any) -> None:
        self.array = array


class TorchLike(Framework):
    dtype = "torch.float16"

    def detach(self) -> TorchLike:
        return self

    def cpu(self) -> TorchLike:
        return self

    def numpy(self) -> Any:
        return self.array


class CupyLike(Framework):
    def get(self) -> Any:
        return self.array


class TensorflowLike(Framework):
    def numpy(self) -> Any:
        return self.array


class JaxLike(Framework):
    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return self.array


class DlpackOnly(Framework):
    def __dlpack__(self, **settings: Any) -> Any:
        return self.array.__dlpack__(**settings)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


@pytest.mark.parametrize("kind", [TorchLike, CupyLike, TensorflowLike, JaxLike, DlpackOnly])
def test_tensors_of_any_framework_are_converted(kind: Any) -> None:
    y = right_outputs()["linear"].astype(np.float16)
    outputs = run(lambda x: kind(y))
    assert np.array_equal(outputs.layers["linear"], y)
    assert outputs.precision == "fp16"


def test_the_batch_is_the_candidates_own_copy() -> None:
    x = images()
    x.flags.writeable = False
    run(strange.writes_into_its_input, x)
    assert np.array_equal(x, images())


def test_nan_passes_through() -> None:
    assert np.isnan(run(strange.not_a_number).layers["linear"]).all()


@pytest.mark.parametrize(
    ("port", "says", "verdict"),
    [
        (strange.raises, "ValueError: the shapes do not fit", "cannot-judge"),
        (strange.exits, "SystemExit: 3", "cannot-judge"),
        (strange.returns_nothing, "returned nothing", "cannot-judge"),
        (strange.returns_text, "no array of real numbers", "cannot-judge"),
        (strange.returns_objects, "no array of real numbers", "cannot-judge"),
        (strange.unknown_layers, "conv_1", "cannot-judge"),
        (strange.three_arrays, "3 arrays", "cannot-judge"),
        (strange.loses_an_image, "1 images", "disagree"),
        (lambda: None, "TypeError", "cannot-judge"),
    ],
)
def test_a_port_that_fails_is_reported_in_one_line(port: Any, says: str, verdict: str) -> None:
    with pytest.raises(CandidateFailure) as raised:
        run(port)
    assert re.search(re.escape(says), str(raised.value))
    assert "\n" not in str(raised.value)
    assert raised.value.verdict == verdict


def test_a_function_needs_an_input() -> None:
    candidate = resolve(strange.logits, architecture())
    assert not isinstance(candidate, WeightsCandidate)
    with pytest.raises(CandidateFailure, match="input batch"):
        candidate.run(None)


def test_an_interrupt_is_the_users_own() -> None:
    def interrupted(x: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(interrupted)
