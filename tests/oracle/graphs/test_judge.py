"""A PSPNet's ports judged layer by layer: right ones pass, wrong ones are placed and named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.arrays import Array
from repvgg_ref.files.checkpoint import save
from repvgg_ref.models.geometry import Geometry, with_geometry
from repvgg_ref.oracle.graphs import judge
from tests.models.segmenters import pictures, small_model

MODEL = small_model(dtype=np.float32)
FUSED = rr.fuse(MODEL)
X, _ = pictures(dtype=np.float32)
BLOCKS = {spec.name for spec in MODEL.arch.blocks}


def outputs(model: Any = FUSED, **how: Any) -> dict[str, Array]:
    found: dict[str, Array] = model.forward(X, layers=True, **how)
    return found


@pytest.mark.parametrize("backend", ["numpy", "reference"])
@pytest.mark.parametrize("form", ["train", "deploy"])
def test_right_ports_agree(form: str, backend: str) -> None:
    report = rr.verify(
        MODEL, outputs(MODEL if form == "train" else FUSED, backend=backend), inputs=X
    )
    assert report.verdict == "agree", report.reason
    assert len(report.layers) == len(MODEL.arch.layer_names)


def test_what_lies_between_blocks_may_be_left_out() -> None:
    few = {name: y for name, y in outputs().items() if name in BLOCKS or name == "logits"}
    report = rr.verify(MODEL, few, inputs=X)
    assert report.verdict == "agree", report.reason
    assert {layer.name for layer in report.layers} == BLOCKS | {"logits"}
    assert any("not shown, and computed for the candidate" in note for note in report.notes)


def test_a_port_that_is_called_gets_images_of_a_size_that_it_takes() -> None:
    sizes = []

    def port(x: Array) -> dict[str, Array]:
        sizes.append(x.shape[2:])
        return FUSED.forward(x, layers=True)

    assert rr.verify(MODEL, port).verdict == "agree"
    assert all(n % 8 == 1 for size in sizes for n in size)


def test_logits_alone_cannot_be_judged() -> None:
    report = rr.verify(MODEL, lambda x: FUSED.forward(x), inputs=X)
    assert report.verdict == "cannot-judge"
    few = {name: y for name, y in outputs().items() if name != "cls.0"}
    part = rr.verify(MODEL, few, inputs=X)
    assert part.verdict == "cannot-judge"
    assert "cls.0" in part.reason


def test_the_fast_form_taken_for_the_other_is_dilation_ignored() -> None:
    report = rr.verify(MODEL, outputs(rr.fuse(small_model(dtype=np.float32, fast=True))), inputs=X)
    assert (report.verdict, report.first_bad_layer) == ("disagree", "stage3.0")
    assert [(f.bug, f.layer) for f in report.diagnosis] == [("dilation-ignored", "stage3.0")]
    assert "also in stage3.1" in report.diagnosis[0].says


def test_a_backbone_that_was_never_dilated_is_told() -> None:
    undilated = small_model(dtype=np.float32)
    blocks = [spec.name for spec in undilated.arch.blocks if spec.dilation > 1]
    graph = with_geometry(undilated.arch, Geometry({}, dict.fromkeys(blocks, 1)))
    report = rr.verify(MODEL, outputs(rr.fuse(replace(undilated, arch=graph))), inputs=X)
    assert [(f.bug, f.layer) for f in report.diagnosis] == [("dilation-ignored", "all")]
    strided = with_geometry(graph, Geometry({"stage3.0": 2, "stage4.0": 2}, {}))
    report = rr.verify(MODEL, outputs(rr.fuse(replace(undilated, arch=strided))), inputs=X)
    assert report.first_bad_layer == "stage3.0"
    assert report.diagnosis[0].bug == "not-dilated"


def test_another_eps_is_one_finding() -> None:
    report = rr.verify(MODEL, outputs(rr.fuse(replace(MODEL, eps=1e-3))), inputs=X)
    (finding,) = report.diagnosis
    assert (finding.bug, finding.layer) == ("eps-value", "all")
    assert finding.estimate == pytest.approx(1e-3, rel=1e-4)


def unaligned(x: Array, size: tuple[int, ...]) -> Array:
    """Bilinear between the middles of pixels, one axis after the other."""
    for axis, count in zip((2, 3), size, strict=True):
        pixels = x.shape[axis]
        place = np.maximum((np.arange(count) + 0.5) * pixels / count - 0.5, 0)
        low = np.floor(place).astype(int)
        shape = [count if each == axis else 1 for each in range(4)]
        part = (place - low).astype(np.float32).reshape(shape)
        x = x.take(low, axis) * (1 - part) + x.take(np.minimum(low + 1, pixels - 1), axis) * part
    return x


def test_bugs_between_blocks_are_named() -> None:
    right = outputs()
    size = right["logits"].shape[2:]
    wrong: dict[str, tuple[str, Array]] = {
        "corners-not-aligned": ("logits", unaligned(right["cls.4"], size)),
        "concat-order": ("ppm", np.roll(right["ppm"], 4, axis=1)),
    }
    parts = [right[f"ppm.{n}.resize"] for n in range(4)]
    wrong["concat-order"] = ("ppm", np.concatenate([*parts, right["stage4.0"]], axis=1))
    for bug, (layer, y) in wrong.items():
        report = rr.verify(MODEL, right | {layer: y}, inputs=X)
        assert (report.verdict, report.first_bad_layer) == ("disagree", layer)
        assert [each.bug for each in report.diagnosis][:1] == [bug]


@pytest.mark.slow
@pytest.mark.parametrize("layer", [*MODEL.arch.layer_names])
def test_an_error_of_a_thousandth_is_seen_in_every_layer(layer: str) -> None:
    right = outputs()
    wrong = right[layer].copy()
    image, channel, *_ = np.unravel_index(np.abs(wrong).argmax(), wrong.shape)
    wrong[image, channel] *= 1.001
    report = rr.verify(MODEL, right | {layer: wrong}, inputs=X)
    assert (report.verdict, report.first_bad_layer) == ("disagree", layer)


@pytest.mark.few(1)
@pytest.mark.parametrize("layer", ["stage2.0", "stage4.0", "cls.0", "cls.4"])
def test_errors_far_below_the_bounds_are_estimated(layer: str) -> None:
    """All weights of a fused block times 1 + 3e-6: nothing that a certified bound excludes."""
    factor, wrong = np.float32(1 + 3e-6), dict(FUSED.params)
    for name in (f"{layer}.fused.weight", f"{layer}.fused.bias"):
        wrong[name] = FUSED.params[name] * factor
    layers = outputs(replace(FUSED, params=wrong))
    few = {name: y for name, y in layers.items() if name != "cls.dropout"}  # but a copy
    for shown in (layers, few):
        report = rr.verify(MODEL, shown, inputs=X)
        assert (report.verdict, report.first_bad_layer) == ("disagree", layer), report.reason
        assert "within its bound, but" in report.reason
        (finding,) = report.diagnosis
        assert (finding.bug, finding.layer) == ("outputs-scaled", layer)
        assert finding.estimate == pytest.approx(3e-6, abs=1e-6)


def test_the_smallest_errors_that_would_have_been_seen_are_told() -> None:
    report = rr.verify(MODEL, outputs(), inputs=X)
    told = {layer.name: layer.detects for layer in report.layers}
    assert {name for name, sizes in told.items() if sizes} == BLOCKS
    assert all(0 < (told[name]["scale"] or 1) < 1e-4 for name in BLOCKS)
    assert any("ppm.0.pool, " in note and "certified bounds alone" in note for note in report.notes)


def test_sums_of_very_many_products_are_held_to_their_bounds_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(judge, "_MOST_PRODUCTS", 100)  # the head's are 216
    report = rr.verify(MODEL, outputs(), inputs=X)
    told = {layer.name: layer.detects for layer in report.layers}
    assert (bool(told["cls.0"]), bool(told["cls.4"])) == (False, True)
    assert any("cls.0" in note and "certified bounds alone" in note for note in report.notes)


def test_dumps_are_read(tmp_path: Path) -> None:
    arrays: dict[str, Any] = outputs()
    np.savez(tmp_path / "dump.npz", input=X, **arrays)
    assert rr.verify(MODEL, tmp_path / "dump.npz").verdict == "agree"


def test_a_right_file_of_fused_weights_agrees_tap_by_tap(tmp_path: Path) -> None:
    save(FUSED, tmp_path / "right.npz")
    report = rr.verify(MODEL, tmp_path / "right.npz")
    assert (report.verdict, report.precision) == ("agree", "weights"), report.reason
    assert [layer.name for layer in report.layers] == [spec.name for spec in MODEL.arch.blocks]


def exchanged(params: dict[str, Array]) -> None:
    for part in ("weight", "bias"):
        one, two = (f"ppm.{n}.fused.{part}" for n in (1, 2))
        params[one], params[two] = params[two], params[one]


def flipped(params: dict[str, Array]) -> None:
    params["cls.0.fused.weight"] = params["cls.0.fused.weight"][:, :, ::-1, ::-1].copy()


def one_tap(params: dict[str, Array]) -> None:
    params["ppm.2.fused.weight"] = params["ppm.2.fused.weight"].copy()
    params["ppm.2.fused.weight"][0, 1] *= np.float32(1.0001)


@pytest.mark.parametrize(
    ("plant", "bug", "layer"),
    [
        (exchanged, "layers-swapped", "ppm.1"),
        (flipped, "kernel-flipped", "cls.0"),
        (one_tap, "taps-altered", "ppm.2"),
    ],
)
def test_wrong_files_of_fused_weights_are_placed_and_named(
    tmp_path: Path, plant: Any, bug: str, layer: str
) -> None:
    wrong = rr.fuse(MODEL)
    plant(wrong.params)
    save(wrong, tmp_path / "wrong.npz")
    report = rr.verify(MODEL, tmp_path / "wrong.npz")
    assert (report.verdict, report.first_bad_layer) == ("disagree", layer)
    assert (report.diagnosis[0].bug, report.diagnosis[0].layer) == (bug, layer)


@pytest.mark.parametrize("layer", ["aux.4", "ppm.3"])
def test_files_in_train_form_are_compared_auxiliary_heads_too(tmp_path: Path, layer: str) -> None:
    save(MODEL, tmp_path / "right.npz")
    assert rr.verify(MODEL, tmp_path / "right.npz").verdict == "agree"
    name = next(n for n in MODEL.params if n.startswith(f"{layer}.") and n.endswith("weight"))
    wrong = replace(MODEL, params=MODEL.params | {name: MODEL.params[name] * np.float32(1.01)})
    save(wrong, tmp_path / "wrong.npz")
    report = rr.verify(MODEL, tmp_path / "wrong.npz")
    assert (report.verdict, report.first_bad_layer) == ("disagree", layer)


@pytest.mark.few(8)
@pytest.mark.parametrize("layer", MODEL.arch.layer_names)
@pytest.mark.parametrize(
    "wrong",
    [
        lambda y: y[:, :2],
        lambda y: np.concatenate([y, y], axis=2),
        lambda y: np.where(np.arange(y.size).reshape(y.shape) == 3, np.nan, y),
    ],
    ids=["channels", "size", "nan"],
)
def test_layers_that_cannot_be_compared_are_bad_and_what_follows_is_no_traceback(
    layer: str, wrong: Any
) -> None:
    report = rr.verify(MODEL, outputs() | {layer: wrong(outputs()[layer])}, inputs=X)
    assert (report.verdict, report.first_bad_layer) == ("disagree", layer), report.reason
