"""Where the fused chain's time goes, layer by layer, against what the machine's BLAS can do.

`gflops` is effective: 2 x multiply-accumulates of the direct form over time, so Winograd may pass
the ceiling. `done_gflops` counts the products that the algorithm does; the rest of the way to the
ceiling is transforms, gathering, memory and Python.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.cpu.convolution.algorithms import tile_of
from repvgg_ref.cpu.convolution.schedule import ConvShape
from repvgg_ref.cpu.convolution.winograd import Tiling
from repvgg_ref.cpu.convolution.winograd_stride_2 import Strips
from repvgg_ref.cpu.engine import Engine, chunks
from repvgg_ref.cpu.plan import Layer, conv_shapes
from repvgg_ref.cpu.workers.pool import Stage, pool

SIDE = 2048  # of the matrices that measure the ceiling: 50 MB, beyond every cache
TRIES = 3


def time_layers(
    engine: Engine, x: Array, *, rounds: int, threads: int, side: int = SIDE
) -> dict[str, Any]:
    """The median time of every layer, and the ceiling measured before and after.

    Parameters
    ----------
    x : (N, C, H, W)
        Only the images that go through the chain together are used.
    side : int
        Of the matrices whose product is the ceiling.
    """
    x = chunks(x)[0]
    engine.run(x)  # views are made and memory is touched
    plan = engine.plan(x.shape)
    ceiling = gemm_ceiling(threads, side)
    names = [layer.spec.name for layer in plan.layers]
    times: dict[str, list[float]] = {name: [] for name in [*names, "rest"]}
    for _ in range(rounds):
        for name, spent in _once(engine.run, x, names).items():
            times[name].append(spent)
    ceiling = max(ceiling, gemm_ceiling(threads, side))
    seconds = {name: median(found) for name, found in times.items()}
    total = sum(seconds.values())
    specs = tuple(layer.spec for layer in plan.layers)
    shapes = conv_shapes(specs, len(x), *x.shape[2:])
    return {
        "images": len(x),
        "ceiling_gflops": ceiling,
        "seconds": total,
        "rest_seconds": seconds["rest"],
        "rows": [
            _row(layer, shape, seconds[layer.spec.name], total)
            for layer, shape in zip(plan.layers, shapes, strict=True)
        ],
    }


def gemm_ceiling(threads: int, side: int) -> float:
    """GFLOP/s of a float32 product, the better of BLAS's own threads and ours."""
    from threadpoolctl import threadpool_limits

    a, b = (np.ones((side, side), np.float32) for _ in range(2))
    out, workers = np.empty_like(a), pool(threads)
    few = -(-side // threads)

    def part(worker: int, item: int) -> None:
        some = slice(item * few, (item + 1) * few)
        np.matmul(a[some], b, out=out[some])

    with workers.session():
        best = min(_seconds(lambda: workers.run(Stage(threads, part))) for _ in range(TRIES))
    with threadpool_limits(threads, user_api="blas"):
        best = min(best, *(_seconds(lambda: np.matmul(a, b, out=out)) for _ in range(TRIES)))
    return 2 * side**3 / best / 1e9


def done_macs(shape: ConvShape, m: int) -> int:
    """Products of one layer as F(m, 3) does them, `m` 0 for direct; all groups, all images."""
    if m == 0:
        return shape.macs
    pairs = shape.channels * shape.outputs // shape.groups
    if shape.stride == 2:
        rows = Strips(m, shape.height, shape.width).products
        return shape.images * rows * shape.width * 3 * pairs
    tiling = Tiling(m, shape.stride, shape.height, shape.width)
    return shape.images * tiling.strips * tiling.tiles * tiling.t**2 * pairs


def _once(run: Callable[..., Array], x: Array, names: list[str]) -> dict[str, float]:
    """One run, the clock read after every layer; entry and head are the "rest"."""
    begin = time.perf_counter()
    marks: list[float] = []
    run(x, lambda name, y: marks.append(time.perf_counter()))
    end = time.perf_counter()
    # The first layer is charged with the copy into the chain, which is part of its input.
    spent = np.diff([begin, *marks])
    return {**dict(zip(names, map(float, spent), strict=True)), "rest": end - marks[-1]}


def _row(layer: Layer, shape: ConvShape, seconds: float, total: float) -> dict[str, Any]:
    macs, done = done_macs(shape, 0), done_macs(shape, tile_of(layer.algorithm))
    return {
        "layer": layer.spec.name,
        "channels": shape.channels,
        "output": [shape.outputs, shape.height, shape.width],
        "stride": shape.stride,
        "groups": shape.groups,
        "algorithm": layer.algorithm,
        "seconds": seconds,
        "share": seconds / total,
        "gflops": 2 * macs / seconds / 1e9,
        "done_gflops": 2 * done / seconds / 1e9,
    }


def _seconds(work: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
