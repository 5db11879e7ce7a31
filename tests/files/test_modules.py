"""Files of the family without torch: found, fused, refused; and the page that lists the kinds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from repvgg_ref_cli.pages import read_page

import weights_io
from repvgg_ref.blocks.family import FAMILY
from repvgg_ref.errors import CheckpointError
from repvgg_ref.files.modules import find_blocks
from tests.cli.formats_page import require_documented
from tests.cli.runner import invoke, save_small
from tests.cli.test_pages import programs
from weights_io import archive
from weights_io import source as sources


def norm(rng: Any, name: str, channels: int) -> dict[str, Any]:
    made = {
        f"{name}.weight": rng.normal(size=channels),
        f"{name}.bias": rng.normal(size=channels),
        f"{name}.running_mean": rng.normal(size=channels),
        f"{name}.running_var": rng.uniform(0.5, 2, channels),
    }
    return {key: array.astype(np.float32) for key, array in made.items()}


@pytest.mark.parametrize(
    ("wide", "other"),
    [
        ("rbr_dense", {"rbr_1x1.weight": (5, 4, 1, 1)}),
        ("rbr_dense", {"rbr_1x1.weight": (4, 4, 1, 1), "rbr_identity.weight": (4,)}),
        ("conv_kxk.0", {"conv_1x1.conv.weight": (4, 4, 3, 3)}),
    ],
)
def test_a_branch_that_no_kind_knows_is_never_left_out(
    wide: str, other: dict[str, tuple[int, ...]]
) -> None:
    """A block of a richer kind that is damaged is not taken for one without that branch."""
    shapes: dict[str, tuple[int, ...]] = {f"a.{wide}.conv.weight": (4, 4, 3, 3)}
    for part in ("weight", "bias", "running_mean", "running_var"):
        shapes[f"a.{wide}.bn.{part}"] = (4,)
    assert [block.prefix for block in find_blocks(shapes).found] == ["a."]
    shapes |= {f"a.{name}": shape for name, shape in other.items()}
    assert not find_blocks(shapes).found


def branches(prefix: str, named: dict[str, int], *norms: str) -> dict[str, tuple[int, ...]]:
    """Shapes of convolutions of these kernels, `.conv` and `.bn` each, and of more batch norms."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, k in named.items():
        shapes[f"{prefix}.{name}.conv.weight"] = (4, 4, k, k)
    for name in (*(f"{each}.bn" for each in named), *norms):
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{prefix}.{name}.{part}"] = (4,)
    return shapes


COPIES = {"rbr_conv.0": 3, "rbr_conv.1": 3, "rbr_conv.2": 3, "rbr_scale": 1}
WHOLE = {
    "yolov9": branches("m.3", {"conv1": 3, "conv2": 1}, "bn"),
    "yolov6": branches("m.3", {"rbr_dense": 3, "rbr_1x1": 1}, "rbr_identity"),
    "mobileone": branches("m.3", COPIES, "rbr_skip"),
}


@pytest.mark.parametrize(
    ("kind", "gone", "named"),
    [
        ("yolov9", "conv2.bn.bias", "conv2.bn.bias"),
        ("yolov9", "conv1.bn.running_var", "conv1.bn.running_var"),  # by which it is found
        ("yolov9", "bn.weight", "bn.weight"),
        ("yolov6", "rbr_1x1.bn.running_var", "rbr_1x1.bn.running_var"),
        ("yolov6", "rbr_identity.bias", "rbr_identity.bias"),
        ("mobileone", "rbr_conv.1.", "rbr_conv.1.conv.weight, rbr_conv.1.bn.weight"),
        ("mobileone", "rbr_conv.0.", "rbr_conv.0.conv.weight, rbr_conv.0.bn.weight"),
        ("mobileone", "rbr_skip.running_mean", "rbr_skip.running_mean"),
    ],
)
def test_of_a_broken_block_the_kind_is_named_and_what_it_lacks(
    kind: str, gone: str, named: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Alone it is the error; beside a good one it is left, which `convert` and `inspect` say."""
    whole = {key: np.ones(shape, np.float32) for key, shape in WHOLE[kind].items()}
    assert [block.member.name for block in find_blocks(WHOLE[kind]).found] == [kind]
    broken = {key: array for key, array in whole.items() if not key[4:].startswith(gone)}
    assert len(broken) < len(whole)
    says, out = f"m.3: {kind} without {named}", tmp_path / "fused.npz"
    source = saved(tmp_path, broken)
    refused = invoke(capsys, "convert", "--in", source, "--out", out)
    assert refused.code == 2
    assert f"nearest: {says}" in refused.error_line()
    assert f"left as it is: {says}" in " ".join(invoke(capsys, "inspect", source).out.split())
    assert not out.exists()
    good = {f"a.{key}": array for key, array in whole.items()}
    both = saved(tmp_path, {**broken, **good})
    done = invoke(capsys, "convert", "--in", both, "--out", out)
    assert f"left as it is: {says}" in done.out
    with np.load(out) as fused:
        assert set(broken) < set(fused.files)
        assert not set(good) & set(fused.files)
    assert f"left as it is: {says}" in " ".join(invoke(capsys, "inspect", both).out.split())


def test_what_is_no_block_when_whole_lacks_nothing() -> None:
    """A residual block beside others has batch norms without arrays, too."""
    shapes = branches("layer1.0", {"conv1": 3, "conv2": 3})
    del shapes["layer1.0.conv2.bn.bias"]
    found = find_blocks(shapes | WHOLE["yolov6"])
    assert [block.prefix for block in found.found] == ["m.3."]
    assert not found.left


def detector(seed: int = 0) -> dict[str, Any]:
    """Two blocks of RT-DETR's kind between other arrays."""
    rng = np.random.default_rng(seed)
    state = {"stem.weight": rng.normal(size=(4, 3, 3, 3)).astype(np.float16)}
    for place in (0, 1):
        for branch, k in (("conv1", 3), ("conv2", 1)):
            name = f"neck.{place}.{branch}"
            state[f"{name}.conv.weight"] = rng.normal(size=(4, 4, k, k)).astype(np.float32)
            state |= norm(rng, f"{name}.norm", 4)
        state[f"neck.{place}.after"] = np.array([place], np.int64)
    return state


def by_hand(state: dict[str, Any], prefix: str, eps: float) -> tuple[Any, Any]:
    kernel, bias = np.zeros((4, 4, 3, 3)), np.zeros(4)
    for branch, middle in (("conv1", slice(None)), ("conv2", slice(1, 2))):
        part = {
            key: state[f"{prefix}.{branch}.norm.{key}"].astype(np.float64)
            for key in ("weight", "bias", "running_mean", "running_var")
        }
        t = part["weight"] / np.sqrt(part["running_var"] + eps)
        weight = state[f"{prefix}.{branch}.conv.weight"].astype(np.float64)
        kernel[:, :, middle, middle] += weight * t[:, None, None, None]
        bias += part["bias"] - part["running_mean"] * t
    return kernel, bias


def saved(folder: Path, state: dict[str, Any], name: str = "train.safetensors") -> Path:
    path = folder / name
    weights_io.save_weights(path, state, container="safetensors")
    return path


@pytest.mark.parametrize(
    "given",
    [("--dtype", "fp16"), ("--batch", 1), ("--block", "acb"), ("--strides", "stage1.0=1")],
    ids=lambda given: given[0],
)
def test_options_that_would_go_unheard_are_refused(
    given: tuple[str, object], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source, out = saved(tmp_path, detector()), tmp_path / "fused.npz"
    refused = invoke(capsys, "convert", "--in", source, "--out", out, *given)
    assert f"{given[0]} cannot be given here" in refused.error_line()
    assert not out.exists()
    invoke(capsys, "convert", "--in", source, "--out", out)
    refused = invoke(
        capsys, "verify", "--reference", source, "--candidate", out, "--precision", "fp16"
    )
    assert "--precision cannot be given here" in refused.error_line()


def test_a_detectors_blocks_are_fused_and_the_rest_is_as_it_was(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    state = detector()
    source, out = saved(tmp_path, state), tmp_path / "fused.npz"
    looked = invoke(capsys, "inspect", source, "--json").json()
    require_documented("inspect", [looked])
    done = invoke(capsys, "convert", "--in", source, "--out", out, "--json").json()
    require_documented("convert", [done])
    assert (done["form"], done["family"], done["untouched"]) == ("modules", "rtdetr", 3)
    assert done["blocks"] == looked["blocks"]
    assert done["blocks"][1] == {
        "prefix": "neck.1",
        "kind": "rtdetr",
        "eps": 1e-5,
        "fused": "neck.1.conv",
    }
    with np.load(out) as fused:
        names = [name for name in fused.files if name != "__metadata__"]
        assert names == [
            "stem.weight",
            *("neck.0.conv.weight", "neck.0.conv.bias", "neck.0.after"),
            *("neck.1.conv.weight", "neck.1.conv.bias", "neck.1.after"),
        ]
        assert fused["stem.weight"].dtype == np.float16
        for prefix in ("neck.0", "neck.1"):
            kernel, bias = by_hand(state, prefix, 1e-5)
            np.testing.assert_array_equal(fused[f"{prefix}.conv.weight"], kernel.astype("f4"))
            np.testing.assert_allclose(fused[f"{prefix}.conv.bias"], bias, rtol=2e-7, atol=1e-7)
    judged = invoke(capsys, "verify", "--reference", source, "--candidate", out, "--json")
    assert (judged.code, judged.json()["verdict"]) == (0, "agree")
    shown = invoke(capsys, "convert", "--in", source, "--out", out)
    assert "2 blocks (rtdetr)" in shown.out


def test_a_fused_file_that_lost_a_branch_is_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    state = detector()
    wrong = {key: a for key, a in state.items() if ".conv1." not in key and ".conv2." not in key}
    for prefix in ("neck.0", "neck.1"):
        silent = dict(state)
        if prefix == "neck.1":
            silent[f"{prefix}.conv2.norm.weight"] = np.zeros(4, np.float32)
            silent[f"{prefix}.conv2.norm.bias"] = np.zeros(4, np.float32)
        kernel, bias = by_hand(silent, prefix, 1e-5)
        wrong[f"{prefix}.conv.weight"] = kernel.astype(np.float32)
        wrong[f"{prefix}.conv.bias"] = bias.astype(np.float32)
    words = ["--reference", saved(tmp_path, state), "--candidate"]
    judged = invoke(capsys, "verify", *words, saved(tmp_path, wrong, "w.safetensors"), "--json")
    found = judged.json()
    assert (judged.code, found["first_bad_layer"]) == (1, "neck.1")
    assert found["diagnosis"][0]["bug"] == "branch-missing"
    assert "conv2" in found["diagnosis"][0]["says"]


def test_what_is_no_block_is_refused_with_the_nearest_kind(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    state = {key: a for key, a in detector().items() if "conv2.norm.bias" not in key}
    refused = invoke(capsys, "convert", "--in", saved(tmp_path, state), "--family", "rtdetr")
    assert "nearest: neck.0" in refused.error_line()
    refused = invoke(capsys, "convert", "--in", saved(tmp_path, detector()), "--family", "rtder")
    assert "did you mean rtdetr?" in refused.error_line()


def test_eps_that_no_key_tells_is_said() -> None:
    shapes = {
        "x.rbr_dense.conv.weight": (4, 4, 3, 3),
        **{f"x.rbr_dense.bn.{part}": (4,) for part in ("weight", "bias", "running_mean")},
        "x.rbr_dense.bn.running_var": (4,),
    }
    found = find_blocks(shapes)
    assert found.found[0].eps == 1e-5
    assert any("eps" in note for note in found.notes)
    told = {f"backbone.ERBlock_2.{key}": shape for key, shape in shapes.items()}
    assert find_blocks(told).found[0].eps == 1e-3
    assert not find_blocks(told).notes
    with pytest.raises(CheckpointError, match="no such kind"):
        find_blocks(shapes, family="yolo")


def test_the_page_lists_every_kind_as_the_catalogue_has_it() -> None:
    rows = re.findall(r"^\| `(\S+)` \| (.*?) \| (.*?) \| (.*?) \|$", read_page("family").text, re.M)
    assert rows == [
        (
            name,
            one.users,
            f"`{one.fused}`" if one.fused else "the prefix itself",
            " or ".join(f"{eps:g}" for eps in one.eps) or "none",
        )
        for name, one in FAMILY.items()
    ]


def test_the_pages_example_does_what_it_shows(capsys: pytest.CaptureFixture[str]) -> None:
    ((code, shown),) = programs("family")
    exec(compile(code, "family.md", "exec"), {})
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize("is_network", [True, False])
def test_a_file_is_opened_once(
    is_network: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    """Whether it is a RepVGG or a file of blocks is asked of what is open."""
    source = save_small(tmp_path / "a.npz") if is_network else saved(tmp_path, detector())
    real, opened = sources.open_source, []

    def seen(file: Any) -> Any:
        opened.append(file)
        return real(file)

    monkeypatch.setattr(archive, "open_source", seen)
    done = invoke(capsys, "convert", "--in", source, "--out", tmp_path / "out.npz")
    assert done.code == 0, done.err
    assert opened == [source]
