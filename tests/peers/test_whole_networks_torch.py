"""Networks that torch pickled whole: what they compute, with the settings of their modules."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
import weights_io
from repvgg_ref.files.inspect import inspect_file
from repvgg_ref.models.architectures import plain_architecture
from repvgg_ref.models.geometry import Geometry, with_geometry

torch = pytest.importorskip("torch")

from tests.peers.official_module import RepVGG  # noqa: E402
from tests.peers.torch_repvgg import build_torch  # noqa: E402
from tests.peers.whole_modules import WRITTEN, Hook, Negated, Scaled, Sequential, with_eps, written  # noqa: E402

pytestmark = pytest.mark.peers
GROUPS = {"stage1.1": 2, "stage2.1": 4}
SMALL = plain_architecture(depths=(2, 2), channels=(4, 4, 8), num_classes=3)


def network(arch: Any, eps: float = 1e-3, *, deploy: bool = False) -> Any:
    torch.manual_seed(7)
    return _spoken(build_torch(arch, deploy, eps).eval())


def _spoken(module: Any) -> Any:
    """With statistics, scales and shifts that no ReLU silences."""
    with torch.no_grad():
        for name, buffer in module.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.uniform_(0.001, 0.3)
        for name, parameter in module.named_parameters():
            if ".bn." in name or "identity" in name:
                parameter.uniform_(0.5, 1.5)
    return module


def _same_outputs(model: Any, module: Any) -> None:
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        wanted = module.double()(x).numpy()
    assert wanted.std() > 0.01
    np.testing.assert_allclose(model.forward(x.numpy()), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("how", WRITTEN)
@pytest.mark.parametrize("deploy", [False, True], ids=["train", "deploy"])
def test_a_whole_repvgg_computes_what_its_module_does(
    how: str, deploy: bool, tmp_path: Path
) -> None:
    module = network(SMALL, deploy=deploy)
    for root in (module, {"model": module, "epoch": 2}, torch.nn.DataParallel(module)):
        model = rr.load(written(tmp_path, root, how))
        assert (model.form, model.eps) == (("deploy", 1e-5) if deploy else ("train", 1e-3))
        assert not model.assumed
        _same_outputs(model, network(SMALL, deploy=deploy))


@pytest.mark.parametrize("groups", [{}, {2: 2, 4: 4}], ids=["ungrouped", "grouped"])
@pytest.mark.parametrize("se", [False, True], ids=["plain", "SE"])
def test_the_official_module_loads_and_converts(
    groups: dict[int, int], se: bool, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    module = with_eps(_spoken(RepVGG(groups, se=se).eval()), 3e-3)
    path = written(tmp_path, {"model": module, "epoch": 119})
    model = rr.load(path)
    assert (model.eps, bool(model.assumed)) == (3e-3, False)
    _same_outputs(model, module)
    rr.save(rr.fuse(model), tmp_path / "deploy.npz")
    half = rr.load(written(tmp_path, {"ema": RepVGG(groups, se=se).half()}))
    assert half.arch.blocks == model.arch.blocks


@pytest.mark.parametrize("deploy", [False, True], ids=["train", "deploy"])
def test_strides_dilations_and_groups_come_from_the_modules(deploy: bool, tmp_path: Path) -> None:
    said = Geometry({"stage2.0": 1}, {"stage2.0": 2, "stage2.1": 3})
    grouped = {spec.name: replace(spec, groups=GROUPS.get(spec.name, 1)) for spec in SMALL.blocks}
    arch = with_geometry(replace(SMALL, blocks=tuple(grouped.values())), said)
    module = network(arch, deploy=deploy)
    model = rr.load(written(tmp_path, module))
    assert model.arch.blocks == arch.blocks
    assert not model.assumed
    _same_outputs(model, module)
    over = rr.load(tmp_path / "whole.pt", strides={"stage1.0": 1})
    assert any("its module says stride 2; 1 is taken" in note for note in over.notes)


def test_batch_norms_of_several_eps_are_refused_unless_one_is_asked_for(tmp_path: Path) -> None:
    module = with_eps(network(SMALL), 1e-3, 1e-5)
    path = written(tmp_path, module)
    with pytest.raises(weights_io.ReportedError, match="different eps"):
        rr.load(path)
    assert rr.load(path, eps=1e-3).eps == 1e-3
    assert any("different eps" in finding.message for finding in inspect_file(path).findings)


@pytest.mark.parametrize(("kind", "good"), [("ReLU", True), ("SiLU", False), ("Identity", False)])
def test_another_activation_than_the_networks_is_refused(
    kind: str, good: bool, tmp_path: Path
) -> None:
    module = network(SMALL)
    module.get_submodule("stage1.1").nonlinearity = getattr(torch.nn, kind)()
    path = written(tmp_path, module)
    if good:
        _same_outputs(rr.load(path), module)
    else:
        with pytest.raises(weights_io.ReportedError, match=f"nonlinearity is no ReLU.*{kind}"):
            rr.load(path)


@pytest.mark.parametrize(("place", "kind", "good"), [
    ("rbr_dense", "Identity", True), ("rbr_dense.bn", "Identity", True),
    ("rbr_dense", "ReLU", False), ("rbr_1x1.bn", "ReLU", False), ("rbr_identity", "SiLU", False),
])  # fmt: skip
def test_an_activation_in_a_branch_is_refused(
    place: str, kind: str, good: bool, tmp_path: Path
) -> None:
    module = network(SMALL)
    module.get_submodule(f"stage1.1.{place}").act = getattr(torch.nn, kind)()
    path = written(tmp_path, module)
    if good:
        _same_outputs(rr.load(path), module)
    else:
        with pytest.raises(weights_io.ReportedError, match="it stands in a branch of a block"):
            rr.load(path)


@pytest.mark.parametrize(
    ("place", "made", "why"),
    [
        ("rbr_dense.conv", lambda old: Scaled(4, 4, 3, padding=1, bias=False), "Scaled: a conv"),
        ("rbr_1x1.bn", lambda old: Negated(4), "Negated: a batch norm of a class"),
        (
            "rbr_1x1",
            lambda old: torch.nn.Sequential(OrderedDict(bn=old.bn, conv=old.conv)),
            "another order",
        ),
    ],
)
def test_a_part_that_computes_something_else_is_refused(
    place: str, made: Callable[[Any], Any], why: str, tmp_path: Path
) -> None:
    module = network(SMALL)
    block, (parent, _, last) = module.get_submodule("stage1.1"), place.rpartition(".")
    setattr(block.get_submodule(parent), last, made(block.get_submodule(place)))
    with pytest.raises(weights_io.ReportedError, match=why):
        rr.load(written(tmp_path, module))


@pytest.mark.parametrize(
    ("place", "made", "why"),
    [
        ("rbr_identity", torch.nn.Identity, "no such block has such a part"),
        ("rbr_1x1", torch.nn.ReLU, "no such block has such a part"),
        ("rbr_more", lambda: torch.nn.AvgPool2d(3, 1, 1), "no such block has such a part"),
        ("se", lambda: torch.nn.AvgPool2d(3, 1, 1), "it stands in a branch of a block"),
    ],
)
def test_a_member_without_arrays_that_no_block_has_is_refused(
    place: str, made: Callable[[], Any], why: str, tmp_path: Path
) -> None:
    module = network(SMALL)
    setattr(module.get_submodule("stage1.1"), place, made())
    with pytest.raises(weights_io.ReportedError, match=why):
        rr.load(written(tmp_path, module))


@pytest.mark.parametrize("place", ["stage1.1.rbr_1x1", "stage1"])
def test_a_container_of_another_class_is_refused(place: str, tmp_path: Path) -> None:
    module = network(SMALL)
    module.get_submodule(place).__class__ = Sequential
    with pytest.raises(weights_io.ReportedError, match="a container of a class that may compute"):
        rr.load(written(tmp_path, module))


def test_a_hook_on_a_whole_block_is_refused(tmp_path: Path) -> None:
    module = network(SMALL)
    module.get_submodule("stage1.1").register_forward_hook(Hook())
    with pytest.raises(weights_io.ReportedError, match="a hook may change what it computes"):
        rr.load(written(tmp_path, module))


def test_a_pruned_module_is_read_as_torch_computes(tmp_path: Path) -> None:
    module = network(SMALL)
    conv = module.get_submodule("stage1.1").rbr_dense.conv
    from torch.nn.utils import prune

    prune.random_unstructured(conv, "weight", 0.5)
    model = rr.load(written(tmp_path, module))
    kernel = model.params["stage1.1.branch_3x3.conv.weight"]
    np.testing.assert_array_equal(kernel, conv.weight.detach().numpy())
