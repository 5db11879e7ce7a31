"""The table of layers: products counted by hand, times that add up, a ceiling that is one."""

from __future__ import annotations

import time

import numpy as np
import pytest

from repvgg_ref.bench.layers import done_macs, gemm_ceiling, time_layers
from repvgg_ref.bench.task import Task
from repvgg_ref.cpu.convolution.schedule import ConvShape
from repvgg_ref.cpu.engine import Engine
from repvgg_ref.models.cost import cost
from repvgg_ref.models.network import fuse
from tests.models.small import SMALL, distinct_model


@pytest.mark.parametrize(
    ("shape", "m", "wanted"),
    [
        (ConvShape(2, 8, 8, 4, 6), 0, 2 * 64 * 9 * 24),
        (ConvShape(2, 8, 8, 4, 6), 2, 2 * 16 * 16 * 24),  # F(2, 3): 16 products for 4 pixels
        (ConvShape(2, 8, 8, 4, 6), 4, 2 * 4 * 36 * 24),  # F(4, 3): 36 for 16
        (ConvShape(1, 7, 7, 4, 6), 4, 4 * 36 * 24),  # half-empty tiles cost as much
        (ConvShape(1, 8, 8, 4, 6, groups=2), 2, 16 * 16 * 12),
        (ConvShape(1, 5, 5, 3, 7, kernel=1), 0, 25 * 21),
    ],
)
def test_products_are_those_of_the_algorithm(shape: ConvShape, m: int, wanted: int) -> None:
    assert done_macs(shape, m) == wanted


def test_layers_add_up_to_a_run() -> None:
    model = fuse(distinct_model(SMALL["grouped"], dtype="float32"))
    x = np.random.default_rng(0).standard_normal((4, 1, 60, 60), np.float32)
    engine = Engine(model.arch.blocks, model.params, dtype=x.dtype, threads=1)
    found = time_layers(engine, x, rounds=3, threads=1, side=64)
    assert [row["layer"] for row in found["rows"]] == list(model.arch.layer_names[:-1])
    shares = sum(row["share"] for row in found["rows"]) + found["rest_seconds"] / found["seconds"]
    assert shares == pytest.approx(1)
    # The layers' effective work is the network's, less the linear layer.
    work = sum(row["gflops"] * row["seconds"] for row in found["rows"]) * 1e9 / 2
    linear = model.arch.features * model.arch.num_classes
    assert work == pytest.approx(4 * (cost(model.arch, height=60, width=60).macs - linear))


def test_the_ceiling_is_not_below_a_plain_product() -> None:
    side = 256
    a = np.ones((side, side), np.float32)

    def plain() -> float:
        begin = time.perf_counter()
        np.matmul(a, a)
        return 2 * side**3 / (time.perf_counter() - begin) / 1e9

    assert gemm_ceiling(1, side) > 0.2 * max(plain() for _ in range(5))


def test_a_task_is_the_same_in_every_process() -> None:
    one, two = (Task("inference", "RepVGG-A0", 1, 8, 1) for _ in range(2))
    assert (one.images() == two.images()).all()
    left, right = one.model(), two.model()
    assert all((left.params[name] == array).all() for name, array in right.params.items())
    assert one.macs == cost(left.arch, height=8, width=8).macs


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["ResNet-18", "ResNet-50", "VGG-16"])
def test_activations_of_a_comparison_network_neither_vanish_nor_overflow(name: str) -> None:
    task = Task("inference", name, 2, 64, 1)
    for y in fuse(task.model()).forward(task.images(), layers=True).values():
        assert 1e-2 < y.std() < 1e4
        assert np.abs(y[0] - y[1]).max() > 0.02 * np.abs(y).max()  # the image matters


def test_a_training_step_counts_three_passes() -> None:
    steps = [Task(kind, "RepVGG-A0", 2, 224, 1).macs for kind in ("inference", "training")]
    assert steps == [2 * 1_361_451_008, 6 * 1_361_451_008]
    assert Task("inference", "ResNet-18", 3, 224, 1).macs == 3 * 1_814_073_344
    assert Task("inference", "VGG-16", 1, 224, 1).macs == 15_470_264_320
    # The first linear layer reads 2 x 2 pixels of 512 channels there, not 7 x 7.
    fewer = 4096 * 512 * (7 * 7 - 2 * 2)
    convolutions = 15_470_264_320 - 4096 * (512 * 49 + 4096 + 1000)
    want = 15_470_264_320 - fewer - convolutions + convolutions * 64**2 // 224**2
    assert Task("inference", "VGG-16", 1, 64, 1).macs == want
