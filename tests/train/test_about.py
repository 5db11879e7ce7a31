"""A trained model knows its classes, its pictures and its strides: in every file of the folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import repvgg_ref as rr
from repvgg_ref.files.metadata import describe
from repvgg_ref.models.about import About, Assumed
from repvgg_ref.models.geometry import Geometry, geometry_of, with_geometry
from tests.train.small_training import RECIPE, SIZE, TINY, changed, run, small_data, small_job

WANTED = About(
    classes=("0", "1", "2"),
    input_size=(SIZE, SIZE),
    mean=(0.4, 0.4, 0.4),
    std=(0.3, 0.3, 0.3),
    crop_ratio=RECIPE.crop_ratio,
)


def test_every_file_that_a_training_leaves_says_what_it_is(tmp_path: Path) -> None:
    run(small_job(tmp_path, recipe=changed(epochs=1, ema=0.8)))
    for name in ("train.pth", "train-ema.pth", "deploy.npz", "deploy.pth"):
        loaded = rr.load(tmp_path / name)
        assert (loaded.about, bool(loaded.assumed)) == (WANTED, False)
        assert loaded.arch.blocks == TINY.blocks
    (newest,) = tmp_path.glob("state-*.json")
    said = json.loads(newest.read_text(encoding="utf-8"))["metadata"]
    assert said == describe(TINY, "train", 1e-5, WANTED, Assumed())


def test_a_network_of_other_strides_is_trained_and_exported_as_one(tmp_path: Path) -> None:
    said = Geometry({"stage0": 1, "stage2.0": 1}, {"stage2.1": 2})
    arch = with_geometry(TINY, said)
    run(small_job(tmp_path, recipe=changed(epochs=1), arch=arch, data=small_data()))
    for name in ("train.pth", "deploy.npz", "deploy.pth"):
        loaded = rr.load(tmp_path / name)
        assert geometry_of(loaded.arch) == geometry_of(arch)
        assert not loaded.assumed
    assert replace(rr.load(tmp_path / "train.pth").arch, name="") == replace(arch, name="")
