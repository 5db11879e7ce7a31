"""The fake CuPy is as strict as CuPy, where it matters, or stricter."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from repvgg_ref.gpu.math_mode import bfloat16
from tests.gpu.fake_cupy import LEDGER, VERSION, installed
from tests.gpu.fake_cupy.device_array import NAMES
from tests.studies.gpu import record_cupy_names

ROOT = Path(__file__).parents[2]
USERS = (ROOT / "repvgg_ref/gpu", ROOT / "tests/studies/gpu")


@pytest.fixture
def cupy() -> Iterator[Any]:
    with installed() as module:
        yield module


def test_its_names_are_those_of_the_installed_cupy() -> None:
    real = pytest.importorskip("cupy", reason="CuPy is not installed")
    if real.__version__ != VERSION:
        pytest.skip(f"names are recorded of CuPy {VERSION}, installed is {real.__version__}")
    found = record_cupy_names.installed_names()
    assert {place: names.split() for place, names in found.items()} == NAMES


def test_every_dotted_name_that_we_use_is_the_installed_cupys() -> None:
    pytest.importorskip("cupy", reason="CuPy is not installed")
    used = {name for folder in USERS for path in folder.rglob("*.py") for name in dotted(path)}
    assert {"cupy.cuda.Event", "cupy._core._routines_linalg"} <= used
    missing = []
    for name in sorted(used):
        module, *parts = name.split(".")
        value: Any = importlib.import_module(module)
        for part in parts:
            value = getattr(value, part, None)
        if value is None:
            missing.append(name)
    assert missing == []


def dotted(path: Path) -> Iterator[str]:
    """``cupy.cuda.Event`` and the like, as they stand in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts, node = [node.attr, *parts], node.value
        if parts and isinstance(node, ast.Name) and node.id in ("cupy", "cupyx"):
            yield ".".join((node.id, *parts))


def test_it_offers_no_name_that_cupy_has_not(cupy: ModuleType) -> None:
    import cupyx

    places: dict[str, Any] = {
        "cupy": cupy,
        "cupy.ndarray": cupy.ndarray,
        "cupy.cuda": cupy.cuda,
        "cupy.cuda.runtime": cupy.cuda.runtime,
        "cupy.cuda.Device": cupy.cuda.Device,
        "cupy.cuda.Event": cupy.cuda.Event,
        "cupy.cuda.Stream": cupy.cuda.Stream,
        "cupy.cuda.Graph": cupy.cuda.Graph,
        "cupy.cuda.MemoryPool": cupy.cuda.MemoryPool,
        "cupy.RawModule": cupy.RawModule,
        "cupyx": cupyx,
    }
    allowed_everywhere = {"ptr", "time", "null_stream", "__weakref__", "__dict__", "__module__"}
    for place, value in places.items():
        extra = {name for name in vars(value) if not name.startswith("_")} - set(NAMES[place])
        assert extra <= allowed_everywhere, (place, extra)


@pytest.mark.parametrize("name", ["lib", "fft", "testing"])
def test_what_it_cannot_imitate_is_missing(name: str, cupy: Any) -> None:
    assert name in NAMES["cupy"]
    assert not hasattr(cupy, name)


@pytest.mark.parametrize("name", ["block", "einsum_path", "apply_over_axis", "nditer", "vecdot"])
def test_what_only_numpy_has_is_missing(name: str, cupy: Any) -> None:
    assert not hasattr(cupy, name)


def test_numpy_arrays_are_refused_on_either_side(cupy: Any) -> None:
    device, host = cupy.ones(3), np.ones(3)
    mixes: list[Callable[[], Any]] = [
        lambda: device + host,
        lambda: host + device,
        lambda: cupy.add(device, host),
        lambda: cupy.concatenate([device, host]),
        lambda: device[host.astype(int)],
        lambda: device.__setitem__(0, host[:1]),
    ]
    for mix in mixes:
        with pytest.raises(TypeError, match="Unsupported type"):
            mix()
    with pytest.raises(TypeError, match="Implicit conversion"):
        np.asarray(device)
    with pytest.raises(ValueError, match="Unsupported dtype"):
        cupy.asarray(np.array([object()]))


def test_numpy_scalars_are_welcome(cupy: Any) -> None:
    doubled = np.float32(2) * cupy.ones(3, cupy.float32)
    assert doubled.get().tolist() == [2, 2, 2]


def test_a_choice_among_bfloat16_is_float32(cupy: Any) -> None:
    """CuPy 14 has `add` and `maximum` of bfloat16, and no `where`."""
    narrow = cupy.ones(3, bfloat16())
    assert cupy.where(narrow > 0, narrow, narrow).dtype == np.float32
    assert cupy.maximum(narrow, narrow).dtype == (narrow + narrow).dtype == narrow.dtype


def test_the_installed_cupy_has_no_choice_among_bfloat16() -> None:
    search = pytest.importorskip("cupy._sorting.search", reason="CuPy is not installed")
    assert not any("E" in loop for loop in search._where_ufunc.types)


def test_every_wait_for_the_device_is_counted(cupy: Any) -> None:
    x = cupy.arange(3.0)
    total = x.sum()
    assert isinstance(total, cupy.ndarray)
    assert not LEDGER.syncs
    float(total), int(total), bool(total), total.item(), x.get(), cupy.asnumpy(x), x[x > 1]
    assert sum(LEDGER.syncs.values()) == 7


def test_a_copy_to_the_device_is_a_copy(cupy: Any) -> None:
    host = np.zeros(3)
    device = cupy.asarray(host)
    host[0] = 1
    assert device.get()[0] == 0
    device.get()[0] = 1
    assert device.get()[0] == 0


def test_new_memory_is_full_of_nan(cupy: Any) -> None:
    assert np.isnan(cupy.empty((2, 3), cupy.float32).get()).all()
    assert np.isnan(cupy.empty_like(cupy.ones(3, cupy.float16)).get()).all()


def test_indices_out_of_range_wrap_as_on_a_device(cupy: Any) -> None:
    x = cupy.arange(3)
    assert x[cupy.asarray(np.array([4]))].get().tolist() == [1]


def test_matrix_products_that_surprise_are_refused(cupy: Any) -> None:
    half = cupy.ones((2, 3, 3), cupy.float16)
    with pytest.raises(AssertionError, match="two dimensions"):
        half @ half
    with pytest.raises(AssertionError, match="unlike dtypes"):
        cupy.matmul(half[0], cupy.ones((3, 3), cupy.float32))
    with pytest.raises(AssertionError, match="TF32"):
        cupy.einsum("ij,jk", half[0], half[0])


def test_its_generator_lacks_what_cupys_lacks(cupy: Any) -> None:
    rng = cupy.random.default_rng(0)
    assert rng.random(3).shape == (3,)
    for name in ("normal", "shuffle", "permutation", "choice"):
        assert not hasattr(rng, name)


def test_a_captured_graph_runs_when_it_is_launched(cupy: Any) -> None:
    x, y = cupy.ones(3), cupy.zeros(3)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        cupy.add(x, 1, out=y)
        with pytest.raises(RuntimeError, match="Capture"):
            x + 1
        with pytest.raises(RuntimeError, match="Capture"):
            cupy.matmul(cupy.ones((2, 2)), cupy.ones((2, 2)))
        graph = stream.end_capture()
    assert y.get().tolist() == [0, 0, 0]
    graph.launch(stream)
    assert y.get().tolist() == [2, 2, 2]


def test_the_modules_come_back_afterwards() -> None:
    before = importlib.util.find_spec("cupy")
    with installed():
        pass
    assert importlib.util.find_spec("cupy") == before
