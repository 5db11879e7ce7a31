"""Each gradient of a convolution by each algorithm, and the memory they borrow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repvgg_ref.arrays import Array
from repvgg_ref.cpu import NUMPY
from repvgg_ref.cpu.convolution import phases
from repvgg_ref.cpu.convolution.conv2d import square_convolution, window_of
from repvgg_ref.cpu.convolution.weight_gradient import (
    direct_weight_gradient,
    winograd_weight_gradient,
)
from repvgg_ref.cpu.convolution.winograd import WinogradConvolution
from repvgg_ref.cpu.convolution.winograd_stride_2 import Stride2Convolution
from repvgg_ref.cpu.workers import memory
from repvgg_ref.cpu.workers.pool import pool
from repvgg_ref.exact.points import POINTS, POINTS_OF_STRIDE_2
from repvgg_ref.models.network import build
from repvgg_ref.ops import REFERENCE
from tests.examples import examples
from tests.models.small import SMALL, batch

TILES = [*((m, 1) for m in POINTS), *((m, 2) for m in POINTS_OF_STRIDE_2)]


def nchw(x: Array) -> Array:
    return x.transpose(0, 3, 1, 2)


def error(got: Array, wanted: Array) -> float:
    """The largest, over the largest value; NaN stays NaN."""
    assert got.shape == wanted.shape
    return float(np.abs(got - wanted).max() / max(1.0, np.abs(wanted).max()))


shapes = st.fixed_dictionaries(
    {
        "images": st.integers(1, 3),
        "size": st.tuples(st.integers(3, 17), st.integers(3, 17)),
        "groups": st.integers(1, 3),
        "channels": st.integers(1, 4),
        "outputs": st.integers(1, 4),
        "padding": st.integers(0, 2),
        "threads": st.integers(1, 3),
        "seed": st.integers(0, 2**32 - 1),
    }
)


@examples(60)
@given(tile=st.sampled_from(TILES), shape=shapes)
def test_winograd_without_a_padded_copy(tile: tuple[int, int], shape: dict[str, Any]) -> None:
    """Output and weight gradient from x itself, the zeros around it only being known of."""
    (m, stride), groups, padding = tile, shape["groups"], shape["padding"]
    rng = np.random.default_rng(shape["seed"])
    height, width = shape["size"]
    channels, outputs = groups * shape["channels"], groups * shape["outputs"]
    x = rng.normal(size=(shape["images"], height, width, channels))
    weight = rng.normal(size=(outputs, channels // groups, 3, 3))
    geometry = {"stride": stride, "padding": padding, "dilation": 1, "groups": groups}
    wanted, cache = REFERENCE.conv2d_forward(nchw(x), weight, None, **geometry)
    conv = square_convolution(x, weight, **geometry)
    threads = pool(shape["threads"])
    tiled = WinogradConvolution if stride == 1 else Stride2Convolution
    winograd = tiled(conv.shape, weight, m, threads.threads, {}, pool=threads)
    y: Array = np.full((len(x), conv.shape.height, conv.shape.width, outputs), np.nan)
    arena = np.full(winograd.scratch, np.nan)
    grad_y: Array = rng.normal(size=y.shape)
    with threads.session():
        for stage in winograd.stages(x, y, None, arena, relu=False, border=padding):
            threads.run(stage)
        by_tiles = winograd_weight_gradient(x, grad_y, conv.shape, padding, m, threads)
        directly = direct_weight_gradient(x, grad_y, window_of(conv), threads)
    gradient = REFERENCE.conv2d_backward(nchw(grad_y), cache).grad_weight
    assert error(nchw(y), wanted) <= 1e-11
    assert error(by_tiles, gradient) <= 1e-11
    assert error(directly, gradient) <= 1e-12


@pytest.mark.parametrize("m", POINTS)
def test_error_of_the_weight_gradient_in_float32(m: int) -> None:
    """Against float64, 3136 pixels summed; ten times what was seen, or less."""
    rng = np.random.default_rng(0)
    x = np.maximum(rng.normal(size=(4, 28, 28, 64)), 0).astype(np.float32)
    grad_y = rng.normal(size=(4, 28, 28, 48)).astype(np.float32)
    weight = np.zeros((48, 64, 3, 3), np.float32)
    conv = square_convolution(x, weight, stride=1, padding=1, dilation=1, groups=1)
    threads = pool()
    with threads.session():
        got = winograd_weight_gradient(x, grad_y, conv.shape, 1, m, threads)
        wide = x.astype(np.float64), grad_y.astype(np.float64)
        wanted = direct_weight_gradient(*wide, window_of(conv), threads)
    assert np.abs(got - wanted).max() <= 2e-5 * np.abs(wanted).max()


@examples(60)
@given(shape=shapes)
def test_the_four_phases_of_stride_2(shape: dict[str, Any]) -> None:
    groups, rng = shape["groups"], np.random.default_rng(shape["seed"])
    height, width = shape["size"]
    channels, outputs = groups * shape["channels"], groups * shape["outputs"]
    x = rng.normal(size=(shape["images"], height, width, channels))
    weight = rng.normal(size=(outputs, channels // groups, 3, 3))
    geometry = {"stride": 2, "padding": 1, "dilation": 1, "groups": groups}
    conv = square_convolution(x, weight, **geometry)
    assert phases.fits(conv.shape, 1)
    assert not phases.fits(replace(conv.shape, dilation=2), 1)
    wanted, cache = REFERENCE.conv2d_forward(nchw(x), weight, None, **geometry)
    grad_y = rng.normal(size=wanted.shape)
    grad_x, threads = np.full(x.shape, np.nan), pool(shape["threads"])
    given_y = np.ascontiguousarray(grad_y.transpose(0, 2, 3, 1))
    with threads.session():
        phases.stride_2_input_gradient(given_y, weight, conv.shape, grad_x, threads)
    assert error(nchw(grad_x), REFERENCE.conv2d_backward(grad_y, cache).grad_x) <= 1e-12


def test_memory_is_used_again_only_when_nobody_sees_it() -> None:
    memory.IDLE.clear()
    first = memory.empty((1 << 16, 3), np.float32)
    address, view = first.ctypes.data, first[5:, 1]
    view[...] = 7
    del first
    other = memory.empty((1 << 16, 3), np.float32)
    other[...] = 0
    assert (view == 7).all()
    del view
    again = memory.empty((3, 1 << 16), np.float32)
    assert again.ctypes.data == address
    assert again.flags.writeable
    assert other.ctypes.data != address


@pytest.mark.parametrize("shape", [(3, 5), (1 << 16, 3)], ids=["small", "used again"])
@pytest.mark.parametrize("offset", [0, 16])
def test_memory_begins_where_it_is_asked_to(shape: tuple[int, int], offset: int) -> None:
    for _ in range(2):
        array = memory.empty(shape, np.float32, offset=offset)
        assert array.shape == shape
        assert array.ctypes.data % memory.LINE == offset
        del array


def test_memory_that_nobody_wants_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    idle = memory._Idle()
    monkeypatch.setattr(memory, "PATIENCE", 3)
    idle.put(np.empty(10, np.uint8))
    kept = idle._waiting[0][1]
    for _ in range(5):
        idle.take(99)
    assert idle.take(10) is not kept


@pytest.mark.parametrize("left", [0, 1], ids=["gone", "another's"])
def test_memory_that_another_thread_took_between_look_and_take_is_not_taken(left: int) -> None:
    class Hurried(list[tuple[int, Array]]):
        """Of which another thread takes what was just looked at."""

        def __getitem__(self, at: Any) -> Any:
            found = super().__getitem__(at)
            if at == 1:
                self[1:] = left * [(0, np.empty(7, np.uint8))]
            return found

    idle = memory._Idle()
    idle._waiting = Hurried((0, np.empty(size, np.uint8)) for size in (5, 10))
    assert idle.take(10).size == 10
    assert len(idle._waiting) == 1 + left


def test_a_step_keeps_no_hold_on_the_last_one_and_repeats_to_the_bit() -> None:
    arch = SMALL["plain"]
    model = build(arch, seed=0)
    x, labels = batch(arch, count=8, dtype=np.float32)
    x = np.ascontiguousarray(np.tile(x, (1, 1, 3, 3)))  # large enough for borrowed memory
    first = model.loss_and_grads(x, labels, backend="numpy")
    kept = {name: grad.copy() for name, grad in first.grads.items()}
    model.loss_and_grads(-x, labels, backend="numpy")
    for name, grad in first.grads.items():
        np.testing.assert_array_equal(grad, kept[name])
    again = model.loss_and_grads(x, labels, backend="numpy")
    for name, grad in again.grads.items():
        np.testing.assert_array_equal(grad, kept[name])


def test_a_block_by_parts_of_a_batch_is_summed() -> None:
    """The weight gradient of a batch is the sum over its images, by whatever algorithm."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(4, 14, 14, 16)).astype(np.float32)
    weight = rng.normal(size=(16, 16, 3, 3)).astype(np.float32)
    geometry = {"stride": 1, "padding": 1, "dilation": 1, "groups": 1}
    y, cache = NUMPY.conv2d_forward(x, weight, None, **geometry)
    whole = NUMPY.conv2d_backward(y, cache).grad_weight
    parts = np.zeros_like(whole)
    for n in range(len(x)):
        y, cache = NUMPY.conv2d_forward(x[n : n + 1], weight, None, **geometry)
        parts += NUMPY.conv2d_backward(y, cache).grad_weight
    assert np.abs(whole - parts).max() <= 1e-4 * np.abs(whole).max()
