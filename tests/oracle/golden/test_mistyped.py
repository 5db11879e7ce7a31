"""Manifests and descriptions of training steps that are deep, mistyped, or no files: one line."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repvgg_ref.errors import ReportedError
from repvgg_ref.models.architectures import plain_architecture
from repvgg_ref.oracle.golden.folder import is_golden
from repvgg_ref.oracle.golden.read import read_golden
from repvgg_ref.oracle.golden.write import write_golden
from repvgg_ref.oracle.programs.distinguishing import TRAINING, distinguishing_model
from repvgg_ref.oracle.training.steps import ARRAYS, DESCRIPTION, read_steps
from repvgg_ref.oracle.verification import verify
from tests.models.small import SMALL

MANIFEST = "manifest.json"
READ = ("outputs.npz", ARRAYS, DESCRIPTION)
DEEP = "[" * 200_000 + "]" * 200_000
ODD: list[Any] = [None, True, "1", "\x1b[31m", [], {}, [1], {"a": 1}, -1, 10**30, 10**400, 0.5]
ODD += [float("nan"), float("inf")]
TINY = plain_architecture(depths=[1], channels=[4, 4], num_classes=4, in_channels=2)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With training steps, and of two blocks: every field of a manifest is there."""
    out = tmp_path_factory.mktemp("golden") / "tiny"
    write_golden(distinguishing_model(TINY, statistics=TRAINING), out, train_step=True)
    return out


@pytest.fixture
def copied(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "b"))


def understood(act: Callable[[], object]) -> bool:
    """Whether it succeeds; else it must raise one error of ours, on one line."""
    try:
        act()
    except ReportedError as error:
        said = str(error)
    else:
        return True
    assert said.isprintable()
    return False


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value, two of each list."""
    yield path
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from places(inner, (*path, name))
    elif isinstance(value, list):
        for i, inner in enumerate(value[:2]):
            yield from places(inner, (*path, i))


def changed(value: Any, path: tuple[Any, ...], change: Callable[[Any, Any], None]) -> Any:
    """A copy of `value` in which `change` was applied to holder and key of one place."""
    whole = [copy.deepcopy(value)]
    holder: Any = whole
    for key in (0, *path[:-1]) if path else ():
        holder = holder[key]
    change(holder, path[-1] if path else 0)
    return whole[0]


def _put(odd: Any, holder: Any, key: Any) -> None:
    holder[key] = odd


def mutations(value: Any, names: set[str]) -> Iterator[Any]:
    """`value` with each place under one of `names` removed, and made each odd thing."""
    for path in places(value):
        if not path or path[0] not in names:
            continue
        yield changed(value, path, lambda holder, key: holder.pop(key))
        for odd in ODD:
            yield changed(value, path, partial(_put, odd))


EVERY = [pytest.param(1, marks=pytest.mark.slow), 29]


@pytest.mark.parametrize("every", EVERY)
def test_every_value_of_a_manifest_may_be_of_another_type(copied: Path, every: int) -> None:
    manifest = json.loads((copied / MANIFEST).read_text())
    manifest["files"] = {name: manifest["files"][name] for name in READ}
    read = {"format", "format_version", "files", "eps", "momentum", "form", "architecture"}
    read |= {"weights_sha256", "train_step", "assumed", "input"}
    assert read <= set(manifest)
    outcomes = []
    for odd in islice(mutations(manifest, read), 0, None, every):
        (copied / MANIFEST).write_text(json.dumps(odd))
        outcomes.append(understood(lambda: read_golden(copied)))
    assert outcomes.count(False) > 300 / every
    (copied / MANIFEST).write_text(json.dumps(manifest))
    assert understood(lambda: read_golden(copied))


@pytest.mark.parametrize("every", EVERY)
def test_every_value_of_the_steps_description_may_be_of_another_type(
    copied: Path, every: int
) -> None:
    described = json.loads((copied / DESCRIPTION).read_text())
    for table in ("tolerances", "noise_scale", "rounding", "sums"):
        described[table] = dict(list(described[table].items())[:2])
    names = set(described) - {"how_to_compare"}
    outcomes = []
    for odd in islice(mutations(described, names), 0, None, every):
        (copied / DESCRIPTION).write_text(json.dumps(odd))
        outcomes.append(understood(lambda: read_steps(copied)))
    assert outcomes.count(False) > 100 / every


@pytest.mark.parametrize("files", [[], {}, None, 3, *READ])
def test_a_manifest_without_the_digest_of_what_is_read_is_refused(copied: Path, files: Any) -> None:
    manifest = json.loads((copied / MANIFEST).read_text())
    kept = manifest["files"]
    odd = {n: kept[n] for n in kept if n != files} if files in READ else files
    (copied / MANIFEST).write_text(json.dumps(manifest | {"files": odd}))
    with pytest.raises(ReportedError, match="tells no digest of the bundle's files"):
        read_golden(copied)


@pytest.mark.parametrize("shape", [[2**62, 3, 32, 32], [], None, "4", [1.0], [[]]])
def test_the_input_is_of_the_shape_that_the_manifest_says(copied: Path, shape: Any) -> None:
    manifest = json.loads((copied / MANIFEST).read_text())
    manifest["input"]["shape"] = shape
    (copied / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ReportedError, match=r"does not describe a network.*input of shape"):
        read_golden(copied)


@pytest.mark.parametrize("name", [MANIFEST, DESCRIPTION])
@pytest.mark.parametrize("text", [DEEP, '{"a":' * 100_000, "", "[]", "3", "\ud800", "NaN"])
def test_what_is_deep_or_no_object_is_refused(copied: Path, name: str, text: str) -> None:
    (copied / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    assert not understood(lambda: read_golden(copied))
    assert is_golden(copied)
    if name == MANIFEST:
        with pytest.raises(ReportedError, match=r"manifest\.json: no manifest of a golden bundle"):
            verify(copied, copied)


@pytest.mark.parametrize("name", [MANIFEST, DESCRIPTION, ARRAYS, "outputs.npz", "weights.npz"])
@pytest.mark.skipif("not hasattr(os, 'mkfifo')", reason="no FIFOs here")
def test_a_fifo_in_the_place_of_a_file_is_refused(copied: Path, name: str) -> None:
    (copied / name).unlink()
    os.mkfifo(copied / name)
    assert not understood(lambda: read_golden(copied))
    if name in (DESCRIPTION, ARRAYS):  # with digests, they are looked at before
        assert not understood(lambda: read_steps(copied))


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 10**400])
def test_a_tolerance_that_allows_anything_is_none(copied: Path, value: Any) -> None:
    described = json.loads((copied / DESCRIPTION).read_text())
    described["tolerances"]["loss"] = [value, value]
    (copied / DESCRIPTION).write_text(json.dumps(described).replace("Infinity", "1e999"))
    assert not understood(lambda: read_steps(copied))


def test_an_older_bundle_of_another_type_is_not_replaced(tmp_path: Path) -> None:
    model = distinguishing_model(SMALL["plain"])
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / MANIFEST).write_text(DEEP)
    assert not understood(lambda: write_golden(model, tmp_path / "b"))
    assert (tmp_path / "b" / MANIFEST).read_text() == DEEP


@pytest.mark.parametrize("array", ["x", np.zeros((2, 0), np.float32)])
def test_a_training_dump_of_odd_arrays_is_told(bundle: Path, array: Any, tmp_path: Path) -> None:
    with np.load(bundle / ARRAYS) as arrays:
        dump = {name: arrays[name] for name in arrays.files if name not in ("input", "labels")}
    assert verify(bundle, dump).verdict == "agree"
    name = "batch_mean/stage0.branch_3x3.bn"
    found = next((each for each in dump if each.startswith("batch_mean/")), name)
    np.savez(tmp_path / "dump.npz", **dump | {found: np.asarray(array)})
    understood(lambda: verify(bundle, tmp_path / "dump.npz"))
