"""A right port of another network than was assumed: that is said, and no wrong port passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.arrays import Array
from repvgg_ref.files.convert import convert
from repvgg_ref.models.architectures import plain_architecture
from repvgg_ref.models.geometry import Geometry, with_geometry
from repvgg_ref.oracle.assumptions import Seen, reconsidered
from repvgg_ref.oracle.report import Report
from tests.files.checkpoint_files import written
from tests.random_networks import random_model

ARCH = plain_architecture(depths=(2, 2), channels=(6, 6, 8), num_classes=11)
X = np.random.default_rng(5).normal(size=(2, 3, 32, 28)).astype(np.float32)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that says nothing of strides and eps."""
    return written(tmp_path_factory.mktemp("trained"), random_model(ARCH, 2).state_dict())


def fork(
    strides: Mapping[str, int] | None = None,
    dilations: Mapping[str, int] | None = None,
    eps: float = 1e-5,
) -> rr.Model:
    """The network with these weights that a fork trained."""
    arch = with_geometry(ARCH, Geometry(strides or {}, dilations or {}))
    return replace(random_model(ARCH, 2), arch=arch, eps=eps)


def port(model: rr.Model) -> dict[str, Array]:
    """What a right port of it gives, layer by layer."""
    return model.forward(X, layers=True, backend="reference")


def assumption(report: Report) -> str:
    """What the report says of the assumption, or nothing."""
    assert report.verdict == "disagree"
    return next((f.advice for f in report.diagnosis if f.bug == "assumption"), "")


FORKS = {
    "--strides stage2.0=1": fork({"stage2.0": 1}),
    "--strides stage0=1": fork({"stage0": 1}),
    "--strides stage1.0=1": fork({"stage1.0": 1}),
    "--strides stage0=1,stage2.0=1": fork({"stage0": 1, "stage2.0": 1}),
    "--strides stage0=3": fork({"stage0": 3}),
    "--strides stage2.0=1 --dilations stage2.1=2": fork({"stage2.0": 1}, {"stage2.1": 2}),
    "--dilations stage2.1=3": fork({}, {"stage2.1": 3}),
    "--eps 0.001": fork(eps=1e-3),
    "--eps 0.001 --strides stage2.0=1": fork({"stage2.0": 1}, eps=1e-3),
    "--strides stage0=4": fork({"stage0": 4}),
    "--dilations stage2.1=2": fork({}, {"stage2.1": 2}),
}


@pytest.mark.few(2)
@pytest.mark.parametrize("options", FORKS)
def test_the_assumption_is_named_for_a_right_port(trained: Path, options: str) -> None:
    report = rr.verify(trained, port(FORKS[options]), inputs=X)
    assert f"give {options};" in assumption(report)
    assert report.reason.startswith("your port agrees if ")
    assert "was assumed" in report.reason
    assert report.to_json()["assumed"]["strides"]["stage0"] == 2
    said = FORKS[options]
    assert rr.verify(said, port(said), inputs=X).verdict == "agree"


@pytest.mark.parametrize("said", [{"dilations": {"stage2.1": 2}}, {"strides": {"stage2.0": 1}}])
def test_a_file_that_says_no_steps_is_not_judged_by_them(
    trained: Path, tmp_path: Path, said: dict[str, Any]
) -> None:
    """Its arrays agree; that it would be loaded as another network is said."""
    ((what, steps),) = said.items()
    reference = fork(**said)
    state = rr.fuse(reference).state_dict()
    for path in (trained, written(tmp_path, state)):
        report = rr.verify(reference, path)
        assert report.verdict == "agree"
        assert report.reason.endswith(f"its {what} are assumed and not judged")
        ((block, step),) = steps.items()
        assert any(f"load it with --{what} {block}={step}" in note for note in report.notes)
    said_too = rr.verify(rr.load(trained), trained)
    assert "assumed and not judged" not in said_too.reason


LOGITS = [
    "--strides stage2.0=1",
    "--strides stage0=1",
    "--strides stage0=1,stage2.0=1",
    "--strides stage2.0=1 --dilations stage2.1=2",
    "--strides stage0=4",
    "--dilations stage2.1=2",
    "--eps 0.001",
    "--eps 0.001 --strides stage2.0=1",
]


@pytest.mark.parametrize("options", LOGITS)
def test_logits_alone_tell_the_forks_that_people_have(trained: Path, options: str) -> None:
    """What is guessed is verified as a whole: here by comparing networks, which costs nothing."""
    right, asked = FORKS[options], list[rr.Model]()

    def again(guess: rr.Model) -> Report:
        asked.append(guess)
        verdict: Any = "agree" if (guess.arch, guess.eps) == (right.arch, right.eps) else "disagree"
        return Report(verdict, "", guess.name, "port", "fp32")

    seen = Seen(X, {}, {"linear": port(right)["linear"]})
    report = Report("disagree", "", "custom", "port", "fp32")
    found = reconsidered(report, rr.load(trained), seen, again)
    assert f"give {options};" in assumption(found)
    assert len(asked) <= 2
    # a port that no guess explains costs no further verification
    asked.clear()
    wrong = replace(seen, outputs={"linear": 2 * seen.outputs["linear"]})
    same = reconsidered(report, rr.load(trained), wrong, again)
    assert (same.verdict, same.diagnosis, same.reason) == ("disagree", (), report.reason)
    assert "assumed of the reference" in same.notes[0]
    assert not asked


def altered(layer: str) -> dict[str, Array]:
    """A port of a fork that has a bug of its own as well."""
    model = fork({"stage2.0": 1})
    params = dict(model.params)
    params[f"{layer}.branch_1x1.conv.weight"] = params[f"{layer}.branch_1x1.conv.weight"] * 1.01
    return port(replace(model, params=params))


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["stage2.0", "stage0"])
def test_a_wrong_port_is_told_nothing_kind(trained: Path, layer: str) -> None:
    assert not assumption(rr.verify(trained, altered(layer), inputs=X))


def test_a_wrong_port_of_the_network_that_was_assumed_stays_wrong(trained: Path) -> None:
    model = fork()
    params = dict(model.params)
    params["stage1.1.branch_identity.bn.gamma"] = 0 * params["stage1.1.branch_identity.bn.gamma"]
    report = rr.verify(trained, port(replace(model, params=params)), inputs=X)
    assert (report.verdict, report.first_bad_layer) == ("disagree", "stage1.1")
    assert report.diagnosis[0].bug == "identity-missing"
    assert not assumption(report)


@pytest.mark.parametrize("options", ["--strides stage2.0=1", "--eps 0.001"])
def test_what_was_said_is_not_doubted(trained: Path, options: str) -> None:
    said = rr.load(trained, strides={"stage2.0": 2}, eps=1e-5)
    report = rr.verify(said, port(FORKS[options]), inputs=X)
    assert not assumption(report)
    assert report.diagnosis[0].bug in ("stride-moved", "eps-value")


def test_a_model_that_was_built_assumes_nothing() -> None:
    report = rr.verify(fork(), port(FORKS["--strides stage2.0=1"]), inputs=X)
    assert not assumption(report)
    assert not report.assumed


def test_a_right_port_agrees_whatever_was_assumed(trained: Path) -> None:
    report = rr.verify(trained, port(fork()), inputs=X)
    assert report.verdict == "agree"
    assert report.assumed.eps == 1e-5


def test_fused_weights_of_another_eps_name_the_assumption(trained: Path, tmp_path: Path) -> None:
    other = convert(trained, tmp_path / "other.npz", eps=1e-3).out
    assert "give --eps 0.001;" in assumption(rr.verify(trained, other))


def test_a_proved_stride_is_never_doubted(trained: Path) -> None:
    """The identity branch of stage1.1 is in the file: a port that strides there is wrong."""
    model = fork({"stage1.1": 2})
    deploy = replace(rr.fuse(fork()), arch=model.arch)
    report = rr.verify(trained, port(deploy), inputs=X)
    assert not assumption(report)
    assert report.first_bad_layer == "stage1.1"


def test_golden_vectors_carry_what_was_assumed(trained: Path, tmp_path: Path) -> None:
    from repvgg_ref.oracle.golden.read import read_golden
    from repvgg_ref.oracle.golden.write import write_golden

    loaded = rr.load(trained, strides={"stage2.0": 1})
    done = write_golden(loaded, tmp_path / "g", inputs=X[:1])
    assert done.to_json()["assumed"]["strides"] == {"stage0": 2, "stage1.0": 2}
    golden = read_golden(tmp_path / "g")
    assert golden.model is not None
    assert golden.model.assumed == loaded.assumed
    assert golden.model.arch == loaded.arch
    again = read_golden(tmp_path / "g", reference=trained)
    assert again.model is not None
    assert again.model.arch.block("stage2.0").stride == 1
