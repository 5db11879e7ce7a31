"""Files of the family, fused where they stand, against impulses through the published modules."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weights_io
from repvgg_ref.blocks.family import FAMILY
from repvgg_ref.errors import CheckpointError
from repvgg_ref.files.convert_modules import ModulesConversion, convert_modules
from repvgg_ref.oracle.families.family import judge_family

torch = pytest.importorskip("torch")

from tests.peers.family_composed import COMPOSED  # noqa: E402
from tests.peers.family_modules import PLAIN, drawn  # noqa: E402
from tests.peers.impulses import response  # noqa: E402

pytestmark = pytest.mark.peers
BLOCKS = PLAIN | COMPOSED


def arrays_of(path: Path) -> dict[str, Any]:
    with weights_io.open_weights(path) as archive:
        assert isinstance(archive.root, dict)
        return {name: array.read() for name, array in archive.root.items()}


def converted(folder: Path, state: Any, **options: Any) -> tuple[ModulesConversion, dict[str, Any]]:
    source, target = folder / "train.pth", folder / "fused.pth"
    torch.save(state, source)
    done = convert_modules(source, target, "pth", **options)
    return done, arrays_of(target)


def dense(weight: Any, channels: int) -> Any:
    """A grouped kernel as one of all channels."""
    outputs, per_group = weight.shape[:2]
    groups = channels // per_group
    whole = np.zeros((outputs, channels, *weight.shape[2:]))
    for o in range(outputs):
        first = o // (outputs // groups) * per_group
        whole[o, first : first + per_group] = weight[o]
    return whole


@pytest.mark.parametrize("case", BLOCKS)
@pytest.mark.parametrize("prefix", ["", "model.7.m.0."])
def test_a_block_is_fused_to_what_impulses_through_it_give(
    case: str, prefix: str, tmp_path: Path
) -> None:
    kind, build, fused = BLOCKS[case]
    module = drawn(build, seed=len(case))
    state = {prefix + name: value for name, value in module.state_dict().items()}
    state["other.weight"] = torch.randn(3, 3)
    norms = [m.eps for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    eps = norms[0] if norms else 0.0
    done, arrays = converted(tmp_path, state, eps=eps if kind == "yolov6" else None)
    assert [(b.member.name, b.eps) for b in done.blocks] == [(kind, eps)]
    start = f"{prefix}{fused}".rstrip(".")
    weight, bias = arrays[f"{start}.weight".lstrip(".")], arrays[f"{start}.bias".lstrip(".")]
    channels = done.blocks[0].linear.in_channels
    kernel, offset = response(module, channels, weight.shape[2] // 2)
    scale = float(kernel.abs().max())
    told, room = dense(weight, channels), 1e-11 * scale
    np.testing.assert_allclose(told, kernel.numpy(), rtol=0, atol=room, equal_nan=False)
    size = max(1, float(offset.abs().max()))
    np.testing.assert_allclose(bias, offset.numpy(), rtol=0, atol=1e-11 * size, equal_nan=False)
    outer = FAMILY[kind].outer
    kept = {name for name in state if outer and name.startswith(f"{prefix}{outer}.")}
    names = {f"{start}.weight".lstrip("."), f"{start}.bias".lstrip("."), "other.weight"}
    assert set(arrays) == names | kept
    np.testing.assert_array_equal(arrays["other.weight"], state["other.weight"].numpy())


def test_many_kinds_in_one_file_are_fused_each_in_its_place(tmp_path: Path) -> None:
    state: dict[str, Any] = {"stem.weight": torch.randn(2, 2).half()}
    for place, (_, build, _) in enumerate(BLOCKS.values()):
        module = drawn(build, seed=place)
        for name, value in module.state_dict().items():
            state[f"net.{place}.{name}"] = value.float() if value.is_floating_point() else value
        state[f"between.{place}"] = torch.tensor([place])
    done, arrays = converted(tmp_path, state)
    assert sorted(b.member.name for b in done.blocks) == sorted(
        kind for kind, *_ in BLOCKS.values()
    )
    assert arrays["stem.weight"].dtype == np.float16
    between = [name for name in arrays if name.startswith("between")]
    assert between == [f"between.{place}" for place in range(len(BLOCKS))]
    places = [int(name.split(".")[1]) for name in arrays if name != "stem.weight"]
    assert places == sorted(places)
    assert any("1e-05" in note or "eps" in note for note in done.notes)


def test_taps_are_the_correctly_rounded_exact_values(tmp_path: Path) -> None:
    """Of a block whose roots are rational, so that exact arithmetic is at hand."""
    state = drawn(BLOCKS["rtdetr"][1], seed=3).float().state_dict()
    for norm in ("conv1.norm", "conv2.norm"):
        state[f"{norm}.running_var"].fill_(0.25)
    _, arrays = converted(tmp_path, state, eps=0.0)
    exact = {name: np.vectorize(Fraction, [object])(a.double()) for name, a in state.items()}
    kernel = 2 * exact["conv1.norm.weight"][:, None, None, None] * exact["conv1.conv.weight"]
    point = 2 * exact["conv2.norm.weight"][:, None] * exact["conv2.conv.weight"][:, :, 0, 0]
    kernel[:, :, 1, 1] += point
    found = arrays["conv.weight"]
    for neighbour in (-np.inf, np.inf):
        other = np.nextafter(found, np.float32(neighbour))
        mine, theirs = (
            np.abs(np.vectorize(Fraction, [object])(x.astype(float)) - kernel)
            for x in (found, other)
        )
        assert (mine <= theirs).all()


def test_branches_beside_their_fused_convolution_are_left_out_and_never_added(
    tmp_path: Path,
) -> None:
    module = drawn(BLOCKS["rtdetr"][1], seed=1)
    state = dict(module.state_dict())
    state["conv.weight"], state["conv.bias"] = torch.randn(6, 6, 3, 3), torch.randn(6)
    done, arrays = converted(tmp_path, state)
    assert set(arrays) == {"conv.weight", "conv.bias"}
    np.testing.assert_array_equal(arrays["conv.weight"], state["conv.weight"].numpy())
    assert any("beside" in note for note in done.notes)


@pytest.mark.parametrize("damage", ["conv2.norm.running_var", "conv1.conv.weight"])
def test_a_block_that_lacks_an_array_is_named(tmp_path: Path, damage: str) -> None:
    state = dict(drawn(BLOCKS["rtdetr"][1], seed=1).state_dict())
    del state[damage]
    with pytest.raises(weights_io.ReportedError, match="nearest: the file's root"):
        converted(tmp_path, state)


def test_convolutions_one_behind_the_other_are_no_block(tmp_path: Path) -> None:
    state = {}
    for name, shape in (("conv1", (6, 6, 3, 3)), ("conv2", (6, 6, 3, 3))):
        state[f"{name}.conv.weight"] = torch.randn(shape)
        for part in ("weight", "bias", "running_mean", "running_var"):
            state[f"{name}.bn.{part}"] = torch.rand(6)
    with pytest.raises(weights_io.ReportedError, match="no re-parameterisable block"):
        converted(tmp_path, state)


@pytest.mark.parametrize("case", BLOCKS)
def test_a_fused_file_agrees_and_one_without_a_branch_does_not(case: str, tmp_path: Path) -> None:
    _, build, _ = BLOCKS[case]
    module = drawn(build, seed=7).float()
    state = {f"m.{name}": value for name, value in module.state_dict().items()}
    state["other"] = torch.randn(4)
    done, arrays = converted(tmp_path, state)
    source, eps = tmp_path / "train.pth", done.blocks[0].eps
    report = judge_family(source, tmp_path / "fused.pth", eps=eps)
    assert report.verdict == "agree", report.reason
    fused = f"m.{BLOCKS[case][2]}".rstrip(".")
    wrong = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
    middle = wrong[f"{fused}.weight"].shape[2] // 2
    wrong[f"{fused}.weight"][1, 0, middle, middle] += 0.5
    torch.save(wrong, tmp_path / "wrong.pth")
    report = judge_family(source, tmp_path / "wrong.pth", eps=eps)
    assert (report.verdict, report.first_bad_layer) == ("disagree", "m")
    other = dict(arrays) | {"other": arrays["other"] + 1}
    torch.save({k: torch.from_numpy(np.asarray(a)) for k, a in other.items()}, tmp_path / "o.pth")
    report = judge_family(source, tmp_path / "o.pth", eps=eps)
    assert (report.verdict, report.first_bad_layer) == ("disagree", "other")


@pytest.mark.parametrize(
    "case",
    ["yolov6", "yolov9", "rtdetr", "ppyoloe", "lcnet", "acb", "repghost", "orepa repvgg"],
)
@pytest.mark.parametrize("bug", ["branch-missing", "eps-value"])
def test_what_converters_do_wrong_is_named(case: str, bug: str, tmp_path: Path) -> None:
    """Files fused as others fuse: without the last branch, or with another eps."""
    module = drawn(BLOCKS[case][1], seed=9).float()
    source, target = tmp_path / "train.pth", tmp_path / "fused.pth"
    torch.save(module.state_dict(), source)
    wanted = {"yolov6": 1e-3}.get(case)
    if bug == "eps-value":
        convert_modules(source, target, "pth", eps=1e-2 if wanted is None else 1e-6)
        report = judge_family(source, target, eps=1e-2 if wanted is None else wanted)
        assert report.verdict == ("agree" if wanted is None else "disagree")
        convert_modules(source, target, "pth", eps=1e-6)
        report = judge_family(source, target, eps=1e-3)
    else:
        kernels = [m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        silent = {k: v.clone() for k, v in module.state_dict().items()}
        name = next(n for n, m in module.named_modules() if m is kernels[-1])
        silent[f"{name}.weight"].zero_()
        silent[f"{name}.bias"].zero_()
        torch.save(silent, tmp_path / "silent.pth")
        convert_modules(tmp_path / "silent.pth", target, "pth", eps=1e-3)
        report = judge_family(source, target, eps=1e-3)
    assert report.verdict == "disagree"
    assert bug in {finding.bug for finding in report.diagnosis}, report.diagnosis


@pytest.mark.parametrize("case", ["rtdetr", "yolov6", "yolov7", "ppyoloe", "mobileone", "acb"])
def test_biases_before_batch_norms_are_fused_or_the_block_is_left(
    case: str, tmp_path: Path
) -> None:
    """People train blocks whose convolutions have a bias, which no published code has."""
    _, build, fused = BLOCKS[case]
    module = drawn(build, seed=5)
    for layer in module.modules():
        if isinstance(layer, torch.nn.Conv2d) and layer.bias is None:
            layer.bias = torch.nn.Parameter(torch.randn(layer.out_channels, dtype=torch.float64))
    torch.save({f"m.{k}": v for k, v in module.state_dict().items()}, tmp_path / "biased.pth")
    eps = next(n.eps for n in module.modules() if isinstance(n, torch.nn.BatchNorm2d))
    done = convert_modules(tmp_path / "biased.pth", tmp_path / "out.npz", "npz", eps=eps)
    arrays = arrays_of(tmp_path / "out.npz")
    place = f"m.{fused}".rstrip(".")
    assert set(arrays) == {f"{place}.weight", f"{place}.bias"}
    (block,) = done.blocks
    x = torch.randn(2, block.conv.in_channels, 9, 8, dtype=torch.float64)
    wanted = module(x).detach().numpy()
    got = torch.nn.functional.conv2d(
        x,
        torch.from_numpy(arrays[f"{place}.weight"]),
        torch.from_numpy(arrays[f"{place}.bias"]),
        padding=block.conv.padding,
        groups=block.conv.groups,
    ).numpy()
    assert np.abs(got - wanted).max() < 1e-12 * np.abs(wanted).max()


def test_a_bias_of_the_kernel_that_fusion_would_replace_leaves_the_block(tmp_path: Path) -> None:
    """UniRepLKNet's fused kernel has the name of its large one: no key tells which it is."""
    build = next(build for kind, build, _ in BLOCKS.values() if kind == "unireplknet")
    state = drawn(build, seed=5).state_dict()
    state["lk_origin.bias"] = torch.zeros(len(state["lk_origin.weight"]))
    torch.save(state, tmp_path / "mixed.pth")
    with pytest.raises(CheckpointError, match="no key tells"):
        convert_modules(tmp_path / "mixed.pth", tmp_path / "out.npz", "npz")
