"""The composed kinds of the family: what their fusers do wrong, borders, parts, deploy forms."""

from __future__ import annotations

from pathlib import Path

import pytest

import weights_io
from repvgg_ref.files.convert_modules import convert_modules
from repvgg_ref.files.modules import find_blocks
from repvgg_ref.oracle.families.family import judge_family

torch = pytest.importorskip("torch")

from tests.peers.family_composed import COMPOSED  # noqa: E402
from tests.peers.family_modules import PLAIN, drawn  # noqa: E402
from tests.peers.test_family_torch import converted  # noqa: E402

pytestmark = pytest.mark.peers
BLOCKS = PLAIN | COMPOSED


@pytest.mark.parametrize(
    ("case", "silent", "value", "bug", "where"),
    [
        ("repmixer", "norm.rbr_skip.", 0, "branch-missing", "the identity's batch norm"),
        ("repmixer", "norm.rbr_skip.", -1, "sign-lost", "the identity's batch norm"),
        ("repmixer timm", "layer_scale.gamma", None, "scale-ignored", "layer_scale.gamma"),
        ("repghost", "cheap_operation.1.", 0, "branch-missing", "cheap_operation.0"),
        ("orepa", "weight_orepa_gconv_pw", 0, "branch-missing", "gconv"),
        ("orepa grouped", "vector", None, "leaf-ignored", "vector is one"),
        ("ecbsr", "conv1x1_lpl.scale", None, "scale-ignored", "conv1x1_lpl.scale"),
        ("ecbsr wider", "conv1x1_3x3.b0", 0, "bias-missing", "conv1x1_3x3.0"),
        ("ecbsr wider", "conv1x1_sbx.k0", 0, "leaf-zeroed", "conv1x1_sbx.k0 is zero"),
        ("ecbsr wider", "conv1x1_sbx.k0", 2, "unknown", "weights differ"),
    ],
)
def test_what_fusers_of_the_composed_kinds_do_wrong_is_named(
    case: str, silent: str, value: int | None, bug: str, where: str, tmp_path: Path
) -> None:
    """`silent` times `value` is what the fuser took for it; None: ones."""
    state = drawn(BLOCKS[case][1], seed=11).float().state_dict()
    wrong = {key: array.clone() for key, array in state.items()}
    for key in [key for key in wrong if key.startswith(silent)]:
        if not key.endswith(("running_mean", "running_var", "tracked")):
            wrong[key] = torch.ones_like(wrong[key]) if value is None else value * wrong[key]
    torch.save(wrong, tmp_path / "silent.pth")
    torch.save(state, tmp_path / "train.pth")
    convert_modules(tmp_path / "silent.pth", tmp_path / "fused.pth", "pth")
    report = judge_family(tmp_path / "train.pth", tmp_path / "fused.pth")
    assert report.verdict == "disagree"
    (found,) = report.diagnosis
    assert (found.bug, where in found.says) == (bug, True), found


def test_ecbsr_is_exact_at_the_border(tmp_path: Path) -> None:
    """The published code pads with the bias, so the fused convolution equals it everywhere."""
    module = drawn(BLOCKS["ecbsr wider"][1], seed=2)
    _, arrays = converted(tmp_path, module.state_dict())
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    with torch.no_grad():
        want = module(x)
    weight, bias = (torch.tensor(arrays[f"conv3x3.{end}"]) for end in ("weight", "bias"))
    got = torch.nn.functional.conv2d(x, weight, bias, padding=1)
    assert not float((got - want).abs().max()) > 1e-12 * float(want.abs().max())


def test_a_token_mixer_inside_another_block_is_fused_once(tmp_path: Path) -> None:
    """Its mixer alone looks like a MobileOne block; one that stands for itself is one."""
    state = {
        f"a.token_mixer.{k}": v for k, v in drawn(BLOCKS["repmixer"][1], 1).state_dict().items()
    }
    state |= {f"a.mixer.{k}": v for k, v in drawn(BLOCKS["mobileone"][1], 2).state_dict().items()}
    done, _ = converted(tmp_path, state)
    found = {block.prefix: block.member.name for block in done.blocks}
    assert found == {"a.token_mixer.": "repmixer", "a.mixer.": "mobileone"}


def test_a_ghost_module_without_a_branch_beside_it_is_none_of_the_family(tmp_path: Path) -> None:
    state = drawn(BLOCKS["repghost"][1], seed=1).state_dict()
    ghost = {key: array for key, array in state.items() if "fusion" not in key}
    with pytest.raises(weights_io.ReportedError, match="no re-parameterisable block"):
        converted(tmp_path, ghost)


@pytest.mark.parametrize("case", ["repmixer", "repghost", "orepa", "orepa 1x1"])
def test_composed_branches_beside_their_fused_convolution_are_left_out(
    case: str, tmp_path: Path
) -> None:
    fused = BLOCKS[case][2]
    state = {f"m.{k}": v for k, v in drawn(BLOCKS[case][1], seed=1).state_dict().items()}
    _, made = converted(tmp_path, state)
    kept = {key: torch.tensor(made[key]) for key in (f"m.{fused}.weight", f"m.{fused}.bias")}
    done, arrays = converted(tmp_path, state | kept)
    assert set(arrays) == set(kept)
    assert [block.is_fused for block in done.blocks] == [True]
    with pytest.raises(weights_io.ReportedError, match="fused already"):
        converted(tmp_path, kept)


@pytest.mark.parametrize("case", ["ecbsr", "qarepvgg"])
def test_an_identity_that_no_key_tells_leaves_the_verdict_open(case: str, tmp_path: Path) -> None:
    """ECBSR's may be there; QARepVGG's may not, in a block with a stride."""
    state = drawn(BLOCKS[case][1], seed=3).float().state_dict()
    _, arrays = converted(tmp_path, state)
    fused = f"{BLOCKS[case][2]}.weight"
    other = {key: torch.tensor(array) for key, array in arrays.items()}
    for channel in range(6):
        other[fused][channel, channel, 1, 1] += 1 if case == "ecbsr" else -1
    torch.save(other, tmp_path / "other.pth")
    report = judge_family(tmp_path / "train.pth", tmp_path / "other.pth")
    assert report.verdict == "cannot-judge"
    assert "no key tells" in report.reason
    other[fused][0, 1, 0, 0] += 1
    torch.save(other, tmp_path / "wrong.pth")
    assert judge_family(tmp_path / "train.pth", tmp_path / "wrong.pth").verdict == "disagree"


@pytest.mark.parametrize("case", BLOCKS)
def test_a_block_with_one_array_of_another_shape_is_none(case: str) -> None:
    """Whatever the shape, nothing is raised; but for a part that is a smaller block by itself."""
    kind = BLOCKS[case][0]
    state = drawn(BLOCKS[case][1], seed=1).state_dict()
    shapes = {f"m.{key}": tuple(array.shape) for key, array in state.items()}
    (block,) = find_blocks(shapes).found
    assert block.member.name == kind
    for key in block.names.values():
        shape = shapes[key]
        for other in ((), (0,), (7,), shape[1:], (*shape, 1), (0, *shape[1:]), (*shape[:-1], 2)):
            found = find_blocks(shapes | {key: other}).found
            numbers = not shape or shape == (1,)  # one number, in any shape
            assert numbers or all(each.member.name != kind for each in found), (key, other)
