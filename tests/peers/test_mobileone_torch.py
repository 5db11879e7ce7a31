# mypy: allow-subclassing-any
"""MobileOne against a torch network with the published names, and the published counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.files.convert import convert
from repvgg_ref.models.mobileone import mobileone
from repvgg_ref.oracle.programs.distinguishing import distinguishing_model
from tests.models.small import distinct_model

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.peers


def _conv_bn(spec: BlockSpec, kernel: int) -> Any:
    pair = torch.nn.Sequential()
    pair.add_module(
        "conv",
        torch.nn.Conv2d(
            spec.in_channels,
            spec.out_channels,
            kernel,
            spec.stride,
            kernel // 2,
            groups=spec.groups,
            bias=False,
        ),
    )
    pair.add_module("bn", torch.nn.BatchNorm2d(spec.out_channels))
    return pair


class TorchGate(torch.nn.Module):  # type: ignore[name-defined]
    """The published squeeze-and-excitation, a sixteenth as wide inside."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow = int(channels * 0.0625)
        self.reduce = torch.nn.Conv2d(channels, narrow, 1)
        self.expand = torch.nn.Conv2d(narrow, channels, 1)

    def forward(self, x: Any) -> Any:
        gate = self.expand(torch.relu(self.reduce(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(gate)


class TorchBlock(torch.nn.Module):  # type: ignore[name-defined]
    """The published block in training form: copies, scale, skip."""

    def __init__(self, spec: BlockSpec) -> None:
        super().__init__()
        copies = [_conv_bn(spec, spec.kernel) for _ in range(spec.copies)]
        self.rbr_conv = torch.nn.ModuleList(copies)
        self.rbr_scale = _conv_bn(spec, 1) if spec.kernel > 1 else None
        same = spec.in_channels == spec.out_channels and spec.stride == 1
        self.rbr_skip = torch.nn.BatchNorm2d(spec.out_channels) if same else None
        self.se = TorchGate(spec.out_channels) if spec.se != "none" else torch.nn.Identity()

    def forward(self, x: Any) -> Any:
        y = self.rbr_scale(x) if self.rbr_scale is not None else 0
        y = y + self.rbr_skip(x) if self.rbr_skip is not None else y
        for branch in self.rbr_conv:
            y = y + branch(x)
        return torch.relu(self.se(y))


class TorchMobileOne(torch.nn.Module):  # type: ignore[name-defined]
    def __init__(self, arch: Any) -> None:
        super().__init__()
        stages: dict[str, list[Any]] = {}
        for spec in arch.blocks:
            stages.setdefault(spec.name.partition(".")[0], []).append(TorchBlock(spec))
        for name, blocks in stages.items():
            module = blocks[0] if name == "stage0" else torch.nn.Sequential(*blocks)
            self.add_module(name, module)
        self.stages = list(stages)
        self.linear = torch.nn.Linear(arch.features, arch.num_classes)

    def forward(self, x: Any) -> Any:
        for name in self.stages:
            x = getattr(self, name)(x)
        return self.linear(x.mean((2, 3)))


def _torch_of(model: Any) -> Any:
    root = TorchMobileOne(model.arch).to(torch.float64)
    state = {name: torch.tensor(np.asarray(a)) for name, a in model.state_dict().items()}
    root.load_state_dict(state, strict=True)
    return root


@pytest.mark.parametrize(
    ("name", "million_params", "million_macs"),
    [("S0", 2.1, 275), ("S1", 4.8, 825), ("S2", 7.8, 1299), ("S3", 10.1, 1896), ("S4", 14.8, 2978)],
)
def test_the_published_counts(name: str, million_params: float, million_macs: int) -> None:
    """Table 9 of the paper."""
    counted = rr.cost(rr.build(f"MobileOne-{name}").arch)
    assert round(counted.params_deploy / 1e6, 1) == million_params
    assert abs(counted.macs / 1e6 - million_macs) < 0.002 * million_macs
    assert counted.params_train > counted.params_deploy


def test_s4_has_gates_in_the_second_half_of_stage_3_and_in_stage_4() -> None:
    gated = [spec.name for spec in rr.build("mobileone_s4").arch.blocks if spec.se != "none"]
    assert gated == [*(f"stage3.{place}" for place in range(10, 20)), "stage4.0", "stage4.1"]


def small(**gates: Any) -> Any:
    return mobileone("small", widths=(0.25, 0.25, 0.25, 0.25), copies=2, num_classes=7, **gates)


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "make",
    [lambda: small(gates=(0, 0, 5, 1)), lambda: rr.build("mobileone-s0", num_classes=7).arch],
    ids=["gates", "S0"],
)
def test_evaluation_loss_and_gradients_are_torchs(make: Any) -> None:
    model = distinct_model(make())
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((3, 3, 33, 40)), rng.integers(0, 7, 3)
    root = _torch_of(model)
    with torch.no_grad():
        want = root.eval()(torch.tensor(x)).numpy()
    got = model.forward(x)
    assert not np.abs(got - want).max() > 1e-9 * np.abs(want).max()
    loss = torch.nn.functional.cross_entropy(root.train()(torch.tensor(x)), torch.tensor(labels))
    loss.backward()
    ours = model.loss_and_grads(x, labels)
    assert float(ours.loss) == pytest.approx(loss.item(), rel=1e-11)
    theirs = {name: p.grad.numpy() for name, p in root.named_parameters()}
    assert theirs.keys() == ours.grads.keys()
    for name, grad in theirs.items():
        assert not np.abs(ours.grads[name] - grad).max() > 1e-8 * max(1e-4, np.abs(grad).max())


def test_a_checkpoint_of_torch_converts(tmp_path: Path) -> None:
    model = distinguishing_model(rr.build("MobileOne-S0").arch, seed=1)
    state = {name: torch.tensor(np.asarray(a)) for name, a in model.state_dict().items()}
    torch.save(state, tmp_path / "s0.pth")
    loaded = rr.load(tmp_path / "s0.pth")
    assert (loaded.name, loaded.block) == ("MobileOne-S0", "mobileone")
    done = convert(tmp_path / "s0.pth", tmp_path / "s0.npz")
    assert done.self_check is not None
    assert done.self_check.ok
    fused = rr.load(tmp_path / "s0.npz")
    assert (fused.name, fused.form) == ("MobileOne-S0", "deploy")
    assert next(iter(fused.state_dict())) == "stage0.reparam_conv.weight"


@pytest.mark.slow
def test_a_port_of_s0_is_judged() -> None:
    """Of smaller ones, of which `test_mobileone_candidates` tries every kind of port, on a push."""
    loaded = distinguishing_model(rr.build("MobileOne-S0").arch, seed=1)
    x = np.random.default_rng(2).normal(size=(2, 3, 32, 32)).astype(np.float32)
    port = rr.fuse(loaded).forward(x, layers=True)
    assert rr.verify(loaded, port, inputs=x).verdict == "agree"
    params = {
        name: 0 * array if name.startswith("stage2.3.branch_kxk.2.bn.") else array
        for name, array in loaded.params.items()
    }
    wrong = replace(loaded, params=params)
    report = rr.verify(loaded, wrong.forward(x, layers=True), inputs=x)
    assert (report.verdict, report.first_bad_layer) == ("disagree", "stage2.3")
    assert report.diagnosis[0].bug == "branch-missing"
    assert "branch_kxk.2" in report.diagnosis[0].says


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["MobileOne-S1", "MobileOne-S4"])
def test_a_file_of_any_of_them_is_told_and_its_keys_are_the_published_ones(
    name: str, tmp_path: Path
) -> None:
    model = distinguishing_model(rr.build(name).arch, seed=1)
    keys = set(model.state_dict())
    counters = {f"{key.rpartition('.')[0]}.num_batches_tracked" for key in keys if "_var" in key}
    assert keys | counters == set(TorchMobileOne(model.arch).state_dict())
    torch.save(
        {k: torch.tensor(np.asarray(a)) for k, a in model.state_dict().items()}, tmp_path / "m.pth"
    )
    assert rr.load(tmp_path / "m.pth").name == name
    convert(tmp_path / "m.pth", tmp_path / "m.npz")
    fused = rr.load(tmp_path / "m.npz")
    assert (fused.name, fused.form) == (name, "deploy")
    gates = {"stage3.10.se.reduce.weight", "stage4.1.se.expand.bias"}
    assert gates <= set(fused.state_dict()) or name == "MobileOne-S1"
