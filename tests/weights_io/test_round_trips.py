"""Save then load is the identity: every container, every element type, any shape and value."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import weights_io
from weights_io.dtypes import STORED

CONTAINERS: list[weights_io.Container] = ["npz", "safetensors", "torch-zip", "torch-legacy"]
WITH_METADATA: list[weights_io.Container] = ["npz", "safetensors", "torch-zip"]
SHAPES = [(), (0,), (1,), (3, 0, 2), (2, 3, 4, 5)]

Save = Callable[..., weights_io.Archive]


@pytest.fixture
def reopened(tmp_path: Path) -> Save:
    """Save arrays to a file, and open what stands there."""

    def save(
        arrays: dict[str, NDArray[Any]], container: weights_io.Container, **options: Any
    ) -> weights_io.Archive:
        path = tmp_path / "weights"
        weights_io.save_weights(path, arrays, container=container, **options)
        return weights_io.open_weights(BytesIO(path.read_bytes()))

    return save


def random_array(dtype: str, shape: tuple[int, ...], seed: int) -> NDArray[Any]:
    """Every bit pattern of the type can occur: NaN payloads, infinities, subnormals."""
    count = int(np.prod(shape, dtype=int))
    raw = np.random.default_rng(seed).bytes(count * STORED[dtype].itemsize)
    if dtype == "bool":
        return (np.frombuffer(raw, np.uint8) & 1).astype(bool).reshape(shape)
    return np.frombuffer(raw, np.dtype(dtype)).reshape(shape)


def assert_same(got: NDArray[Any], wanted: NDArray[Any]) -> None:
    assert got.dtype == wanted.dtype
    assert got.shape == wanted.shape
    assert got.tobytes() == wanted.tobytes()
    assert got.flags.c_contiguous
    assert got.flags.writeable
    assert got.dtype.isnative


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("dtype", [dtype for dtype in STORED if dtype != "bfloat16"])
def test_every_type_comes_back_bit_for_bit(
    reopened: Save, container: weights_io.Container, dtype: str
) -> None:
    arrays = {f"a{i}": random_array(dtype, shape, i) for i, shape in enumerate(SHAPES)}
    with reopened(arrays, container) as archive:
        assert archive.container == container
        root: Any = archive.root
        assert list(root) == list(arrays)
        for name, wanted in arrays.items():
            lazy = root[name]
            assert (lazy.dtype, lazy.shape, lazy.nbytes) == (dtype, wanted.shape, wanted.nbytes)
            assert_same(lazy.read(), wanted)
            assert_same(lazy.read(), wanted)


@pytest.mark.parametrize("container", ["safetensors", "torch-zip", "torch-legacy"])
def test_every_bfloat16_comes_back_as_its_float32(
    tmp_path: Path, container: weights_io.Container
) -> None:
    bits = np.arange(1 << 16, dtype=np.uint32) << 16
    wanted = bits.view(np.float32).reshape(256, 256)
    spec = weights_io.ArraySpec("w", wanted.shape, "bfloat16")
    path = tmp_path / "weights"
    weights_io.write_weights(path, [spec], [wanted], container=container)
    with weights_io.open_weights(path) as archive:
        lazy = archive.root["w"]  # type: ignore[index]
        assert (lazy.dtype, lazy.nbytes) == ("bfloat16", 2 << 16)
        assert_same(lazy.read(), wanted)


@pytest.mark.parametrize("container", WITH_METADATA)
def test_metadata_comes_back(reopened: Save, container: weights_io.Container) -> None:
    metadata = {"eps": "1e-05", "model": "RepVGG-A0", "ü\n": '"\0\ud7ff{}', "": ""}
    with reopened({"w": np.ones(3)}, container, metadata=metadata) as archive:
        assert archive.metadata == metadata
        root: Any = archive.root
        assert list(root) == ["w"]


@pytest.mark.parametrize("container", CONTAINERS)
def test_without_metadata_there_is_none(reopened: Save, container: weights_io.Container) -> None:
    with reopened({"w": np.ones(3)}, container) as archive:
        assert archive.metadata == {}


@pytest.mark.parametrize("container", CONTAINERS)
@settings(deadline=None)  # a shared machine can stall on a file
@given(
    shape=st.lists(st.integers(0, 5), max_size=5).map(tuple),
    dtype=st.sampled_from([dtype for dtype in STORED if dtype != "bfloat16"]),
    seed=st.integers(0, 1 << 32),
    order=st.sampled_from("CFS"),
    name=st.text(st.characters(exclude_characters="\0/\\", exclude_categories=["Cs"]), min_size=1),
)
def test_any_array_under_any_name_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    container: weights_io.Container,
    shape: tuple[int, ...],
    dtype: str,
    seed: int,
    order: str,
    name: str,
) -> None:
    if name in ("__metadata__", "."):
        name = "a"
    wanted = random_array(dtype, shape, seed)
    given_array = {"C": wanted, "F": np.asarray(wanted, order="F"), "S": _strided(wanted)}[order]
    path = tmp_path_factory.mktemp("any") / "weights"
    weights_io.save_weights(path, {name: given_array}, container=container)
    with weights_io.open_weights(path) as archive:
        assert isinstance(archive.root, dict)
        assert list(archive.root) == [name]
        assert_same(archive.root[name].read(), wanted)


def _strided(array: NDArray[Any]) -> NDArray[Any]:
    """The same values, every second element of a buffer, in the other byte order."""
    swapped = array.astype(array.dtype.newbyteorder(">"))
    return np.repeat(swapped[..., None], 2, axis=-1)[..., 0]
