"""One network under the names of four code bases: its deploy weights must be the same bits.

The mappings below were written by hand from those code bases' layer names, not from
`repvgg_ref.files.dialects`.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.arrays import Array
from repvgg_ref.files.convert import convert
from repvgg_ref.models.architectures import architecture, plain_architecture
from repvgg_ref.models.graph import Network
from tests.random_networks import random_model

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.peers

State = dict[str, Array]

NETWORKS = {
    "A0": architecture("RepVGG-A0", num_classes=10),
    "grouped": plain_architecture(depths=(3, 4), channels=(8, 8, 16), groups=4, num_classes=5),
    "with SE": plain_architecture(
        depths=(2, 2), channels=(32, 32, 64), se="before_relu", num_classes=5
    ),
}

TIMM = [
    (r"^stage0\.", "stem."),
    (r"^stage1\.", "stages.0."),
    (r"^stage2\.", "stages.1."),
    (r"^stage3\.", "stages.2."),
    (r"^stage4\.", "stages.3."),
    (r"\.rbr_dense\.conv\.", ".conv_kxk.conv."),
    (r"\.rbr_dense\.bn\.", ".conv_kxk.bn."),
    (r"\.rbr_1x1\.conv\.", ".conv_1x1.conv."),
    (r"\.rbr_1x1\.bn\.", ".conv_1x1.bn."),
    (r"\.rbr_identity\.", ".identity."),
    (r"\.rbr_reparam\.", ".reparam_conv."),
    (r"\.se\.down\.", ".attn.fc1."),
    (r"\.se\.up\.", ".attn.fc2."),
    (r"^linear\.", "head.fc."),
]
MMPRETRAIN = [
    (r"^stage0\.", "backbone.stem."),
    (r"^stage(\d)\.", r"backbone.stage_\1."),
    (r"\.rbr_dense\.conv\.", ".branch_3x3.conv."),
    (r"\.rbr_dense\.bn\.", ".branch_3x3.norm."),
    (r"\.rbr_1x1\.conv\.", ".branch_1x1.conv."),
    (r"\.rbr_1x1\.bn\.", ".branch_1x1.norm."),
    (r"\.rbr_identity\.", ".branch_norm."),
    (r"\.rbr_reparam\.", ".branch_reparam."),
    (r"\.se\.down\.", ".se_layer.conv1.conv."),
    (r"\.se\.up\.", ".se_layer.conv2.conv."),
    (r"^linear\.", "head.fc."),
]
MEGENGINE = [
    (r"\.se\.down\.", ".se.f_ex.0."),
    (r"\.se\.up\.", ".se.f_ex.2."),
    (r"^linear\.", "head.fc."),
]


def _renamed(state: State, rules: list[tuple[str, str]]) -> State:
    renamed = {}
    for name, array in state.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = array
    return renamed


def _write(dialect: str, arch: Network, state: State, folder: Path) -> Path:
    path = folder / f"{dialect}.weights"
    if dialect == "megengine":
        shaped = {n: _as_megengine(n, a, arch) for n, a in state.items()}
        shaped = {n: a for n, a in shaped.items() if not n.endswith("num_batches_tracked")}
        path.write_bytes(pickle.dumps(_renamed(shaped, MEGENGINE), protocol=4))
        return path
    rules = {"official": [], "timm": TIMM, "mmpretrain": MMPRETRAIN}[dialect]
    tensors: Any = {n: torch.from_numpy(a) for n, a in _renamed(state, rules).items()}
    wrapped = (
        {"state_dict": tensors, "meta": {"epoch": 100}} if dialect == "mmpretrain" else tensors
    )
    torch.save(wrapped, path)
    return path


def _as_megengine(name: str, array: Array, arch: Network) -> Array:
    """Vectors of layers (1, C, 1, 1); grouped kernels (G, O/G, C/G, K, K)."""
    if array.ndim == 1 and not name.startswith("linear"):
        return array.reshape(1, -1, 1, 1)
    groups = arch.block(name.split(".rbr_")[0]).groups if ".rbr_" in name else 1
    if array.ndim == 4 and groups > 1:
        return array.reshape(groups, -1, *array.shape[1:])
    return array


@pytest.mark.parametrize("form", ["train", "deploy"])
@pytest.mark.parametrize("dialect", ["official", "timm", "mmpretrain", "megengine"])
@pytest.mark.parametrize("arch", NETWORKS.values(), ids=NETWORKS.keys())
def test_dialects_give_the_same_bits(
    arch: Network, dialect: str, form: str, tmp_path: Path
) -> None:
    train = random_model(arch, seed=3)
    want = rr.fuse(train).state_dict()
    stored = train.state_dict() if form == "train" else want
    path = _write(dialect, arch, stored, tmp_path)
    done = convert(path, tmp_path / "deploy.npz")
    assert (done.dialect, done.form) == (dialect, form)
    got = rr.load(tmp_path / "deploy.npz").state_dict()
    assert list(got) == list(want)
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array, strict=True)
