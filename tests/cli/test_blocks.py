"""Commands on files of every kind of block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
import weights_io
from repvgg_ref.blocks.catalogue import KINDS
from repvgg_ref.models.architectures import plain_architecture
from repvgg_ref.models.residual_reorg import residual_reorg
from repvgg_ref.oracle.programs.distinguishing import distinguishing_model
from tests.cli.runner import invoke
from tests.data.datasets import make_folder

every = pytest.mark.parametrize("block", [name for name, kind in KINDS.items() if kind.keys])


@every
def test_convert_inspect_verify_and_eval(
    block: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arch = plain_architecture(depths=[2], channels=[4, 6], num_classes=3, kind=block)
    train, deploy = tmp_path / "train.npz", tmp_path / "deploy.npz"
    rr.save(distinguishing_model(arch, seed=2), train)
    seen = invoke(capsys, "inspect", train, "--json").json()
    assert (seen["form"], seen["block"]) == ("train", block)
    done = invoke(capsys, "convert", "--in", train, "--out", deploy, "--json")
    candidate, form = (deploy, "deploy") if arch.is_fusible else (train, "train")
    if arch.is_fusible:
        assert done.json()["self_check"]["ok"]
        assert invoke(capsys, "inspect", deploy, "--json").json()["block"] is None
    else:
        assert done.code == 2
        assert "stage0: a ReLU stands before the sum" in done.json()["error"]["message"]
        assert not deploy.exists()
    if block == "dbb":  # the orders in which four branches may be added take seconds to try
        candidate = train
    verified = invoke(capsys, "verify", "--reference", train, "--candidate", candidate, "--json")
    assert verified.json()["verdict"] == "agree"
    data = make_folder(tmp_path / "data")
    seen = invoke(capsys, "eval", "--weights", train, "--data", data, "--size", 32, "--json")
    assert seen.json()["form"] == form


def test_residual_blocks_are_read_judged_and_have_golden_vectors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chain = plain_architecture(depths=[2, 1], channels=[4, 6, 8], num_classes=3, kind="plain")
    model, path = distinguishing_model(residual_reorg(chain), seed=1), tmp_path / "residual.npz"
    rr.save(model, path)
    assert invoke(capsys, "inspect", path, "--json").json()["block"] == "residual-reorg"
    itself = invoke(capsys, "verify", "--reference", path, "--candidate", path, "--json")
    assert itself.json()["verdict"] == "agree"
    data = make_folder(tmp_path / "data")
    seen = invoke(capsys, "eval", "--weights", path, "--data", data, "--size", 32, "--json")
    assert seen.json()["form"] == "train"
    refused = invoke(capsys, "convert", "--in", path).error_line()
    assert "stage1.0: its shortcut spans two convolutions and the ReLU between them" in refused
    bundle, dump = tmp_path / "golden", tmp_path / "dump.npz"
    golden = invoke(capsys, "golden", "--reference", path, "--out", bundle, "--json").json()
    assert golden["mutation"]["score"] == 1
    x = np.load(bundle / "outputs.npz")["input"]
    outputs: dict[str, Any] = model.forward(x, layers=True)
    np.savez(dump, input=x, **outputs)
    for reference in (path, bundle):
        judged = invoke(capsys, "verify", "--reference", reference, "--candidate", dump, "--json")
        assert judged.json()["verdict"] == "agree"
    np.savez(dump, input=x, **{**outputs, "stage1.0.add": 2 * outputs["stage1.0.add"]})
    judged = invoke(capsys, "verify", "--reference", path, "--candidate", dump, "--json")
    assert (judged.code, judged.json()["first_bad_layer"]) == (1, "stage1.0.add")
    raw = invoke(capsys, "golden", "--reference", path, "--out", tmp_path / "raw", "--raw")
    assert "raw numbers are described for chains" in raw.error_line()


def test_another_block_than_the_file_says_is_taken_aloud(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its keys fit both kinds, and what is computed from them differs."""
    sizes: dict[str, Any] = {"depths": [2], "channels": [4, 6], "num_classes": 3}
    path = tmp_path / "train.npz"
    rr.save(rr.build(plain_architecture(**sizes, kind="identity-without-bn")), path)
    words = ("convert", "--in", path, "--out", tmp_path / "deploy.npz")
    assert "metadata" not in invoke(capsys, *words).out
    other = invoke(capsys, *words, "--block", "1x1-only")
    assert other.code == 0
    told = "metadata says identity-without-bn blocks; 1x1-only is taken, as you say"
    assert told in " ".join(other.out.split())
    refused = invoke(capsys, *words, "--block", "plain").error_line()
    assert "with --block 1x1-only or identity-without-bn it is exactly one" in refused


def test_every_command_says_what_else_a_file_of_ablated_blocks_may_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes: dict[str, Any] = {"depths": [2], "channels": [4, 6], "num_classes": 3}
    state = rr.build(plain_architecture(**sizes)).state_dict()
    path = tmp_path / "lost.pth"
    kept = {name: array for name, array in state.items() if ".rbr_identity." not in name}
    weights_io.save_weights(path, kept, container="torch-zip")
    commands = {
        "convert": ("--in", path, "--out", tmp_path / "deploy.npz"),
        "verify": ("--reference", path, "--candidate", path),
        "golden": ("--reference", path, "--out", tmp_path / "golden"),
        "eval": ("--weights", path, "--data", make_folder(tmp_path / "data"), "--size", 32),
    }
    for command, words in commands.items():
        for ending in ((), ("--json",)):
            done = invoke(capsys, command, *words, *ending)
            assert done.code == 0
            said = " ".join((done.out + done.err).replace("│", " ").split())  # of a panel
            assert "A RepVGG file that lost all its identity branches looks the same" in said
            if ending:
                done.json()
    seen = invoke(capsys, "inspect", path, "--json").json()
    assert seen["block"] == "1x1-only"
    assert "looks the same" in str(seen["findings"])


def test_golden_counts_no_bug_that_changes_no_function(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arch = plain_architecture(depths=[1], channels=[4, 6], num_classes=3, kind="relu-in-branches")
    path, out = tmp_path / "train.npz", tmp_path / "golden"
    rr.save(distinguishing_model(arch, seed=2), path)
    shown = invoke(capsys, "golden", "--reference", path, "--out", out)
    assert "6 more compute the same function whatever the weights: not counted" in shown.out
    assert "hidden" not in shown.out
    found = invoke(capsys, "golden", "--reference", path, "--out", out, "--json").json()["mutation"]
    assert (found["equivalent"], found["survivors"]) == (6, [])
