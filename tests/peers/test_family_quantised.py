"""QARepVGG under both dialects, its outer batch norm, and kernels that read one channel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repvgg_ref.files.convert_modules import convert_modules
from repvgg_ref.files.modules import find_blocks
from repvgg_ref.oracle.families.family import judge_family

torch = pytest.importorskip("torch")

from tests.peers.family_composed import COMPOSED  # noqa: E402
from tests.peers.family_modules import PLAIN, drawn  # noqa: E402
from tests.peers.impulses import response  # noqa: E402
from tests.peers.test_family_torch import arrays_of, converted  # noqa: E402

pytestmark = pytest.mark.peers
BLOCKS = PLAIN | COMPOSED
OUTER = {"qarepvgg": "bn", "yolo-nas": "post_bn"}


def judged(folder: Path, trained: Any, fused: dict[str, Any]) -> Any:
    torch.save(dict(trained), folder / "train.pth")
    torch.save({name: array.contiguous() for name, array in fused.items()}, folder / "fused.pth")
    return judge_family(folder / "train.pth", folder / "fused.pth")


def deployed(module: Any, outer: Any = None) -> dict[str, Any]:
    """What impulses through a module give, in its deploy form's names."""
    whole = module if outer is None else torch.nn.Sequential(module, outer)
    kernel, bias = response(whole, module.rbr_inputs, 1)
    return {"rbr_reparam.weight": kernel.float(), "rbr_reparam.bias": bias.float()}


def float32(case: str, seed: int) -> Any:
    """A module whose arrays are those of its file, in float64."""
    module = drawn(BLOCKS[case][1], seed).float().double()
    module.rbr_inputs = 6
    return module


def state_of(module: Any) -> dict[str, Any]:
    return {name: array.clone() for name, array in module.float().state_dict().items()}


@pytest.mark.parametrize("case", OUTER)
def test_a_folded_outer_batch_norm_is_right_and_one_that_is_only_dropped_is_not(
    case: str, tmp_path: Path
) -> None:
    module = float32(case, seed=4)
    folded = deployed(module, getattr(module, OUTER[case]))
    dropped = deployed(module)
    trained = state_of(module)
    report = judged(tmp_path, trained, folded)
    assert report.verdict == "agree", report.reason
    report = judged(tmp_path, trained, dropped)
    assert (report.verdict, report.first_bad_layer) == ("disagree", case)
    (found,) = report.diagnosis
    assert (found.bug, found.says) == ("default-batch-norm", f"{OUTER[case]}: it does nothing")
    kept = {name: array for name, array in trained.items() if name.startswith(OUTER[case])}
    assert judged(tmp_path, trained, dropped | kept).verdict == "agree"
    assert judged(tmp_path, trained, folded | kept).verdict == "disagree"


def test_a_folded_outer_batch_norm_has_the_eps_of_its_module(tmp_path: Path) -> None:
    module = float32("yolo-nas", seed=4)
    module.post_bn.eps = 0.02
    folded = {f"0.{name}": array for name, array in deployed(module, module.post_bn).items()}
    torch.save(torch.nn.Sequential(module.float()), tmp_path / "whole.pt")
    torch.save(folded, tmp_path / "fused.pth")
    report = judge_family(tmp_path / "whole.pt", tmp_path / "fused.pth")
    assert report.verdict == "agree", report.reason
    report = judge_family(tmp_path / "whole.pt", tmp_path / "fused.pth", eps=1e-3)
    assert report.verdict == "disagree"


def test_an_identity_that_no_key_tells_leaves_a_folded_file_open_too(tmp_path: Path) -> None:
    module = float32("yolo-nas", seed=4)
    module.identity = None
    folded = deployed(module, module.post_bn)
    report = judged(tmp_path, state_of(module), folded)
    assert (report.verdict, "no key tells" in report.reason) == ("cannot-judge", True)


@pytest.mark.parametrize("case", ["qarepvgg grey", "yolo-nas grey"])
def test_a_depthwise_reading_of_kernels_of_one_channel_is_left_open(
    case: str, tmp_path: Path
) -> None:
    state = drawn(BLOCKS[case][1], seed=6).float().state_dict()
    done, arrays = converted(tmp_path, state)
    assert any("depthwise" in note for note in done.notes)
    fused = {name: torch.tensor(array) for name, array in arrays.items()}
    assert judged(tmp_path, state, fused).verdict == "agree"
    fused["rbr_reparam.weight"][:, 0, 1, 1] += 1
    report = judged(tmp_path, state, fused)
    assert (report.verdict, "no key tells" in report.reason) == ("cannot-judge", True)
    fused["rbr_reparam.weight"][0, 0, 0, 0] += 1
    assert judged(tmp_path, state, fused).verdict == "disagree"


@pytest.mark.parametrize("has_identity", [True, False], ids=["identity", "taken out"])
@pytest.mark.parametrize("alpha", [1.0, None], ids=["no alpha", "alpha"])
def test_a_whole_module_tells_its_identity_and_that_it_has_no_alpha(
    has_identity: bool, alpha: float | None, tmp_path: Path
) -> None:
    module = float32("yolo-nas", seed=3)
    module.identity = module.identity if has_identity else None
    if alpha is not None:
        del module.alpha
        module.alpha = alpha
    wanted = deployed(module)
    torch.save({"model": torch.nn.Sequential(module.float())}, tmp_path / "whole.pt")
    done = convert_modules(tmp_path / "whole.pt", tmp_path / "out.npz", "npz")
    assert [(block.member.name, block.eps) for block in done.blocks] == [("yolo-nas", 1e-3)]
    assert not any("no key" in note for note in done.notes)
    found = arrays_of(tmp_path / "out.npz")
    for name, array in wanted.items():
        np.testing.assert_allclose(found[f"0.{name}"], array.numpy(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("case", ["yolo-nas", "ecbsr"])
def test_a_file_that_is_not_fused_is_not_called_wrong(case: str, tmp_path: Path) -> None:
    """It has arrays of the fused ones' names: a placeholder, or the kernel of a branch."""
    state = drawn(BLOCKS[case][1], seed=6).float().state_dict()
    report = judged(tmp_path, state, dict(state))
    assert (report.verdict, "as they were trained" in report.reason) == ("cannot-judge", True)


def test_a_row_more_of_factors_is_the_identity_s_and_needs_one() -> None:
    shapes = {
        name: tuple(array.shape)
        for name, array in drawn(BLOCKS["orepa repvgg wider"][1], 1).state_dict().items()
    }
    assert shapes["rbr_dense.vector"] == (5, 6)
    assert find_blocks(shapes).found
    assert not find_blocks(shapes | {"rbr_dense.vector": (6, 6)}).found


@pytest.mark.parametrize(
    ("vector", "says"),
    [("bias", "beta is taken for 1"), ("running_mean", "the running mean is taken for 1")],
)
@pytest.mark.parametrize("case", ["rtdetr", "repvit", "orepa 1x1"])
def test_a_vector_that_is_taken_for_ones_is_named(
    case: str, vector: str, says: str, tmp_path: Path
) -> None:
    state = drawn(BLOCKS[case][1], seed=8).float().state_dict()
    norm = next(n.removesuffix(".running_var") for n in state if n.endswith("running_var"))
    ones = {f"{norm}.{vector}": torch.ones_like(state[f"{norm}.{vector}"])}
    _, arrays = converted(tmp_path, state | ones)
    report = judged(tmp_path, state, {name: torch.tensor(a) for name, a in arrays.items()})
    (found,) = report.diagnosis
    assert (found.bug, found.says) == ("leaf-ignored", f"{norm}: {says}")
