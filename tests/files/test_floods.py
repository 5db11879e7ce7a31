"""Understanding, inspecting and converting a file takes time in proportion to its arrays."""

from __future__ import annotations

import contextlib
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
import weights_io
from repvgg_ref.errors import CheckpointError, ReportedError
from repvgg_ref.files import identify, modules
from repvgg_ref.files.convert import convert
from repvgg_ref.files.inspect import inspect_file
from repvgg_ref.files.wrappers import select
from repvgg_ref.models.architectures import plain_architecture
from tests.random_networks import random_model
from tests.weights_io import floods
from tests.weights_io.counting import calls_of, growth

MOST = 2.15  # 2 ** 1.1: a slope of at most 1.1


def _inspected(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file.pth")
        path.write_bytes(data)
        inspect_file(path)


@pytest.mark.parametrize("case", floods.NAMING)
def test_names_are_understood_in_linear_time(case: str) -> None:
    size = 4000
    files = {size * factor: floods.NAMING[case](size * factor) for factor in (1, 2, 4)}
    assert growth(lambda n: _inspected(files[n]), size) <= MOST


_MANY = 50_000
PLAIN: dict[str, Any] = {
    "truths": [True] * _MANY,
    "numbers": tuple(range(_MANY)),
    "texts": {"entry": ["text"] * _MANY},
    "numbered": dict.fromkeys(range(_MANY)),
    "beside weights": [
        {"a.weight": weights_io.LazyArray((1,), "float32", lambda: np.ones(1))},
        [0.5] * _MANY,
    ],
}


class _Opened(weights_io.Archive):
    """An archive of what no file need say."""

    def __init__(self, root: Any) -> None:
        self.root = root


@pytest.mark.parametrize("root", PLAIN.values(), ids=PLAIN)
def test_plain_values_are_passed_over(root: Any) -> None:
    """With a name for each, a megabyte of truths took 2.4 s and 174 MB."""

    def search() -> None:
        with contextlib.suppress(CheckpointError):
            select(_Opened(root), "model", [])

    assert calls_of(search) < 1000
    tracemalloc.start()
    try:
        search()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000


def test_containers_without_arrays_get_no_names() -> None:
    root = {number: [None] for number in range(_MANY // 10)}
    archive = _Opened(root)
    assert calls_of(lambda: select(archive, "model", [])) < 20 * len(root)
    assert calls_of(lambda: select(archive, "model", [])) < 100  # `convert` asks twice


def _chain(folder: Path, depth: int, form: str) -> Path:
    arch = plain_architecture(depths=(depth,), channels=(1, 1), num_classes=1)
    model = random_model(arch, 0)
    path = folder / f"{form}-{depth}.npz"
    rr.save(rr.fuse(model) if form == "deploy" else model, path)
    return path


@pytest.mark.parametrize("form", ["train", "deploy"])
@pytest.mark.parametrize("run", [inspect_file, rr.load, convert])
def test_a_chain_of_blocks_takes_time_by_the_block(run: Any, form: str, tmp_path: Path) -> None:
    """Blocks of one channel, so that nothing but their number counts."""
    paths = {depth: _chain(tmp_path, depth, form) for depth in (6, 12, 24)}
    out = {"out": tmp_path / "out.npz"} if run is convert else {}
    assert growth(lambda n: run(paths[n], **out), 6) <= MOST


def test_a_chain_of_more_blocks_than_any_network_has_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 9
    monkeypatch.setattr(identify, "MOST_BLOCKS", most)

    def write(count: int) -> Path:
        names = ["stage0", *(f"stage1.{i}" for i in range(count - 1))]
        state: dict[str, Any] = {}
        state |= {f"{n}.rbr_reparam.weight": np.ones((1, 1, 3, 3), np.float32) for n in names}
        state |= {f"{n}.rbr_reparam.bias": np.ones(1, np.float32) for n in names}
        weights_io.save_weights(tmp_path / f"{count}.npz", state, container="npz")
        return tmp_path / f"{count}.npz"

    assert len(inspect_file(write(most)).missing) == 0
    with pytest.raises(weights_io.LimitError, match="too many blocks") as caught:
        inspect_file(write(most + 1))
    assert f"at most {most}" in str(caught.value)


def test_of_many_missing_blocks_the_first_are_named(tmp_path: Path) -> None:
    """Ten thousand are missing for each that is there."""
    state = {f"stage{s}.9999.rbr_reparam.weight": np.ones((1, 1, 3, 3), np.float32) for s in (1, 9)}
    weights_io.save_weights(tmp_path / "a.npz", state, container="npz")
    with pytest.raises(CheckpointError, match=r"also stage0, stage1\.0, stage1\.1.*stage1\.6"):
        rr.load(tmp_path / "a.npz")


def test_many_averages_under_one_roof_are_told_apart_in_linear_time(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(floods.averages(4000))
    with pytest.raises(ReportedError, match="several entries of the file hold weights"):
        rr.load(path)


def _blocks(count: int, channels: int = 1) -> dict[str, tuple[int, ...]]:
    """Shapes of blocks of a kind that has two eps: which, all keys of the file must tell."""
    one: dict[str, tuple[int, ...]] = {}
    for name, kernel in (("rbr_dense", 3), ("rbr_1x1", 1)):
        one[f"{name}.conv.weight"] = (channels, 1, kernel, kernel)
        for part in ("weight", "bias", "running_mean", "running_var"):
            one[f"{name}.bn.{part}"] = (channels,)
    return {f"{i}.{name}": shape for i in range(count) for name, shape in one.items()}


def test_which_eps_blocks_have_is_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For each block, it took a file of a megabyte 12 s."""
    seen: list[str] = []

    class Pattern:
        def search(self, key: str) -> None:
            seen.append(key)

    monkeypatch.setattr(modules, "_YOLO", Pattern())
    shapes = _blocks(20)
    found = modules.find_blocks(shapes)
    assert len(found.found) == 20
    assert seen == list(shapes)
    assert [note for note in found.notes if "eps 1e-05 is assumed" in note] == found.notes


def test_blocks_are_counted_against_the_elements_of_their_file() -> None:
    assert len(modules.find_blocks(_blocks(256)).found) == 256
    with pytest.raises(CheckpointError, match=r"too many .* blocks .got more than 256"):
        modules.find_blocks(_blocks(257))
    assert len(modules.find_blocks(_blocks(257, channels=300)).found) == 257


def test_an_expression_is_made_once_for_blocks_that_are_alike() -> None:
    modules._expression.cache_clear()
    blocks = modules.find_blocks(_blocks(40)).found
    assert modules._expression.cache_info().misses < 10
    assert all(block.linear is blocks[0].linear for block in blocks)
