"""A file of blocks in deploy form says so, whatever its kind: nothing is left to fuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.runner import invoke

torch = pytest.importorskip("torch")

from repvgg_ref.files.convert_modules import convert_modules  # noqa: E402
from tests.peers.family_composed import COMPOSED  # noqa: E402
from tests.peers.family_modules import PLAIN, drawn  # noqa: E402

pytestmark = pytest.mark.peers
BLOCKS = PLAIN | COMPOSED


@pytest.mark.few(8)
@pytest.mark.parametrize("case", BLOCKS)
def test_a_fused_block_of_any_kind_says_that_nothing_is_left(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without our metadata, as torch writes it, too; a file of blocks is written in both ways."""
    kind, build, fused = BLOCKS[case]
    block = torch.nn.Sequential(drawn(build, seed=1).float())
    torch.save(block.state_dict(), tmp_path / "train.pth")
    convert_modules(tmp_path / "train.pth", tmp_path / "ours.npz", "npz")
    convert_modules(tmp_path / "train.pth", tmp_path / "fused.pth", "pth")
    state = torch.load(tmp_path / "fused.pth", weights_only=True)
    torch.save(dict(state), tmp_path / "theirs.pth")
    ours = invoke(capsys, "convert", "--in", tmp_path / "ours.npz").error_line()
    assert "its blocks are fused already" in ours
    assert f"{kind}, written by repvgg-ref" in ours
    line = invoke(capsys, "convert", "--in", tmp_path / "theirs.pth").error_line()
    assert "fused already" in line or "no branch or batch norm that is left to fuse" in line
    assert f"0.{fused}.weight".replace("..", ".") in line
    seen = invoke(capsys, "inspect", tmp_path / "theirs.pth")
    assert seen.code == 0
    assert "left to fuse" in seen.out or "fused already" in seen.out
