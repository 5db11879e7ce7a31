"""Members of a pickled block without arrays: what its kind knows is read, any other leaves it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repvgg_ref.errors import CheckpointError
from repvgg_ref.files.convert_modules import convert_modules

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from tests.peers.family_composed import COMPOSED, Ecb, Orepa  # noqa: E402
from tests.peers.family_modules import PLAIN, drawn  # noqa: E402
from tests.peers.impulses import response  # noqa: E402
from tests.peers.test_family_torch import arrays_of, dense  # noqa: E402
from tests.peers.whole_modules import Sequential, written  # noqa: E402

pytestmark = pytest.mark.peers
BLOCKS = PLAIN | COMPOSED


class OREPA(Orepa):
    """Under its published name, by which it is known inside another block."""


class Identity(nn.Identity):  # type: ignore[misc]
    """Called as torch's, which negates."""

    def forward(self, x: Any) -> Any:
        return -x


def _put(path: str, make: Callable[[], Any]) -> Callable[[Any], None]:
    """Put a new module in the place of a member."""

    def change(block: Any) -> None:
        parent, _, last = path.rpartition(".")
        setattr(block.get_submodule(parent), last, make())

    return change


def _average(block: Any) -> None:
    """Zeros around the average, in the place of what the batch norm makes of them."""
    block.dbb_avg.bn.pad_pixels, block.dbb_avg.avg = 0, nn.AvgPool2d(3, 1, 1)


def _unpadded(block: Any) -> None:
    block.dbb_avg.bn.pad_pixels = 0


def _moved(block: Any) -> None:
    block.dbb_1x1_kxk.conv2.padding = (1, 1)


def _strided(block: Any) -> None:
    block.dbb_avg.conv.stride = (2, 2)


def _listed(block: Any) -> None:
    block.rbr_conv.append(nn.Identity())


def _ours(block: Any) -> None:
    """The parts of a branch in a container of a class of the user's."""
    block.rbr_1x1 = Sequential(*block.rbr_1x1.children())
    named = dict(zip(("conv", "bn"), list(block.rbr_1x1._modules.values()), strict=True))
    block.rbr_1x1._modules = named


def _further(block: Any) -> None:
    block.conv1.scale = nn.Parameter(torch.ones(1))


Pool, Same = nn.AvgPool2d, nn.Identity
# A block, what becomes of a member of it, and where and why it is left.
MISREAD: dict[str, tuple[str, Callable[[Any], None], str]] = {
    "border not counted": (
        "dbb depthwise",
        _put("dbb_avg.avg", lambda: Pool(3, 1, 1, count_include_pad=False)),
        "dbb_avg.avg, .* its border is averaged otherwise",
    ),
    "another divisor": (
        "dbb",
        _put("dbb_avg.avg", lambda: Pool(3, 1, 0, divisor_override=5)),
        "dbb_avg.avg, .* its border is averaged otherwise",
    ),
    "a maximum": ("dbb", _put("dbb_avg.avg", lambda: nn.MaxPool2d(3, 1, 0)), "is no average"),
    "no average": ("dbb", _put("dbb_avg.avg", lambda: None), "its dbb_avg.avg is no average"),
    "a smaller average": ("dbb", _put("dbb_avg.avg", lambda: Pool(1, 1, 0)), "avg reads otherwise"),
    "zeros around the average": ("dbb", _average, "dbb_avg.avg reads otherwise"),
    "no border": ("dbb", _unpadded, "dbb_avg.bn reads otherwise"),
    "a padded second convolution": ("dbb", _moved, "conv2 reads otherwise"),
    "a stride before the average": ("dbb", _strided, "dbb_avg.conv reads otherwise"),
    "mobileone's skip": ("mobileone", _put("rbr_skip", Same), "no mobileone has such a part"),
    "mobileone's scale": ("mobileone", _put("rbr_scale", Same), "no mobileone has such a part"),
    "one of the copies": ("mobileone", _listed, "it stands among branches that are summed"),
    "lcnet's identity": ("lcnet", _put("identity", Same), "no pp-lcnet-v3 has such a part"),
    "an identity": ("yolov6", _put("rbr_identity", Same), "no yolov6 has such a part"),
    "an activation": ("yolov6", _put("rbr_identity", nn.ReLU), "no yolov6 has such a part"),
    "an average": (
        "yolov6",
        _put("rbr_identity", lambda: Pool(3, 1, 1)),
        "rbr_identity, .* no yolov6 has such a part",
    ),
    "a batch norm, deeper": (
        "yolov6",
        _put("rbr_identity", lambda: nn.Sequential(nn.BatchNorm2d(6))),
        "no yolov6 has such a part",
    ),
    "another branch": (
        "yolov6",
        _put("rbr_more", lambda: nn.Conv2d(6, 6, 1)),
        "no yolov6 has such a part",
    ),
    "a 1x1 branch that is x": ("yolov6", _put("rbr_1x1", Same), "no yolov6 has such a part"),
    "RepConv's batch norm": ("yolov9", _put("bn", Same), "no yolov9 has such a part"),
    "a mixer's identity": (
        "repmixer timm",
        _put("mixer.identity", Same),
        "it stands among branches that are summed",
    ),
    "repghost's second branch": (
        "repghost",
        _put("fusion_bn.1", Same),
        "it stands among branches that are summed",
    ),
    "a container of the user's": ("yolov6", _ours, "a container of a class that may compute"),
    "an identity of the user's": (
        "yolov6",
        _put("rbr_1x1.drop", Identity),
        "it stands in a branch of a block",
    ),
    "an array of a branch": ("rtdetr", _further, "it has an array that no such block has"),
}


@pytest.mark.parametrize("case", MISREAD)
def test_a_member_that_the_kind_has_not_leaves_the_block(case: str, tmp_path: Path) -> None:
    name, change, why = MISREAD[case]
    block = drawn(BLOCKS[name][1], seed=3)
    change(block)
    model = nn.Sequential(block.double(), drawn(PLAIN["ppyoloe"][1], seed=4))
    done = convert_modules(written(tmp_path, model), tmp_path / "out.npz", "npz")
    # A mixer is a block by itself, too, whose own part may be fused.
    assert "0." not in [each.prefix for each in done.blocks]
    assert "1." in [each.prefix for each in done.blocks]
    assert any(re.search(f"left as it is: 0: .*{why}", note) for note in done.notes), done.notes
    found = arrays_of(tmp_path / "out.npz")
    first = next(iter(block.state_dict()))
    np.testing.assert_array_equal(found[f"0.{first}"], block.state_dict()[first].numpy())


def require_right(folder: Path, block: Any, fused: str, channels: int) -> None:
    """Fused as impulses through the block say."""
    behind = {name: getattr(block, name, None) for name in ("act", "nonlinear", "se")}
    convert_modules(written(folder, nn.Sequential(block)), folder / "out.npz", "npz")
    arrays = arrays_of(folder / "out.npz")
    for name in (name for name, part in behind.items() if part is not None):
        setattr(block, name, nn.Identity())
    weight, bias = (arrays[f"0.{fused}.{part}"] for part in ("weight", "bias"))
    kernel, offset = (each.numpy() for each in response(block, channels, weight.shape[2] // 2))
    room = 1e-12 * float(np.abs(kernel).max())
    np.testing.assert_allclose(dense(weight, channels), kernel, rtol=0, atol=room, equal_nan=False)
    room = 1e-12 * max(1, float(np.abs(offset).max()))
    np.testing.assert_allclose(bias, offset, rtol=0, atol=room, equal_nan=False)


@pytest.mark.parametrize("act", [lambda: nn.PReLU(6), nn.ReLU, nn.Identity])
@pytest.mark.parametrize("name", ["yolov6", "yolov9", "rtdetr", "dbb", "ecbsr", "acb"])
def test_an_activation_behind_the_sum_is_none_of_the_branches(
    name: str, act: Callable[[], Any], tmp_path: Path
) -> None:
    """Whatever it is: it stays, and reads what the fused convolution makes."""
    block = drawn(BLOCKS[name][1], seed=5)
    block.act, block.nonlinear, block.se = act().double(), nn.Identity(), nn.Identity()
    channels = next(m.in_channels for m in block.modules() if isinstance(m, nn.Conv2d))
    require_right(tmp_path, block, BLOCKS[name][2], channels)


@pytest.mark.parametrize(
    ("name", "channels"),
    [("orepa", 4), ("orepa grouped", 4), ("orepa 1x1", 4), ("orepa repvgg", 6)],
)
def test_a_kernel_made_of_arrays_is_read_with_its_modules_settings(
    name: str, channels: int, tmp_path: Path
) -> None:
    block = drawn(BLOCKS[name][1], seed=6)
    if name == "orepa repvgg":
        block.rbr_dense.__class__ = OREPA
        block.rbr_dense.nonlinear = nn.Identity()
    require_right(tmp_path, block, BLOCKS[name][2], channels)


def test_a_kernels_class_inside_a_block_is_known_by_its_name(tmp_path: Path) -> None:
    block = drawn(BLOCKS["orepa repvgg"][1], seed=6)
    with pytest.raises(CheckpointError, match="a kernel's class that may compute another thing"):
        convert_modules(written(tmp_path, block), tmp_path / "out.npz", "npz")


class Skipping(Ecb):
    """ECBSR's block as it is published: its attribute says whether it adds its input."""

    with_idt = False

    def forward(self, x: Any) -> Any:
        return super().forward(x) + x if self.with_idt else super().forward(x)


@pytest.mark.parametrize("adds", [True, False])
def test_ecbsrs_identity_is_told_by_its_attribute(adds: bool, tmp_path: Path) -> None:
    block = drawn(lambda: Skipping(6, 6), seed=7)
    block.with_idt = adds
    require_right(tmp_path, block, "conv3x3", 6)


def test_a_layer_scale_that_is_an_identity_is_none(tmp_path: Path) -> None:
    """timm has one where it has no scale."""
    block = drawn(COMPOSED["repmixer timm"][1], seed=8)
    block.layer_scale, block.scale = nn.Identity(), None
    require_right(tmp_path, block, "reparam_conv", 6)
