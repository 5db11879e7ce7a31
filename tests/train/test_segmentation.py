"""Training on labels of pixels: what is learnt, resumed, synchronised, taken of a file, refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repvgg_ref.backends import backend_ops
from repvgg_ref.data.dense import LabelError
from repvgg_ref.data.dense_transforms import DenseEvaluationTransform, DenseTrainingTransform
from repvgg_ref.data.loader import Loader
from repvgg_ref.data.scenes import CLASSES, ScenesSource
from repvgg_ref.data.source import DataError, Subset
from repvgg_ref.errors import ShapeError
from repvgg_ref.files.checkpoint import load, save
from repvgg_ref.models.architectures import plain_architecture
from repvgg_ref.models.network import build
from repvgg_ref.models.registry import network
from repvgg_ref.models.step import StepResult, training_step
from repvgg_ref.ops import Ops
from repvgg_ref.train.comm import Comm
from repvgg_ref.train.decay import segmentation
from repvgg_ref.train.events import EpochDone, Finished, Noted, StepDone
from repvgg_ref.train.job import Job, identity, prepare
from repvgg_ref.train.plan import UnfitError, activation_bytes, require_batch
from repvgg_ref.train.recipe import Recipe, RecipeError, load_recipe
from repvgg_ref.train.run import train
from repvgg_ref.train.schedule import learning_rate
from repvgg_ref.train.settings import Settings
from repvgg_ref.train.sources import Data
from repvgg_ref.train.synchronised import synchronised
from tests.cli.runner import run_python
from tests.models.segmenters import CHANNELS, DEPTHS, pictures, small_graph, small_model
from tests.models.segmenters import CLASSES as FIVE
from tests.train.small_training import losses, run, small_job
from tests.train.threaded_ranks import on_ranks

RECIPE = replace(load_recipe("scenes"), name="tiny", size=33, epochs=2, batch=4)


def scenes(recipe: Recipe = RECIPE, *, images: int = 8) -> Data:
    def loader(split: str, count: int, transform: Any, keep: bool) -> Loader:
        return Loader(
            Subset(ScenesSource("generated:scenes-41", split=split), count),
            transform=transform,
            batch_size=4,
            shuffle=keep,
            drop_last=keep,
        )

    return Data(
        loader("train", images, DenseTrainingTransform(recipe.size), True),
        loader("val", 3, DenseEvaluationTransform(recipe.size), False),
    )


def job(out: Path, **settings: Any) -> Job:
    given: dict[str, Any] = {"arch": small_graph(classes=len(CLASSES)), "data": scenes()}
    given |= {"recipe": RECIPE, "backend": "numpy"} | settings
    return small_job(out, **given)


def test_a_training_gives_scores_of_both_forms_and_files_that_load(tmp_path: Path) -> None:
    events = run(job(tmp_path))
    assert losses(events)[-1] < losses(events)[0]
    last = next(event for event in reversed(events) if isinstance(event, EpochDone))
    assert last.evaluation.images == 3
    assert last.evaluation.comparison is not None
    assert last.evaluation.comparison.ok
    finished = next(event for event in events if isinstance(event, Finished))
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["fused"].keys() == {"loss", "top1", "miou", "macc"}
    assert result["trained"]["miou"] == pytest.approx(result["fused"]["miou"], abs=1e-9)
    assert finished.result["trained"] == result["trained"]
    fused = load(tmp_path / "deploy.npz")
    assert (fused.form, fused.about.classes) == ("deploy", CLASSES)
    assert fused.about.input_size == (33, 33)


def test_it_is_resumed_to_the_same_bits(tmp_path: Path) -> None:
    whole = run(job(tmp_path / "whole"))
    asked = iter([False] * 2 + [True])
    first = run(job(tmp_path / "parts"), stop=lambda: next(asked))
    second = run(job(tmp_path / "parts", resume=True))
    assert losses(first) + losses(second) == losses(whole)
    one, other = (tmp_path / f"{name}/deploy.npz" for name in ("whole", "parts"))
    assert one.read_bytes() == other.read_bytes()


def test_dropout_is_on_in_the_recipe_and_seeded() -> None:
    assert load_recipe("pspnet").drop
    assert load_recipe("scenes").drop


@pytest.mark.parametrize("backend", ["reference", "numpy"])
def test_synchronised_ranks_have_the_gradient_of_one(backend: str) -> None:
    """Where every pixel counts; else each rank's mean is over its own."""
    ops, (x, labels) = backend_ops(backend, np.dtype(np.float64)), pictures(height=17, width=17)
    labels = np.where(labels == 255, 0, labels)
    model = small_model()

    def step(table: Ops, part: slice) -> StepResult:
        how: dict[str, Any] = {"eps": 1e-5, "momentum": 0.1, "label_smoothing": 0.0}
        return training_step(model.arch, model.params, x[part], labels[part], ops=table, **how)

    def share(comm: Comm) -> StepResult:
        return step(synchronised(ops, comm), slice(comm.rank, comm.rank + 1))

    whole = step(ops, slice(None))
    ranks = on_ranks(2, share)
    for name, grad in whole.grads.items():
        mean = (ranks[0].grads[name] + ranks[1].grads[name]) / 2
        assert np.abs(mean - grad).max() <= 1e-10 * np.abs(grad).max() + 1e-13, name


def test_the_backbone_is_taken_of_a_classifiers_checkpoint(tmp_path: Path) -> None:
    chain = plain_architecture(depths=DEPTHS, channels=CHANNELS, num_classes=7)
    classifier = build(chain, seed=3, dtype=np.float64)
    save(classifier, tmp_path / "backbone.pth")
    made = job(tmp_path / "out", init=tmp_path / "backbone.pth")
    assert made.initialised is not None
    taken = {n for n in made.start.params if n.startswith("stage")}
    for name in taken:
        np.testing.assert_array_equal(made.start.params[name], classifier.params[name])
    assert made.initialised.arrays_taken == len(taken)
    assert "cls.4.weight" in made.initialised.head_arrays
    other = build(plain_architecture(depths=DEPTHS, channels=(4, 4, 4, 4, 4), num_classes=2))
    save(other, tmp_path / "other.pth")
    with pytest.raises(UnfitError, match="not the backbone of PSPNet-custom"):
        job(tmp_path / "out", init=tmp_path / "other.pth")


def test_a_pspnets_checkpoint_gives_its_network_and_a_new_head(tmp_path: Path) -> None:
    save(small_model(fast=True), tmp_path / "five.pth")
    init = replace(RECIPE, model="init")
    made = job(tmp_path / "out", recipe=init, arch=None, init=tmp_path / "five.pth")
    assert made.start.arch == small_graph(fast=True, classes=len(CLASSES))
    assert made.initialised is not None
    heads = {"cls.4.weight", "cls.4.bias", "aux.4.weight", "aux.4.bias"}
    assert set(made.initialised.head_arrays) == heads
    assert len(CLASSES) != FIVE


def test_a_classifier_where_pixels_have_labels_becomes_the_pspnet_on_it(tmp_path: Path) -> None:
    chain = plain_architecture(depths=DEPTHS, channels=CHANNELS, num_classes=7)
    save(build(chain), tmp_path / "chain.pth")
    init = replace(RECIPE, model="init")
    made = job(tmp_path / "out", recipe=init, arch=None, init=tmp_path / "chain.pth")
    assert made.start.arch.is_dense
    assert made.plan.model == made.settings.recipe.model == "PSPNet-custom"
    (tmp_path / "out").mkdir()
    save(made.start, tmp_path / "out" / "train.pth")
    again = job(tmp_path / "out", recipe=init, arch=None, init=tmp_path / "chain.pth", resume=True)
    assert identity(again) == identity(made)


def test_files_that_no_such_network_stands_on_are_refused_by_name(tmp_path: Path) -> None:
    short = plain_architecture(depths=(2, 2, 2), channels=(4, 4, 4, 4), num_classes=3)
    save(build(short), tmp_path / "short.pth")
    init = replace(RECIPE, model="init")
    for recipe, arch in ((init, None), (RECIPE, small_graph(classes=len(CLASSES)))):
        with pytest.raises(UnfitError, match=r"short\.pth cannot be .*stages 0 to 4"):
            job(tmp_path / "out", recipe=recipe, arch=arch, init=tmp_path / "short.pth")
    save(build("RepVGG-A0"), tmp_path / "A0.pth")
    wanted = network("PSPNet-RepVGG-B1g2-fast", num_classes=len(CLASSES))
    says = r"got RepVGG-A0 ; wanted RepVGG-B1g2 ; say --model PSPNet-RepVGG-A0, or"
    with pytest.raises(UnfitError, match=says):
        job(tmp_path / "out", arch=wanted, init=tmp_path / "A0.pth")


@pytest.mark.parametrize(("batch", "accumulate"), [(1, 1), (2, 2)])
def test_single_images_have_no_statistics_behind_a_mean_of_all_pixels(
    tmp_path: Path, batch: int, accumulate: int
) -> None:
    recipe = replace(RECIPE, batch=batch, accumulate=accumulate)
    with pytest.raises(UnfitError, match=rf"ppm\.0 .*wanted --batch {2 * accumulate} or more"):
        job(tmp_path, recipe=recipe)
    two = replace(RECIPE, batch=2, accumulate=1)
    require_batch(small_graph(), two, ranks=2, together=True)
    with pytest.raises(UnfitError, match="--sync-bn normalises"):
        require_batch(small_graph(), two, ranks=2, together=False)
    x, labels = pictures()
    with pytest.raises(ShapeError, match=r"ppm\.0 makes 1 pixel ; wanted 2 images or more"):
        small_model().loss_and_grads(x[:1], labels[:1])


def test_everything_decays_and_the_new_modules_learn_ten_times_as_fast() -> None:
    for name in ("layer1.0.rbr_dense.bn.weight", "layer0.rbr_1x1.conv.weight"):
        assert segmentation(name) == (1.0, 1.0)
    for name in ("ppm.features.0.bn.weight", "cls.4.bias", "aux.0.weight"):
        assert segmentation(name) == (10.0, 1.0)
    made = job(Path("unused"))
    roles = made.updater.trainable.unpack(np.asarray(made.updater._vectors.lr))
    fast = {name.partition(".")[0] for name, lr in roles.items() if (lr == 10).all()}
    assert fast == {"ppm", "cls", "aux"}
    assert (np.asarray(made.updater._vectors.decay) == 1).all()


def test_the_rate_falls_by_poly_in_every_iteration() -> None:
    recipe = load_recipe("pspnet")
    for step in (0, 1, 3000, 7399):
        wanted = 0.01 * (1 - step / (40 * 185)) ** 0.9
        assert learning_rate(recipe, step, steps_per_epoch=185) == pytest.approx(wanted)


def test_labels_that_are_none_are_told_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check_labels(self: ScenesSource, indices: range) -> int:
        if "/val" in self.name(0):
            raise LabelError("val: labels out of range", got=40)
        return 0

    monkeypatch.setattr(ScenesSource, "check_labels", check_labels, raising=False)
    seen: list[type] = []
    with pytest.raises(LabelError, match="got 40"):
        seen += [type(event) for event in train(job(tmp_path))]
    assert StepDone not in seen


def test_pictures_without_a_label_are_counted_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    void = {"train": 2, "val": 0}

    def check_labels(self: ScenesSource, indices: range) -> int:
        return void["val" if "/val" in self.name(0) else "train"]

    monkeypatch.setattr(ScenesSource, "check_labels", check_labels, raising=False)
    notes = [event.message for event in run(job(tmp_path)) if isinstance(event, Noted)]
    assert notes == ["of 2 of 1000 pictures to train on no pixel has a label"]
    void["val"] = 100
    with pytest.raises(DataError, match=r"no pixel to evaluate on has a label .*got 100 "):
        run(job(tmp_path / "other"))


def test_what_cannot_be_trained_so_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"size cannot be that .*8k \+ 1"):
        replace(RECIPE, size=32)
    with pytest.raises(RecipeError, match="mixup cannot be that"):
        replace(RECIPE, mixup=0.2)
    chain = plain_architecture(depths=(1,), channels=(4, 4), num_classes=len(CLASSES))
    with pytest.raises(UnfitError, match="a PSPNet for labels of pixels"):
        job(tmp_path, arch=chain)
    with pytest.raises(DataError, match="wanted labels of pixels"):
        prepare(Settings(RECIPE, tmp_path))  # on the bundled digits


MEASURED = """
import sys
from pathlib import Path

import numpy as np

from repvgg_ref.backends import backend_ops
from repvgg_ref.models.network import build
from repvgg_ref.models.pspnet import scenes_network
from repvgg_ref.models.step import training_step

arch, ops = scenes_network(8), backend_ops("numpy")
params = build(arch).params

def step(images):
    x, labels = np.zeros((images, 3, 129, 129), np.float32), np.zeros((images, 129, 129), np.int64)
    training_step(arch, params, x, labels, ops=ops, eps=1e-5, momentum=0.1, label_smoothing=0)
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])

before = step(2)
print(step(int(sys.argv[1])) - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_the_estimate_of_a_steps_memory_is_near_its_measured_peak() -> None:
    from repvgg_ref.models.pspnet import scenes_network

    measured = run_python("-c", MEASURED, 12)
    assert measured.returncode == 0, measured.stderr
    estimate = activation_bytes(scenes_network(8), images=10, extent=(129, 129), itemsize=4)
    assert 0.4 <= int(measured.stdout) / estimate <= 1.4


def test_models_of_the_recipes_are_built() -> None:
    recipe = load_recipe("pspnet")
    assert network(recipe.model, num_classes=19).name == "PSPNet-RepVGG-B1g2-fast"
    assert (recipe.size, recipe.batch, recipe.epochs) == (713, 16, 40)
