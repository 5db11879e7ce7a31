"""Modules that torch pickled whole: bit for bit the state dict, fused as their forward computes."""

from __future__ import annotations

import sys
from collections import OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
import weights_io
from repvgg_ref.errors import CheckpointError
from repvgg_ref.files.convert_modules import convert_modules
from repvgg_ref.files.inspect import inspect_file
from repvgg_ref.oracle.families.family import judge_family
from tests.cli.runner import invoke

torch = pytest.importorskip("torch")

from tests.peers.family_composed import COMPOSED  # noqa: E402
from tests.peers.family_modules import PLAIN, drawn  # noqa: E402
from tests.peers.impulses import response  # noqa: E402
from tests.peers.test_family_torch import arrays_of, dense  # noqa: E402
from tests.peers.test_whole_networks_torch import SMALL, network  # noqa: E402
from tests.peers.whole_modules import (  # noqa: E402
    WRITTEN,
    Detector,
    Hook,
    IdentityBasedConv1x1,
    Negated,
    Qa,
    Scaled,
    Shared,
    Standardised,
    with_eps,
    written,
)

pytestmark = pytest.mark.peers
BLOCKS = PLAIN | COMPOSED
# The witness of OREPA keeps no settings beside its arrays, and ECBSR has no batch norm.
NORMED = {
    name: block for name, block in BLOCKS.items() if name.split()[0] not in ("orepa", "ecbsr")
}


def read(path: Path, *entry: str) -> dict[str, Any]:
    with weights_io.open_weights(path) as archive:
        root: Any = archive.root
        for name in entry:
            root = root[name]
        return {name: array.read() for name, array in root.arrays().items()}


def require_state(found: dict[str, Any], module: Any) -> None:
    """The names in their order, and every array in type, shape and bits."""
    wanted = module.state_dict()
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array.numpy(), strict=True)


# ------------------------------------------------------------------------- as a state dict


@pytest.mark.few
@pytest.mark.parametrize("case", BLOCKS)
@pytest.mark.parametrize("how", WRITTEN)
def test_a_pickled_block_is_its_state_dict(case: str, how: str, tmp_path: Path) -> None:
    module = drawn(BLOCKS[case][1], seed=len(how))
    require_state(read(written(tmp_path, module, how)), module)


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("how", ["zip", "legacy", "legacy, protocol 4"])
def test_a_class_whose_source_torch_cannot_find(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class of a prompt: a legacy stream has None where its file and its source would be."""
    prompt = ModuleType("prompt_of_a_test")
    vars(prompt)["Detector"] = Detector
    exec("class Net(Detector):\n    pass", vars(prompt))
    monkeypatch.setitem(sys.modules, prompt.__name__, prompt)
    model = prompt.Net()
    require_state(read(written(tmp_path, model, how)), model)


@pytest.mark.parametrize("how", WRITTEN)
def test_a_detector_with_an_average_beside_it(how: str, tmp_path: Path) -> None:
    model, average = Detector(0).half(), Detector(9).half()
    root = {"epoch": 3, "model": model, "ema": average, "updates": 7, "optimizer": None}
    path = written(tmp_path, root, how)
    require_state(read(path, "model"), model)
    require_state(read(path, "ema"), average)
    for asked, wanted in (("model", model), ("ema", average)):
        done = convert_modules(path, tmp_path / "out.pth", "pth", weights=asked)
        torch.save(wanted.state_dict(), tmp_path / "state.pth")
        convert_modules(tmp_path / "state.pth", tmp_path / "known.pth", "pth", eps=1e-3)
        found, known = arrays_of(tmp_path / "out.pth"), arrays_of(tmp_path / "known.pth")
        assert list(found) == list(known)
        for name, array in known.items():
            np.testing.assert_array_equal(found[name], array, strict=True)
        assert found["model.0.0.rbr_reparam.weight"].dtype == np.float16
        assert any("its class was neither imported" in note for note in done.notes)
    assert any("--weights ema" in note for note in convert_modules(
        path, tmp_path / "out.pth", "pth").notes)  # fmt: skip


def test_an_average_alone_and_an_entry_that_is_not_there(tmp_path: Path) -> None:
    path = written(tmp_path, {"model": None, "ema": Detector(), "epoch": -1})
    assert len(convert_modules(path, tmp_path / "out.npz", "npz").blocks) == 2
    assert len(convert_modules(path, tmp_path / "out.npz", "npz", weights="ema").blocks) == 2
    with pytest.raises(weights_io.ReportedError, match="no entry 'pupil'"):
        convert_modules(path, tmp_path / "out.npz", "npz", weights="pupil")


def test_a_wrapper_a_shared_part_and_a_list(tmp_path: Path) -> None:
    around = torch.nn.DataParallel(Detector())
    require_state(read(written(tmp_path, around)), around)
    shared = Shared()
    require_state(read(written(tmp_path, shared)), shared)
    done = convert_modules(tmp_path / "whole.pt", tmp_path / "out.npz", "npz")
    assert [block.prefix for block in done.blocks] == ["first.", "second."]
    path = written(tmp_path, [Detector(), {"lr": 0.1}])
    assert len(convert_modules(path, tmp_path / "out.npz", "npz").blocks) == 2
    average = torch.optim.swa_utils.AveragedModel(Detector())
    require_state(read(written(tmp_path, average)), average)


def test_arrays_beside_a_module_are_taken_before_it(tmp_path: Path) -> None:
    """A module beside weights may be a loss; of two usual names the one of arrays is meant."""
    state = drawn(BLOCKS["rtdetr"][1], 1).state_dict()
    for root in ({"net_7": state, "criterion": Detector()}, {"model": Detector(), "params": state}):
        done = convert_modules(written(tmp_path, root), tmp_path / "out.npz", "npz")
        assert [block.member.name for block in done.blocks] == ["rtdetr"]
        assert any("also in the file, not taken" in note for note in done.notes)


# ------------------------------------------------------------------------------- as forward


@pytest.mark.few
@pytest.mark.parametrize("case", NORMED)
@pytest.mark.parametrize("eps", [(7e-3,), (7e-3, 2e-2, 1e-6)], ids=["one eps", "several"])
def test_a_block_is_fused_with_the_eps_of_its_modules(
    case: str, eps: tuple[float, ...], tmp_path: Path
) -> None:
    """Against impulses through the module in float64; no kind's users have these eps."""
    _, build, fused = BLOCKS[case]
    module = with_eps(drawn(build, seed=len(case)).float(), *eps)
    done = convert_modules(written(tmp_path, {"model": module}), tmp_path / "out.npz", "npz")
    module = module.double()  # the same numbers, computed exactly enough
    assert done.blocks[0].eps in eps
    arrays = arrays_of(tmp_path / "out.npz")
    weight, bias = (arrays[f"{fused}.{part}".lstrip(".")] for part in ("weight", "bias"))
    channels = next(m.in_channels for m in module.modules() if isinstance(m, torch.nn.Conv2d))
    kernel, offset = (each.numpy() for each in response(module, channels, weight.shape[2] // 2))
    room = 1e-7 * float(np.abs(kernel).max())
    np.testing.assert_allclose(dense(weight, channels), kernel, rtol=0, atol=room, equal_nan=False)
    room = 1e-7 * max(1, float(np.abs(offset).max()))
    np.testing.assert_allclose(bias, offset, rtol=0, atol=room, equal_nan=False)


def test_a_user_overrules_the_modules_aloud(tmp_path: Path) -> None:
    module = with_eps(drawn(BLOCKS["rtdetr"][1], seed=1), 7e-3)
    path = written(tmp_path, module)
    done = convert_modules(path, tmp_path / "out.npz", "npz", eps=1e-4)
    assert any("eps 0.007; 0.0001 is taken" in note for note in done.notes)
    torch.save(module.state_dict(), tmp_path / "state.pth")
    convert_modules(tmp_path / "state.pth", tmp_path / "known.npz", "npz", eps=1e-4)
    found, known = arrays_of(tmp_path / "out.npz"), arrays_of(tmp_path / "known.npz")
    assert all(np.array_equal(found[name], known[name]) for name in known)


@pytest.mark.parametrize("average", [False, True], ids=["V1", "V2"])
@pytest.mark.parametrize(("i", "o", "stride"), [(6, 6, 1), (6, 6, 2), (4, 8, 1), (4, 8, 2)])
def test_what_keys_cannot_tell_of_qarepvgg_is_told_by_its_modules(
    i: int, o: int, stride: int, average: bool, tmp_path: Path
) -> None:
    """Equal channels and stride 2: no identity; the second version's average: a branch."""
    block = drawn(lambda: Qa(i, o, stride, average=average), seed=stride).float()
    done = convert_modules(written(tmp_path, block), tmp_path / "out.npz", "npz")
    assert not any("never" in note for note in done.notes)
    arrays = arrays_of(tmp_path / "out.npz")
    fused = (torch.from_numpy(arrays[f"rbr_reparam.{p}"]).double() for p in ("weight", "bias"))
    block, (weight, bias) = block.double(), fused
    x = torch.randn(2, i, 9, 8, dtype=torch.float64)
    with torch.no_grad():
        got = torch.nn.functional.conv2d(x, weight, bias, stride, 1)
        np.testing.assert_allclose(got.numpy(), block(x).numpy(), rtol=1e-5, atol=1e-5)


def test_an_identity_that_is_something_else_is_no_branch(tmp_path: Path) -> None:
    block = drawn(lambda: Qa(6, 6, 1, average=True), seed=1)
    others = {"rbr_identity": torch.nn.SiLU(), "rbr_avg": torch.nn.MaxPool2d(3, 1, 1)}
    for name, other in others.items():
        kept = getattr(block, name)
        setattr(block, name, other)
        with pytest.raises(weights_io.ReportedError, match=f"{name}, .* no branch of such a block"):
            convert_modules(written(tmp_path, block), tmp_path / "out.npz", "npz")
        setattr(block, name, kept)
    block.rbr_avg.count_include_pad = False
    with pytest.raises(weights_io.ReportedError, match="its border is averaged otherwise"):
        convert_modules(written(tmp_path, block), tmp_path / "out.npz", "npz")


def test_verify_judges_by_the_eps_of_the_modules(tmp_path: Path) -> None:
    model = with_eps(Detector().float(), 7e-3)
    path = written(tmp_path, {"model": model})
    convert_modules(path, tmp_path / "right.pth", "pth")
    assert judge_family(path, tmp_path / "right.pth").verdict == "agree"
    convert_modules(path, tmp_path / "wrong.pth", "pth", eps=1e-5)
    report = judge_family(path, tmp_path / "wrong.pth")
    assert (report.verdict, report.first_bad_layer) == ("disagree", "model.0.0")
    assert all(each.says.startswith("eps is 1e-05, not 0.007") for each in report.diagnosis)


def test_verify_sees_a_fused_module_that_reads_otherwise(tmp_path: Path) -> None:
    """A deployed whole holds its convolutions: the dilation that only the deploy form has."""
    block = torch.nn.Sequential(drawn(BLOCKS["rtdetr"][1], seed=2).float())
    path = written(tmp_path, block).rename(tmp_path / "train.pt")
    convert_modules(path, tmp_path / "fused.npz", "npz")
    for padding, dilation, verdict in ((1, 1, "agree"), (2, 2, "disagree"), (0, 1, "disagree")):
        fused = torch.nn.Conv2d(6, 6, 3, padding=padding, dilation=dilation)
        arrays = arrays_of(tmp_path / "fused.npz")
        for part in ("weight", "bias"):
            getattr(fused, part).data.copy_(torch.from_numpy(arrays[f"0.conv.{part}"]))
        whole = torch.nn.Sequential(torch.nn.Sequential(OrderedDict(conv=fused)))
        report = judge_family(path, written(tmp_path, whole))
        assert report.verdict == verdict
        assert ("its padding is" in report.reason) == (verdict == "disagree")


# ------------------------------------------------------------- what may compute something else


def _replaced(block: Any) -> None:
    block.forward = block.rbr_dense.forward


def _hooked(block: Any) -> None:
    block.rbr_dense.conv.register_forward_hook(Hook())


def _circular(block: Any) -> None:
    block.rbr_dense.conv.padding_mode = "circular"


def _strided(block: Any) -> None:
    block.rbr_1x1.conv.stride = (2, 2)


def _moved(block: Any) -> None:
    block.rbr_dense.conv.padding = (0, 0)


def _activated(block: Any) -> None:
    block.rbr_dense.act = torch.nn.SiLU()


def _squeezed(block: Any) -> None:
    block.rbr_1x1.bn.act = torch.nn.ReLU()


def _patched(block: Any) -> None:
    block.rbr_dense.conv._conv_forward = block.rbr_1x1.conv._conv_forward


def _scaled(block: Any) -> None:
    block.rbr_dense.conv = Scaled(6, 6, 3, padding=1, bias=False).double()


def _standardised(block: Any) -> None:
    block.rbr_1x1.conv = Standardised(6, 6, 1, bias=False).double()


def _negated(block: Any) -> None:
    block.rbr_identity = Negated(6).double()


def _reversed(block: Any) -> None:
    old = block.rbr_1x1
    block.rbr_1x1 = torch.nn.Sequential(OrderedDict(bn=old.bn, conv=old.conv))


ALTERED = {
    "rbr_dense.conv, a pickled tests.peers.whole_modules.Scaled: a convolution of a": _scaled,
    "rbr_1x1.conv, a pickled tests.peers.whole_modules.Standardised: a conv": _standardised,
    "rbr_identity, a pickled tests.peers.whole_modules.Negated: a batch norm of a": _negated,
    "its parts are in another order (got bn, conv ; wanted conv, bn": _reversed,
    "its forward is replaced": _replaced,
    "a hook may change what it computes": _hooked,
    "padded by zeros": _circular,
    "their stride differs": _strided,
    "does not keep the kernel in the middle": _moved,
    "its _conv_forward is replaced": _patched,
    "0.0.rbr_dense.act, a pickled torch.nn.modules.activation.SiLU: it stands in": _activated,
    "0.0.rbr_1x1.bn.act, a pickled torch.nn.modules.activation.ReLU: it stands in": _squeezed,
}


@pytest.mark.parametrize("why", ALTERED)
def test_a_block_that_computes_something_else_is_left_and_said(why: str, tmp_path: Path) -> None:
    model = Detector(cases=("yolov6", "yolov9"))
    ALTERED[why](model.model[0][0])
    path = written(tmp_path, model)
    done = convert_modules(path, tmp_path / "out.npz", "npz")
    assert [block.prefix for block in done.blocks] == ["model.1.0."]
    (note,) = (note for note in done.notes if note.startswith("left as it is: model.0.0"))
    assert why in note
    left = {k: v for k, v in model.state_dict().items() if k.startswith("model.0.")}
    found = arrays_of(tmp_path / "out.npz")
    for name, array in left.items():
        np.testing.assert_array_equal(found[name], array.numpy(), strict=True)
    assert any(why in finding.message for finding in inspect_file(path).findings)


def test_batch_norms_of_several_processes_are_batch_norms(tmp_path: Path) -> None:
    model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(Detector())
    done = convert_modules(written(tmp_path, model), tmp_path / "out.npz", "npz")
    assert [block.prefix for block in done.blocks] == ["model.0.0.", "model.1.0."]


@pytest.mark.parametrize(
    "name", ["dbb_1x1_kxk.conv2", "dbb_1x1_kxk.idconv1.conv", "dbb_avg.conv", "dbb_1x1.conv"]
)
def test_a_diverse_branch_is_of_torchs_own_convolutions(name: str, tmp_path: Path) -> None:
    """Also where a kind's expression never asks for their settings."""
    block = drawn(BLOCKS["dbb"][1], seed=1)
    old, (parent, _, last) = block.get_submodule(name), name.rpartition(".")
    scaled = Scaled(old.in_channels, old.out_channels, old.kernel_size, bias=False).double()
    setattr(block.get_submodule(parent), last, scaled)
    with pytest.raises(weights_io.ReportedError, match="Scaled: a convolution of a class"):
        convert_modules(written(tmp_path, block), tmp_path / "out.npz", "npz")


@pytest.mark.parametrize("adds", [True, False])
def test_an_older_diverse_branch_adds_its_input_by_its_class(adds: bool, tmp_path: Path) -> None:
    """A plain convolution has the same key, and does not."""
    block = drawn(BLOCKS["dbb"][1], seed=1)
    old = block.dbb_1x1_kxk.idconv1.conv
    kind = IdentityBasedConv1x1 if adds else torch.nn.Conv2d
    block.dbb_1x1_kxk.idconv1 = kind(4, 4, 1, bias=False).double()
    block.dbb_1x1_kxk.idconv1.weight.data.copy_(old.weight.data)
    path = written(tmp_path, block)
    if not adds:
        with pytest.raises(weights_io.ReportedError, match="wanted IdentityBasedConv1x1"):
            convert_modules(path, tmp_path / "out.npz", "npz")
        return
    convert_modules(path, tmp_path / "out.npz", "npz")
    arrays = arrays_of(tmp_path / "out.npz")
    kernel, _ = response(block, 4, 1)
    np.testing.assert_allclose(arrays["dbb_reparam.weight"], kernel.numpy(), rtol=0, atol=1e-12)


def test_a_function_is_refused_by_its_name(tmp_path: Path) -> None:
    model = Detector()
    model.act = torch.nn.functional.relu
    with pytest.raises(weights_io.RefusedGlobalError, match=r"torch\.nn\.functional\.relu"):
        read(written(tmp_path, model))


# ---------------------------------------------------------------------------- the command


def test_the_commands_read_whole_modules(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = with_eps(Detector().float(), 2e-3)
    path = written(tmp_path, {"model": model, "ema": Detector(4)})
    told = invoke(capsys, "inspect", path, "--json").json()
    assert told["form"] == "modules"
    assert {block["eps"] for block in told["blocks"]} == {2e-3}
    done = invoke(capsys, "convert", "--in", path, "--out", tmp_path / "out.pth", "--json")
    assert {block["eps"] for block in done.json()["blocks"]} == {2e-3}
    files = ("--reference", path, "--candidate", tmp_path / "out.pth")
    assert invoke(capsys, "verify", *files).code == 0
    whole = written(tmp_path, network(SMALL))
    shown = " ".join(invoke(capsys, "inspect", whole).out.split())
    assert "its class was neither imported nor asked" in shown
    assert "the file's modules say eps = 0.001" in shown
    assert "torch files do not hold" not in shown
    assert invoke(capsys, "convert", "--in", whole, "--out", tmp_path / "net.npz").code == 0
    assert rr.load(tmp_path / "net.npz").eps == 1e-3


def test_a_factor_that_no_array_holds_leaves_the_block(tmp_path: Path) -> None:
    """PP-YOLOE's alpha as a number of the module: without it the keys are those of another kind."""
    module = drawn(PLAIN["ppyoloe"][1], seed=4)
    number = float(module.alpha.detach())
    del module.alpha
    module.alpha = number
    with pytest.raises(CheckpointError, match="its alpha is no array"):
        convert_modules(written(tmp_path, {"model": module}), tmp_path / "out.npz", "npz")
