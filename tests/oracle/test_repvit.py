"""Ports of a RepViT judged layer by layer: right ones pass, any bug in any layer is placed."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.arrays import Array
from repvgg_ref.errors import ReportedError
from repvgg_ref.files.checkpoint import save
from repvgg_ref.models.gated import Add, Gate, Gelu
from repvgg_ref.models.network import Model
from repvgg_ref.models.repvit import repvit
from repvgg_ref.oracle.bounds.block import layer_bound
from repvgg_ref.oracle.bounds.precision import PRECISIONS
from repvgg_ref.oracle.bugs.base import round_to_bits
from repvgg_ref.oracle.golden.mutation import MutationMatrix, mutation_matrix
from repvgg_ref.oracle.golden.write import write_golden
from repvgg_ref.oracle.programs.distinguishing import distinguishing_model
from repvgg_ref.oracle.programs.inputs import golden_inputs
from repvgg_ref.oracle.programs.layers import Programs
from repvgg_ref.oracle.verification import verify_golden
from tests.oracle.faulty_ports import counted, layer_by_layer, planted_in

ARCH = repvit("small", widths=(8, 12), depths=(2, 1), num_classes=5)
LAYERS = ARCH.layer_names


@cache
def trained() -> Model:
    return distinguishing_model(ARCH, seed=1)


@cache
def pictures() -> Array:
    return np.asarray(golden_inputs(ARCH, seed=1), np.float32)


@cache
def programs() -> Programs:
    return Programs(trained())


@cache
def matrix() -> MutationMatrix:
    return mutation_matrix(trained(), pictures())


def test_what_stands_between_blocks_is_there() -> None:
    kinds = {type(node.op) for node in ARCH.evaluated}
    assert kinds >= {Gelu, Gate, Add}


@pytest.mark.parametrize("form", ["train", "deploy"])
@pytest.mark.parametrize("backend", ["numpy", "reference"])
def test_right_ports_agree(form: str, backend: str) -> None:
    model = trained() if form == "train" else rr.fuse(trained())
    outputs = model.forward(pictures(), layers=True, backend=backend)
    report = rr.verify(trained(), outputs, inputs=pictures())
    assert report.verdict == "agree", report.reason
    assert tuple(layer.name for layer in report.layers) == LAYERS


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_right_ports_of_16_bits_agree(precision: str) -> None:
    """Each layer of the right numbers, rounded to the format; as ports that keep them so have."""
    bits = {"fp16": 11, "bf16": 8}[precision]
    known: dict[str, Array] = {"input": pictures()}
    for name, program in programs().items():
        given = programs().input_of(name, known)
        assert given is not None
        y = program.evaluate(given).reshape(2, -1, *program.output_size(*given.shape[2:]))
        bound = layer_bound(program, given, y, PRECISIONS[precision])
        known[name] = round_to_bits(y, bits)
        assert (np.abs(known[name] - y) <= bound.certified).all(), name


def test_every_planted_bug_is_noticed() -> None:
    # Behind all layers one rounding to 16 bits is less than what the certified bound allows.
    survivors = {(mutant.bug, mutant.layer) for mutant in matrix().survivors}
    assert survivors <= {("output-rounded", "linear")}
    assert matrix().counted - len(survivors) == matrix().killed > 20 * len(LAYERS)
    between = {mutant.bug for mutant in matrix().mutants if mutant.killed}
    assert {"gelu-approximated", "gate-squeezed", "shortcut-missing", "head-norm"} <= between


@pytest.mark.few(5)
@pytest.mark.parametrize("place", range(len(LAYERS)))
def test_a_bug_in_any_layer_is_placed_and_named(place: int) -> None:
    """Another one in each layer, of those that compute another function."""
    name, known = LAYERS[place], counted(matrix())
    made = [m for m in planted_in(programs(), pictures(), name)
            if (m.bug.name, name, m.variant.label) in known]  # fmt: skip
    start = 7 * place % len(made)
    for mutant in (*made[start:], *made[:start]):
        outputs = layer_by_layer(programs(), pictures(), name, mutant.variant.program)
        if outputs is not None:
            break
    assert outputs is not None
    report = rr.verify(trained(), outputs, inputs=pictures())
    assert (report.verdict, report.first_bad_layer) == ("disagree", name)
    assert [layer.name for layer in report.layers if not layer.ok] == [name]
    found = report.diagnosis[0]
    assert mutant.bug.name in (found.bug, *found.equivalents)


def test_one_number_off_by_a_millionth_of_its_layer_is_seen() -> None:
    """Also behind what was computed rightly of the wrong number."""
    outputs = layer_by_layer(programs(), pictures())
    assert outputs is not None
    wrong = outputs["block2.project"].copy()
    wrong[0, 3, 2, 1] += 3e-5 * np.abs(wrong).max()
    report = rr.verify(trained(), {**outputs, "block2.project": wrong}, inputs=pictures())
    bad = [layer.name for layer in report.layers if not layer.ok]
    assert (report.verdict, bad) == ("disagree", ["block2.project", "block2.add"])


def test_eps_is_one_finding_for_all_layers() -> None:
    other = replace(trained(), eps=1e-3).forward(pictures(), layers=True, backend="reference")
    report = rr.verify(trained(), other, inputs=pictures())
    found = report.diagnosis[0]
    assert (report.verdict, found.bug, found.layer) == ("disagree", "eps-value", "all")
    assert found.estimate == pytest.approx(1e-3, rel=1e-2)


def test_logits_alone_and_a_layer_that_is_missing_cannot_be_judged() -> None:
    outputs = dict(trained().forward(pictures(), layers=True))
    alone = rr.verify(trained(), {"linear": outputs["linear"]}, inputs=pictures())
    assert (alone.verdict, "give its layers" in alone.reason) == ("cannot-judge", True)
    del outputs["block1.gelu"]
    report = rr.verify(trained(), outputs, inputs=pictures())
    assert report.verdict == "cannot-judge"
    assert "block1.gelu" in report.reason or "block1.project" in report.reason


@pytest.mark.parametrize(
    ("name", "change", "bug"),
    [
        ("block1.gate", lambda y: np.where(y == y.max(), np.nan, y), "not-finite"),
        ("block1.gelu", lambda y: y[:, :, :-1], "wrong-shape"),
    ],
    ids=["NaN", "shape"],
)
def test_what_is_no_number_or_of_another_shape_is_placed(name: str, change: Any, bug: str) -> None:
    outputs = layer_by_layer(programs(), pictures())
    assert outputs is not None
    report = rr.verify(trained(), {**outputs, name: change(outputs[name])}, inputs=pictures())
    assert (report.verdict, report.first_bad_layer) == ("disagree", name)
    assert report.diagnosis[0].bug == bug


def test_dumps_under_published_names_and_in_nhwc_agree() -> None:
    outputs = layer_by_layer(programs(), pictures())
    assert outputs is not None
    theirs = {ARCH.modules.get(name, name): y for name, y in outputs.items()}
    assert "features.1.token_mixer.0" in theirs
    moved = {n: np.moveaxis(y, 1, 3) if y.ndim == 4 else y for n, y in theirs.items()}
    assert rr.verify(trained(), moved, inputs=pictures()).verdict == "agree"


@pytest.mark.slow
def test_golden_vectors_judge_dumps(tmp_path: Path) -> None:
    done = write_golden(trained(), tmp_path / "golden", inputs=pictures())
    assert done.matrix.survivors == ()
    fed = json.loads((tmp_path / "golden" / "manifest.json").read_text())["inputs"]
    assert tuple(fed) == LAYERS
    assert set(fed["block1.add"]) == set(programs().sources("block1.add"))
    assert fed["linear"] == [LAYERS[-2]]
    with pytest.raises(ReportedError, match="small"):
        rr.verify(tmp_path / "golden", {})
    port: Any = dict(trained().forward(pictures(), layers=True))
    folder = tmp_path / "golden"
    assert verify_golden(folder, port, reference=trained()).verdict == "agree"
    port["block1.add"] = port["block1.project"]
    report = verify_golden(folder, port, reference=trained())
    assert (report.verdict, report.first_bad_layer) == ("disagree", "block1.add")
    assert report.diagnosis[0].bug == "shortcut-missing"


@pytest.mark.slow
def test_golden_vectors_of_m0_9_are_read_by_its_name(tmp_path: Path) -> None:
    model = distinguishing_model(rr.build("RepViT-M0.9").arch, seed=0)
    summary = write_golden(model, tmp_path / "golden", weights=True)
    assert summary.matrix.survivors == ()
    assert rr.verify(tmp_path / "golden", tmp_path / "golden" / "outputs.npz").verdict == "agree"


def test_training_steps_and_raw_files_are_of_chains(tmp_path: Path) -> None:
    for raw, why in ((True, "chains of layers only"), (False, "train-step bundle of this network")):
        with pytest.raises(ReportedError, match=why):
            write_golden(trained(), tmp_path / "golden", raw=raw, train_step=not raw)


@pytest.mark.slow
def test_a_file_of_weights_is_computed_with(tmp_path: Path) -> None:
    model = distinguishing_model(rr.build("RepViT-M0.9", num_classes=3).arch, seed=0)
    save(rr.fuse(model), tmp_path / "fused.npz")
    x = pictures()[:1, :, :32, :40]
    assert rr.verify(model, tmp_path / "fused.npz", inputs=x).verdict == "agree"
