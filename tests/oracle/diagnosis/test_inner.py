"""What is wrong inside a branch, or behind the sum: named as what it is, not as several bugs.

The ports are the product's own trained form with other numbers: a variance that is larger by
``eps' - eps`` is another eps, a kernel less the identity a sum without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.arrays import Array
from repvgg_ref.models.architectures import plain_architecture
from repvgg_ref.models.network import Model
from repvgg_ref.oracle.diagnosis.static_check import check_weights
from repvgg_ref.oracle.programs.distinguishing import distinguishing_model
from repvgg_ref.oracle.programs.inner import inner_norms, inner_terms

NORMS = {
    "qarepvgg": (("branch_3x3.bn",), ("bn",)),
    "dbb": (
        ("average.inner.bn", "sequence.inner.bn"),
        ("origin.bn", "pointwise.bn", "average.bn", "sequence.bn"),
    ),
}
LAYER = "stage1.1"


def reference(kind: str) -> Model:
    arch = plain_architecture(depths=[2], channels=[4, 6], num_classes=3, kind=kind)
    model = distinguishing_model(arch, seed=2)
    wide = {n: np.asarray(a, np.float64 if a.ndim else a.dtype) for n, a in model.params.items()}
    return replace(model, params=wide)


def changed(model: Model, change: Callable[[str, Array], Array], layer: str = LAYER) -> Model:
    """The port: `change` of the arrays of a layer by their part names; layer "" for all."""
    params = {
        name: change(name.partition(f"{spec.name}.")[2], array)
        for spec in model.arch.blocks
        for name, array in model.params.items()
        if name.startswith(f"{spec.name}.") and layer in ("", spec.name)
    }
    return replace(model, params=model.params | params)


def verdict(model: Model, port: Model) -> tuple[str, str, str, float | None]:
    """Bug, layer, sentence and number of the first finding; it must be the only one."""
    x = np.random.default_rng(0).standard_normal((3, 3, 18, 18)).astype(np.float32)
    outputs = port.forward(x.astype(np.float64), layers=True, backend="reference")
    narrow = {name: array.astype(np.float32) for name, array in outputs.items()}
    report = rr.verify(model, narrow, inputs=x)
    assert report.verdict == "disagree"
    (found,) = report.diagnosis
    return found.bug, str(found.layer), found.says, found.estimate


def other_eps(eps: float, *norms: str) -> Callable[[str, Array], Array]:
    def change(part: str, array: Array) -> Array:
        norm, _, field = part.rpartition(".")
        return array + (eps - 1e-5) if field == "running_var" and norm in norms else array

    return change


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("which", ["all", "inner", "last", "one"])
@pytest.mark.parametrize("eps", [1e-3, 4e-4])
@pytest.mark.few(4)
def test_eps_of_some_norms_is_named_with_the_norms(kind: str, which: str, eps: float) -> None:
    inner, last = NORMS[kind]
    norms = {"all": inner + last, "inner": inner, "last": last, "one": inner[-1:]}[which]
    model = reference(kind)
    bug, layer, says, found = verdict(model, changed(model, other_eps(eps, *norms)))
    assert (bug, layer) == ("eps-value", LAYER)
    assert found is not None
    assert not abs(found / eps - 1) > 1e-3
    assert ("alone" in says) == (which != "all")
    assert [norm for norm in inner + last if f" {norm}" in says or f"{norm}," in says] == (
        [] if which == "all" else list(norms)
    )


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", NORMS)
def test_eps_of_inner_norms_of_every_layer_is_one_finding(kind: str) -> None:
    model = reference(kind)
    port = changed(model, other_eps(1e-3, *NORMS[kind][0]), layer="")
    bug, layer, says, found = verdict(model, port)
    assert (bug, layer) == ("eps-value", "all")
    assert f"{NORMS[kind][0][-1]} alone" in says
    assert found == pytest.approx(1e-3, rel=1e-3)


def test_other_norms_in_other_layers_are_no_cause_of_all_layers() -> None:
    model = reference("qarepvgg")
    inner, last = NORMS["qarepvgg"]
    port = changed(changed(model, other_eps(1e-3, *inner)), other_eps(1e-3, *last), layer="stage0")
    x = np.random.default_rng(0).standard_normal((3, 3, 18, 18)).astype(np.float32)
    outputs = port.forward(x.astype(np.float64), layers=True, backend="reference")
    report = rr.verify(model, {n: y.astype(np.float32) for n, y in outputs.items()}, inputs=x)
    first, second = report.diagnosis
    assert first.bug == second.bug == "eps-value"
    assert (first.layer, second.layer) == ("stage0", LAYER)
    assert first.says.endswith("(in bn alone)")
    assert second.says.endswith("(in branch_3x3.bn alone)")


@pytest.mark.parametrize("kind", ["qarepvgg", pytest.param("dbb", marks=pytest.mark.slow)])
def test_a_fused_file_shows_it_as_well(kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    model, path = reference(kind), tmp_path_factory.mktemp("fused") / "fused.npz"
    inner = NORMS[kind][0]
    rr.save(rr.fuse(changed(model, other_eps(1e-3, *inner))), path)
    found = check_weights(model, path).diagnosis[0]
    assert (found.bug, found.layer) == ("eps-value", LAYER)
    assert f"{inner[-1]} alone" in found.says


def less_identity(part: str, array: Array) -> Array:
    one_by_one = part in ("branch_point.conv.weight", "sequence.same.conv.weight")
    return array - np.eye(len(array))[:, :, None, None] if one_by_one else array


def nothing_of(*parts: str) -> Callable[[str, Array], Array]:
    return lambda part, array: 0 * array if part in parts else array


LEFT_OUT = {
    "qarepvgg identity": (less_identity, "identity-missing", "the identity branch is left out"),
    "qarepvgg 3x3": (
        nothing_of("branch_3x3.bn.gamma", "branch_3x3.bn.beta"),
        "branch-3x3-missing",
        "the 3x3 branch is left out",
    ),
    "qarepvgg 3x3 kernel": (
        nothing_of("branch_3x3.conv.weight"),
        "branch-3x3-missing",
        "the 3x3 branch is left out but for its bias",
    ),
    "qarepvgg 1x1": (
        nothing_of("branch_point.conv.weight"),
        "branch-missing",
        "the branch branch_point is left out",
    ),
    "dbb identity": (
        less_identity,
        "identity-missing",
        "the identity branch is left out inside sequence",
    ),
    "dbb 1x1 beside it": (
        nothing_of("sequence.same.conv.weight"),
        "branch-missing",
        "the branch sequence.same is left out",
    ),
    "dbb average": (
        nothing_of("average.bn.gamma", "average.bn.beta"),
        "branch-missing",
        "the branch average is left out",
    ),
    "dbb sequence's last kernel": (
        nothing_of("sequence.conv.weight"),
        "branch-missing",
        "the branch sequence but for its last norm is left out",
    ),
}


@pytest.mark.few(2)
@pytest.mark.parametrize("case", LEFT_OUT)
def test_what_is_left_out_of_a_block_is_named(case: str) -> None:
    change, bug, says = LEFT_OUT[case]
    model = reference(case.split()[0])
    assert verdict(model, changed(model, change))[:3] == (bug, LAYER, says)


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("part", "change", "bug"),
    [
        ("beta", lambda a: 0 * a, "beta-ignored"),
        ("running_mean", lambda a: 0 * a, "mean-ignored"),
        ("running_mean", np.negative, "mean-sign"),
        ("gamma", np.ones_like, "gamma-ignored"),
    ],
)
@pytest.mark.parametrize("norm", ["branch_3x3.bn", "bn"])
def test_a_norm_inside_a_branch_and_one_behind_the_sum_are_told_apart(
    norm: str, part: str, change: Callable[[Array], Array], bug: str
) -> None:
    model = reference("qarepvgg")
    port = changed(model, lambda n, a: change(a) if n == f"{norm}.{part}" else a)
    found, layer, says, _ = verdict(model, port)
    assert (found, layer) == (bug, LAYER)
    assert says.endswith(f"({norm})")


def test_only_blocks_that_have_insides_are_taken_apart() -> None:
    specs = {
        kind: plain_architecture(depths=[2], channels=[4, 6], num_classes=3, kind=kind).blocks[2]
        for kind in ("repvgg", "post-addition-bn", "acb", "mobileone", "dirac", *NORMS)
    }
    held = {kind: (inner_norms(spec), tuple(inner_terms(spec))) for kind, spec in specs.items()}
    assert held == {
        "qarepvgg": (NORMS["qarepvgg"][0], ()),
        "dbb": (NORMS["dbb"][0], ("sequence.same", "same")),
        **dict.fromkeys(("repvgg", "post-addition-bn", "acb", "mobileone", "dirac"), ((), ())),
    }


def test_logits_alone_tell_which_norms_have_another_eps() -> None:
    model = reference("qarepvgg")
    port = changed(model, other_eps(1e-3, "branch_3x3.bn"), layer="")
    report = rr.verify(model, lambda x: port.forward(x).astype(np.float32))
    (found,) = report.diagnosis
    assert (found.bug, found.layer, found.estimate) == ("eps-value", "all", 1e-3)
    assert "(in branch_3x3.bn alone)" in found.says


def without_variance(*norms: str) -> Callable[[str, Array], Array]:
    def change(part: str, array: Array) -> Array:
        norm, _, field = part.rpartition(".")
        return 0 * array + (1 - 1e-5) if field == "running_var" and norm in norms else array

    return change


@pytest.mark.few(1)
@pytest.mark.parametrize("which", ["all", "inner", "last"])
def test_variances_that_are_left_out_are_named_with_the_norms(which: str) -> None:
    """One of them is 1e-4, so that a channel becomes a hundred times larger than it should be."""
    inner, last = NORMS["qarepvgg"]
    norms = {"all": inner + last, "inner": inner, "last": last}[which]
    model = reference("qarepvgg")
    bug, layer, says, _ = verdict(model, changed(model, without_variance(*norms), layer=""))
    assert (bug, layer) == ("variance-ignored", "all")
    assert {"all": "every branch", "inner": "branch_3x3.bn", "last": "(bn)"}[which] in says


@pytest.mark.few(1)
def test_one_relu_behind_the_sum_is_no_relu_in_the_branches() -> None:
    model = reference("relu-in-branches")
    plain = plain_architecture(depths=[2], channels=[4, 6], num_classes=3, kind="repvgg")
    bug, layer, _, _ = verdict(model, replace(model, arch=plain))
    assert (bug, layer) == ("relu-after-sum", "all")
