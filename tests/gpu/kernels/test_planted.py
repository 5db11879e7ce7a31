"""The cases are tested: each bug planted in a `.cu` file must be found by them."""

from __future__ import annotations

import pytest

from repvgg_ref.gpu.kernels import launch
from tests.gpu import emulator
from tests.gpu.kernels import branch_cases, everything, other_cases, training_cases
from tests.gpu.kernels.everything import Plant

OF_FILE = {
    "branches.cu": branch_cases.CASES,
    "rows.cuh": branch_cases.CASES,
    "storage.cuh": other_cases.CASES,
    "convolution.cu": other_cases.CASES,
    "pooling.cu": other_cases.CASES,
    "cross_entropy.cu": training_cases.CASES,
}
BARRIER = "__syncthreads();"
FILES = ("rows.cuh", *launch.FILES)
BARRIERS = [(file, place) for file in FILES for place in range(launch.read(file).count(BARRIER))]
MISTAKES = [
    Plant("rows.cuh", "widen(y.element[i]) <= 0", "widen(y.element[i]) <= -1"),
    Plant("rows.cuh", "threadIdx.y + step < blockDim.y", "threadIdx.y + step < blockDim.y - 1"),
    Plant("storage.cuh", "return value < 0 ? 0 : value;", "return value > 0 ? value : 0;"),
    Plant("storage.cuh", "+ 0x7FFF +", "+ 0x0000 +"),
    Plant("branches.cu", "a.m2 + b.m2 + delta * delta", "a.m2 + b.m2 + delta * share"),
    Plant("branches.cu", "m2[i] += delta * (value[i] - mean[i])", "m2[i] += delta * delta"),
    Plant("branches.cu", "chunk += 8", "chunk += 9", times=2),
    Plant("branches.cu", "q = -p * inverse * (grad / count)", "q = -p * (grad / count)"),
    Plant("branches.cu", "moments + 2 * C", "moments + C"),
    Plant("branches.cu", "load_line<V>(coefficients + 6 * C", "load_line<V>(coefficients + 5 * C"),
    Plant("convolution.cu", "- s.padding_h +", "- s.padding_w +"),
    Plant("convolution.cu", "start % stride == 0 &&", ""),
    Plant("convolution.cu", "tap % s.Kw * s.dilation_w", "tap % s.Kw * s.dilation_h"),
    Plant("convolution.cu", "c / Cg * windows", "0 * windows"),
    Plant(
        "pooling.cu",
        "row += blockDim.y) {\n      const i64 at = (blockIdx",
        "row += blockDim.y + 1) {\n      const i64 at = (blockIdx",
    ),
    Plant("pooling.cu", "load_vector(b, shift + image * C", "load_vector(b, shift + C"),
    Plant("pooling.cu", "factor ? value[i] * other[i] :", ""),
    Plant("cross_entropy.cu", "mass * probabilities[k] - target", "probabilities[k] - target"),
    Plant("cross_entropy.cu", "row.label >= classes", "row.label > classes"),
    Plant("cross_entropy.cu", "smoothing / classes", "smoothing / (classes - 1)"),
]


@pytest.mark.few(4)
@pytest.mark.parametrize("plant", MISTAKES, ids=lambda plant: f"{plant.file}: {plant.old}"[:60])
def test_a_mistake_is_found(plant: Plant) -> None:
    assert _found(plant, orders=(0,), dtype="bfloat16" if "0x7FFF" in plant.old else "float32")


@pytest.mark.few(1)
@pytest.mark.parametrize(("file", "place"), BARRIERS)
def test_a_missing_barrier_is_found(file: str, place: int) -> None:
    parts = launch.read(file).split(BARRIER)
    # Enough of the words around it, so that they are there once.
    before, after = BARRIER.join(parts[: place + 1])[-200:], BARRIER.join(parts[place + 1 :])[:200]
    plant = Plant(file, before + BARRIER + after, before + after)
    assert _found(plant, orders=(0, 1, 2, 3, 4))


def test_there_are_barriers_to_take_away() -> None:
    assert len(BARRIERS) >= 6


def _found(plant: Plant, orders: tuple[int, ...], dtype: str = "float32") -> bool:
    """Wrong results in some order of threads, results that depend on it, or a launch that fails."""
    if (why := emulator.why_missing()) is not None:
        pytest.skip(why)
    cases = OF_FILE.get(plant.file, everything.CASES)
    seen = set()
    with everything.installed(plant) as cupy:
        for order in orders:
            try:
                outcome = everything.run(
                    cupy, everything.dtype_of(dtype), cases, order=order, until_wrong=True
                )
            except emulator.LaunchError:
                return True
            seen.add(tuple(outcome.bits))
            if outcome.wrong or len(seen) > 1:
                return True
    return False
