"""How kernels are launched: errors, geometry, alignment; nobody waits for the device."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repvgg_ref.errors import ReportedError, ShapeError
from repvgg_ref.gpu.geometry import geometry
from repvgg_ref.gpu.kernels import launch
from tests.gpu.fake_cupy import LEDGER
from tests.gpu.kernels.cases import kernels
from tests.gpu.kernels.everything import CASES, dtype_of

SHAPE = (2, 3, 4, 8)


def _ones(cupy: Any, *shape: int, dtype: Any = np.float32) -> Any:
    return cupy.ones(shape, dtype)


def test_no_launch_waits_for_the_device(cupy: Any) -> None:
    LEDGER.clear()
    for case in CASES.values():
        for check in case(cupy, np.dtype(np.float16)):
            assert check
    assert set(LEDGER.syncs) <= {"get()"}  # the cases' own


def test_results_are_written_where_they_are_wanted(cupy: Any) -> None:
    gpu = kernels()

    out = cupy.empty((2, 8), np.float32)
    assert gpu.spatial_sums(_ones(cupy, *SHAPE), out=out) is out
    assert (out.get() == 12).all()


@pytest.mark.parametrize("offset", [1, 2, 4])
def test_a_view_that_starts_anywhere_is_taken(cupy: Any, offset: int) -> None:
    gpu = kernels()

    values = np.random.default_rng(0).standard_normal(SHAPE)
    flat = cupy.zeros(values.size + offset, np.float32)
    flat[offset:] = cupy.asarray(values.astype(np.float32).ravel())
    view = flat[offset:].reshape(SHAPE)
    assert np.allclose(gpu.channel_moments(view).get()[0, 0], values.mean((0, 1, 2)), atol=1e-6)
    gpu.bias_relu(view, None)
    assert (flat.get()[:offset] == 0).all()
    assert np.array_equal(flat.get()[offset:] > 0, values.ravel() > 0)


def _mistakes(cupy: Any) -> dict[str, Any]:
    gpu = kernels()

    x, y, a = _ones(cupy, *SHAPE), _ones(cupy, 2, 3, 4, 7), _ones(cupy, 4, 8)
    half, vector = _ones(cupy, *SHAPE, dtype=np.float16), _ones(cupy, 8)
    turned = x.transpose(0, 2, 1, 3)
    settings: dict[str, Any] = {"stride": 1, "padding": 0, "dilation": 1}
    sizes = geometry(SHAPE, (4, 8, 3, 3), **settings, groups=1)
    labels = cupy.zeros(2, np.int32)
    return {
        "shape": lambda: gpu.branches_forward(x, y, None, a, relu=True),
        "dtype": lambda: gpu.branches_forward(x, None, half, a, relu=True),
        "not contiguous": lambda: gpu.channel_moments(turned),
        "coefficients": lambda: gpu.branches_forward(x, None, None, a[:3], relu=True),
        "out": lambda: gpu.spatial_sums(x, out=half),
        "no value": lambda: gpu.channel_moments(_ones(cupy, 0, 3, 3, 8)),
        "scalar": lambda: gpu.channel_moments(cupy.ones((), np.float32)),
        "moments": lambda: gpu.branches_backward_sums(x, x, x, None, None, a),
        "gamma": lambda: gpu.branch_coefficients(
            _ones(cupy, 3, 2, 8), [vector, None, vector[:7]], [vector, None, vector], eps=1e-5
        ),
        "groups": lambda: geometry(SHAPE, (3, 2, 3, 3), **settings, groups=3),
        "no output": lambda: geometry(SHAPE, (4, 8, 5, 3), **settings, groups=1),
        "images": lambda: gpu.im2col(y, sizes),
        "columns": lambda: gpu.col2im(x, sizes),
        "too many pixels": lambda: gpu.im2col(x, sizes._replace(images=2**29)),
        "too many windows": lambda: gpu.col2im(x, sizes._replace(images=2**29)),
        "bias": lambda: gpu.bias_relu(x, vector[:7]),
        "no pixel": lambda: gpu.spatial_sums(_ones(cupy, 2, 0, 3, 8)),
        "scale": lambda: gpu.scale_channels(x, vector),
        "16-bit scale": lambda: gpu.scale_channels(half, _ones(cupy, 2, 8, dtype=np.float16)),
        "values": lambda: gpu.spread_over_pixels(vector, shape=SHAPE, dtype=np.float32),
        "labels": lambda: gpu.softmax_cross_entropy_forward(a[:2], labels, label_smoothing=0),
        "logits": lambda: gpu.softmax_cross_entropy_forward(x, labels, label_smoothing=0),
        "smoothing": lambda: gpu.softmax_cross_entropy_forward(
            a, cupy.zeros(4, np.int64), label_smoothing=1.5
        ),
    }


def test_what_does_not_fit_is_refused_in_one_line(cupy: Any) -> None:
    for name, mistake in _mistakes(cupy).items():
        with pytest.raises(ReportedError) as caught:
            mistake()
        assert "\n" not in str(caught.value), name
        assert ":" in str(caught.value), name


@given(
    length=st.integers(1, 10**10),
    channels=st.integers(1, 4096),
    itemsize=st.sampled_from([2, 4, 8]),
    aligned=st.booleans(),
)
def test_rows_are_cut_so_that_each_is_someones(
    length: int, channels: int, itemsize: int, aligned: bool
) -> None:
    array: Any = SimpleNamespace(
        shape=(length, channels),
        size=length * channels,
        itemsize=itemsize,
        data=SimpleNamespace(ptr=0 if aligned else itemsize),
    )
    rows = launch.split_rows([array, None], least_rows=64, blocks=1024)
    assert rows.width in (1, 16 // itemsize)
    assert channels % rows.width == 0
    assert rows.lanes * rows.tiles * rows.width >= channels
    assert rows.lanes * rows.height <= launch.THREADS
    assert (rows.chunks - 1) * rows.rows_per_chunk < length <= rows.chunks * rows.rows_per_chunk
    # The partial sums of two float32 a channel and chunk are at most 1/16 of 16-bit input, 1/8 if
    # there are less than 64 rows for a chunk, in which case there is one chunk.
    assert rows.chunks == 1 or rows.rows_per_chunk >= 64
    assert rows.tiles * rows.chunks <= max(1024 + rows.tiles, rows.tiles * length // 64)
    assert max(rows.grid()[1:]) < 65536


def test_cupy_passes_a_structure_by_value() -> None:
    """What the emulator takes for granted: its bytes are what the parameter points at."""
    installed = {each.name for each in importlib.metadata.distributions() if each.name}
    if not any(name.startswith("cupy-cuda") for name in installed):
        pytest.skip("CuPy is not installed")  # the fake one of this test file does not count
    program = (
        "import numpy as np; from cupy.cuda.function import CNumpyArray; "
        "table = np.zeros((), [('arrays', np.uint64, 4)]); "
        "assert CNumpyArray(table).ptr == table.ctypes.data"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_type_that_no_kernel_knows_is_named() -> None:
    with pytest.raises(ShapeError, match="int32"):
        launch.options(np.int32)
    assert launch.options("bfloat16") == launch.options(np.uint16)
    assert dtype_of("float16") == np.float16
