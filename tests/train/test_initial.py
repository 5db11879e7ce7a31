"""A training that starts from a file: which weights are taken, which head is made, what is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.arrays import Array
from repvgg_ref.data import ArraySource, Loader, Standardise, evaluation_transform
from repvgg_ref.data.digits import INK, MEAN, MODEL_PATH, STD, UPSCALE, load_digits, to_input
from repvgg_ref.data.imagenet import imagenet_classes
from repvgg_ref.files.checkpoint import save
from repvgg_ref.models.about import About, Assumed
from repvgg_ref.models.architectures import NAMES
from repvgg_ref.models.network import Model, build
from repvgg_ref.models.parameters import param_shapes
from repvgg_ref.models.registry import MAKERS, network
from repvgg_ref.train.events import Finished, Initialised, StepDone
from repvgg_ref.train.initial import Given, first_weights
from repvgg_ref.train.log import read_log
from repvgg_ref.train.plan import UnfitError
from repvgg_ref.train.recipe import FROM_FILE
from repvgg_ref.train.settings import Settings
from repvgg_ref.train.sources import Data
from tests.models.small import SMALL
from tests.train.small_training import RECIPE, TINY, changed, losses, run, small_job

HEAD = ("linear.weight", "linear.bias")
FROM = changed(model=FROM_FILE)


def begun(
    model: Model, classes: tuple[str, ...], *, named: tuple[str, ...] | None = None
) -> tuple[Model, Initialised]:
    """What a training on `classes` starts with; the file names its classes `named`."""
    settings = Settings(RECIPE, Path("out"), init=Path("start.npz"), dtype="float32")
    given = Given(replace(model, about=About(classes=named)), settings, says_network=True)
    arch = given.network(len(classes))
    assert arch is not None
    start, found = first_weights(given, arch, classes)
    assert found is not None
    return start, found


def same_body(one: Model, other: Model) -> bool:
    return all(np.array_equal(one.params[n], other.params[n]) for n in one.params if n not in HEAD)


def test_without_names_the_head_is_new_and_all_else_is_the_files() -> None:
    digits = replace(rr.load(MODEL_PATH), assumed=Assumed(eps=1e-5))
    start, found = begun(digits, ("a", "b", "c"))
    assert list(start.params) == list(digits.params)
    assert same_body(start, digits)
    assert [start.params[name].shape for name in HEAD] == [(3, 64), (3,)]
    assert found.arrays_taken == len(digits.params) - 2
    assert found.head_arrays == HEAD
    assert (found.classes_taken, found.classes_new, found.classes_left) == ((), tuple("abc"), 10)
    assert found.lines() == [
        f"start.npz: {len(digits.params) - 2} arrays of digits taken",
        "assumed: eps 1e-05",
        "head's classes: 3 new (a, b, c), 10 left; the file does not name its classes",
    ]
    again, _ = begun(digits, ("a", "b", "c"))
    assert np.array_equal(start.params["linear.weight"], again.params["linear.weight"])


def test_rows_are_found_by_name_and_read_digits_before_any_training() -> None:
    digits = rr.load(MODEL_PATH)
    start, found = begun(digits, ("8", "kitten", "3"), named=tuple("0123456789"))
    for name in HEAD:
        given, made = digits.params[name], start.params[name]
        assert np.array_equal(made[[0, 2]], given[[8, 3]])
        assert not np.isclose(made[1], given).all(axis=-1).any()
    assert (found.classes_taken, found.classes_new, found.classes_left) == (
        ("8", "3"),
        ("kitten",),
        8,
    )
    test = load_digits().test
    kept = np.isin(test.labels, (8, 3))
    logits = start.forward(to_input(test.images[kept]))[:, [0, 2]]
    assert np.array_equal(np.array([8, 3])[logits.argmax(axis=1)], test.labels[kept])


@pytest.mark.parametrize(
    ("classes", "named", "rows"),
    [
        (("x", "y", "z"), None, [0, 1, 2]),  # as many: they are taken to be the same
        (("a", "b", "c"), ("a", "b", "c"), [0, 1, 2]),
        (("c", "a", "b"), ("a", "b", "c"), [2, 0, 1]),
        (("x", "y", "z"), ("a", "b", "c"), [None] * 3),  # as many, but others
    ],
)
def test_as_many_classes(
    classes: tuple[str, ...], named: tuple[str, ...] | None, rows: list[int | None]
) -> None:
    model = build(TINY, seed=3)
    start, found = begun(model, classes, named=named)
    for row, theirs in enumerate(rows):
        same = [np.array_equal(start.params[HEAD[0]][row], r) for r in model.params[HEAD[0]]]
        assert same == [place == theirs for place in range(3)]
    assert len(found.classes_taken) == sum(row is not None for row in rows)
    if classes == named:
        assert found.lines()[-1] == "head's classes: 3 taken (a, b, c); found by name"


def test_a_thousand_classes_without_names_are_imagenets() -> None:
    """Folders may have WordNet's numbers, as ImageNet's own, or English names."""
    model = build(replace(TINY, num_classes=1000), seed=3)
    place = {number: n for n, number in enumerate(imagenet_classes())}
    start, found = begun(model, ("n02102040", "Golden_Retriever", "my cat"))
    rows = [place["n02102040"], place["n02099601"]]
    assert rows == [217, 207]  # as in every published list
    assert np.array_equal(start.params[HEAD[0]][:2], model.params[HEAD[0]][rows])
    assert found.classes_new == ("my cat",)
    assert "are taken for ImageNet's" in found.lines()[-1]


def test_auxiliary_heads_follow() -> None:
    model = build(SMALL["plus"], seed=3)
    known = tuple(map(str, range(model.arch.num_classes)))
    start, found = begun(model, ("1", "new"), named=known)
    names = [f"{head.name}.linear.weight" for head in model.arch.aux_heads]
    for name in [*names, HEAD[0]]:
        assert np.array_equal(start.params[name][0], model.params[name][1])
        assert start.params[name].shape[0] == 2
    assert names
    assert len(found.head_arrays) == 2 * len(names) + 2


@pytest.mark.parametrize("name", [*NAMES, *MAKERS])
def test_every_network_takes_another_number_of_classes(name: str) -> None:
    made = network(name).with_classes(3)
    assert param_shapes(made, "train") == param_shapes(network(name, num_classes=3), "train")


# ------------------------------------------------------------------ whole trainings


def digits_data(classes: tuple[int, ...], images: int) -> Data:
    """Some digits, under names that the bundled model does not know."""
    train, test = load_digits()

    def loader(images: Array, labels: Array, batch: int, train: bool) -> Loader:
        pixels = (images * 8).repeat(UPSCALE, axis=1).repeat(UPSCALE, axis=2)[..., None]
        source = ArraySource(
            pixels,
            np.searchsorted(classes, labels),
            classes=tuple("abc"),
            standardise=Standardise(1 / (8 * INK), (MEAN,), (STD,)),
        )
        look = evaluation_transform(size=32, crop_ratio=1.0)
        return Loader(
            source, transform=look, batch_size=batch, seed=0, shuffle=train, drop_last=train
        )

    few = np.flatnonzero(np.isin(train.labels, classes))[:images]
    kept = np.isin(test.labels, classes)
    return Data(
        loader(train.images[few], train.labels[few], 20, True),
        loader(test.images[kept], test.labels[kept], 36, False),
    )


def test_fine_tuning_starts_from_the_weights(tmp_path: Path) -> None:
    """Nine steps on sixty digits: what the file knows is needed to read strangers."""

    def top1(out: str, **settings: Any) -> float:
        job = small_job(
            tmp_path / out,
            data=digits_data((3, 5, 8), 60),
            recipe=replace(RECIPE, size=32, epochs=3, batch=20, lr=0.02, **settings),
            arch=None,
            init=MODEL_PATH if settings["model"] == FROM_FILE else None,
            backend="numpy",
            dtype="float32",
        )
        *_, done = run(job)
        assert isinstance(done, Finished)
        return done.evaluation.trained.top1

    assert top1("fine", model=FROM_FILE) >= 0.95
    assert top1("scratch", model="digits") <= 0.6


@pytest.fixture
def seven(tmp_path: Path) -> Path:
    """A file of the tiny network with seven classes."""
    path = tmp_path / "seven.npz"
    save(build(replace(TINY, num_classes=7), seed=9, dtype=np.float64), path)
    return path


def test_the_log_and_the_result_say_what_was_taken(seven: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = small_job(out, recipe=FROM, arch=None, init=seven)
    assert job.plan.model == "custom"
    events = run(job)
    (said,) = [event for event in events if isinstance(event, Initialised)]
    (logged,) = [record for record in read_log(out) if record["event"] == "init"]
    result = json.loads((out / "result.json").read_text())
    for record in (logged, result["init"]):
        assert record["classes_new"] == ["0", "1", "2"]
        assert record["classes_left"] == 7
        assert record["arrays_taken"] == said.arrays_taken
        assert record["file"] == str(seven)
    done = events[-1]
    assert isinstance(done, Finished)
    assert result == json.loads(json.dumps(done.result))
    assert result["files"] == [str(path) for path in done.files]
    assert rr.load(out / "train.pth").arch.num_classes == 3


def test_a_file_that_names_its_classes_gives_their_rows(tmp_path: Path) -> None:
    model = build(TINY, seed=9, dtype=np.float64)
    model.about = About(classes=("9", "1", "8"))
    for name in ("start.npz", "start.pth"):
        save(model, tmp_path / name)
        job = small_job(tmp_path / "out", recipe=FROM, arch=None, init=tmp_path / name)
        assert job.initialised is not None
        assert job.initialised.classes_taken == ("1",)
        assert np.array_equal(job.start.params[HEAD[0]][1], model.params[HEAD[0]][1])
        assert job.start.about.classes == ("0", "1", "2")


def test_it_is_resumed_to_the_same_bits_though_the_file_is_gone(
    seven: Path, tmp_path: Path
) -> None:
    whole = run(small_job(tmp_path / "whole", recipe=FROM, arch=None, init=seven))
    asked = iter([False] * 6 + [True])
    out = tmp_path / "parts"
    first = run(small_job(out, recipe=FROM, arch=None, init=seven), stop=lambda: next(asked))
    seven.unlink()
    second = run(small_job(out, recipe=FROM, arch=None, init=seven, resume=True))
    assert losses(first) + losses(second) == losses(whole)
    assert not any(isinstance(event, Initialised) for event in second)
    result = json.loads((out / "result.json").read_text())
    assert result["init"]["classes_left"] == 7
    assert (out / "deploy.npz").read_bytes() == (tmp_path / "whole/deploy.npz").read_bytes()


def test_the_first_step_is_at_the_files_weights(seven: Path, tmp_path: Path) -> None:
    """Its loss is that of the file's body under the new head."""
    job = small_job(tmp_path / "out", recipe=FROM, arch=None, init=seven)
    batch = next(iter(job.data.training.epoch(0)))
    assert same_body(job.start, rr.load(seven))
    step = job.start.loss_and_grads(
        job.updater.inputs(batch), batch.labels, label_smoothing=0.1, backend="reference"
    )
    first = next(event for event in run(job) if isinstance(event, StepDone))
    assert first.loss == pytest.approx(step.loss, rel=1e-12)


def test_no_file_to_take_the_network_from(tmp_path: Path) -> None:
    with pytest.raises(UnfitError, match="--init FILE"):
        small_job(tmp_path / "out", recipe=FROM, arch=None)
