"""The emulator runs CUDA's words as a device would, and says where a device would not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.gpu import emulator
from tests.gpu.emulator import LaunchError
from tests.gpu.emulator.build import kernels, with_barriers

CODE = """
// extern "C" __global__ void in_a_comment() {}
extern "C" __global__ void places(int* out) {
  const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] += 1000 * block + thread;
}

template <int V>
__device__ float add_up(float mine) {
  __shared__ float found[64 * V];
  found[threadIdx.x] = mine;
  for (int step = 32; step > 0; step /= 2) {
    BARRIER
    if (threadIdx.x < step) found[threadIdx.x] += found[threadIdx.x + step];
  }
  __syncthreads();
  return found[0];
}

extern "C" __global__ void __launch_bounds__(64) total(const float* x, float* out) {
  const float all = add_up<1>(x[blockIdx.x * 64 + threadIdx.x]);
  if (threadIdx.x == 0) out[blockIdx.x] = all;
}

extern "C" __global__ void shuffles(const int* x, int* out, double* moved) {
  const int t = threadIdx.x;
  out[t] = __shfl_xor_sync(0xFFFFFFFFu, x[t], 5);
  out[64 + t] = __shfl_down_sync(0xFFFFFFFFu, x[t], 3);
  out[128 + t] = __shfl_sync(0xFFFFFFFFu, x[t], 7);
  moved[t] = __shfl_xor_sync(0xFFFFFFFFu, x[t] / 3.0, 1);
}

extern "C" __global__ void dynamic(float* out) {
  extern __shared__ float scratch[];
  out[threadIdx.x] = scratch[threadIdx.x];  // read before written
  scratch[threadIdx.x] = 1;
}

extern "C" __global__ void left_over(float* out) {
  __shared__ float scratch[4];
  out[blockIdx.x * 4 + threadIdx.x] = scratch[threadIdx.x];  // read before written
  scratch[threadIdx.x] = 1;
}

extern "C" __global__ void some_wait(float* out) {
  if (threadIdx.x < 7) __syncthreads();
  out[threadIdx.x] = 1;
}

extern "C" __global__ void each_at_its_own(float* out) {
  if (threadIdx.x < 7) __syncthreads();
  else
    __syncthreads();
  out[threadIdx.x] = 1;
}

struct Pair {
  long long a;
  double b;
};

extern "C" __global__ void takes(const float* x, unsigned short* half, int i, long long l, float f,
                                 double d, const Pair pair, void* anything, double* out) {
  out[0] = x ? x[0] : -1;
  out[1] = half[0], out[2] = i, out[3] = l, out[4] = f, out[5] = d;
  out[6] = pair.a, out[7] = pair.b, out[8] = anything ? 1 : 0;
}
"""
PAIR = np.array((7, 0.5), [("a", np.int64), ("b", np.float64)])


@pytest.fixture(scope="module")
def module() -> emulator.Module:
    return _compile("__syncthreads();")


def _compile(barrier: str) -> emulator.Module:
    if (why := emulator.why_missing()) is not None:
        pytest.skip(why)
    return emulator.compile(CODE, ("-std=c++17", f"-DBARRIER={barrier}", "--fmad=true"))


def test_it_knows_kernels_and_which_of_them_wait() -> None:
    assert kernels(CODE)[:2] == ["places", "total"]
    waiting = {"add_up", "total", "shuffles", "some_wait", "each_at_its_own"}
    assert with_barriers(CODE.replace("BARRIER", "__syncthreads();")) == waiting


@pytest.mark.parametrize("order", [0, 1, 2, 99])
def test_every_thread_of_every_block_runs_once(module: emulator.Module, order: int) -> None:
    out = np.zeros((2 * 3 * 2, 4 * 2 * 3), np.int32)
    with emulator.thread_order(order):
        module.get_function("places")((2, 3, 2), (4, 2, 3), (out,))
    assert (out == 1000 * np.arange(12)[:, None] + np.arange(24)).all()


@pytest.mark.parametrize("order", [0, 1, 2, 99])
def test_barriers_hold_in_every_order(module: emulator.Module, order: int) -> None:
    x = np.random.default_rng(0).integers(0, 9, (3, 64)).astype(np.float32)
    out = np.zeros(3, np.float32)
    with emulator.thread_order(order):
        module.get_function("total")((3,), (64,), (x, out))
    assert out.tolist() == x.sum(1).tolist()


def test_a_missing_barrier_shows() -> None:
    x, out = np.ones((1, 64), np.float32), np.zeros(1, np.float32)
    total = _compile("").get_function("total")
    found = set()
    for order in range(4):
        with emulator.thread_order(order):
            total((1,), (64,), (x, out))
        found.add(float(out[0]))
    assert found != {64.0}


def test_lanes_exchange_values(module: emulator.Module) -> None:
    x, out, moved = np.arange(64, dtype=np.int32) ** 2, np.zeros((3, 64), np.int32), np.zeros(64)
    module.get_function("shuffles")((1,), (64,), (x, out, moved))
    lane = np.arange(64) % 32
    warp = np.arange(64) - lane
    assert (out[0] == x[warp + (lane ^ 5)]).all()
    assert (out[1] == x[warp + np.where(lane + 3 < 32, lane + 3, lane)]).all()
    assert (out[2] == x[warp + 7]).all()
    assert (moved == x[warp + (lane ^ 1)] / 3.0).all()


def test_shared_memory_is_nan_before_it_is_written(module: emulator.Module) -> None:
    out = np.zeros(8, np.float32)
    module.get_function("dynamic")((1,), (8,), (out,), shared_mem=32)
    assert np.isnan(out).all()
    module.get_function("left_over")((2,), (4,), (out,))
    assert np.isnan(out).all()  # in the second block too


@pytest.mark.parametrize("name", ["some_wait", "each_at_its_own"])
def test_threads_that_would_wait_for_ever_are_named(module: emulator.Module, name: str) -> None:
    with pytest.raises(LaunchError, match="threads wait for ever, thread 0 at the barrier of line"):
        module.get_function(name)((1,), (32,), (np.zeros(32, np.float32),))
    # and the next launch is as good as the first
    test_barriers_hold_in_every_order(module, 0)


def test_arguments_arrive(module: emulator.Module) -> None:
    out = np.zeros(9)
    module.get_function("takes")((1,), (1,), _arguments(out=out))
    assert out.tolist() == [1.5, 0x3C00, -3, 2**40, 0.25, 0.125, 7, 0.5, 1]
    module.get_function("takes")((1,), (1,), _arguments(x=np.uint64(0), out=out))
    assert out[0] == -1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x", np.zeros(1)),
        ("x", np.zeros(1, np.int32)),
        ("x", np.zeros((4, 4), np.float32)[:, 0]),
        ("x", None),
        ("x", np.float32(1)),
        ("x", np.uint64(64)),
        ("half", np.zeros(1, np.float32)),
        ("i", 3),
        ("i", np.int64(3)),
        ("i", True),
        ("l", np.int32(3)),
        ("f", 0.5),
        ("f", np.float64(0.5)),
        ("d", np.float32(0.5)),
        ("pair", np.zeros((), [("a", np.int64)])),
    ],
)
def test_an_argument_of_another_type_is_refused(
    module: emulator.Module, name: str, value: Any
) -> None:
    with pytest.raises(LaunchError, match=r"the kernel takes|not contiguous"):
        module.get_function("takes")((1,), (1,), _arguments(**{name: value}))


def test_what_a_device_refuses_is_refused(module: emulator.Module) -> None:
    places, out = module.get_function("places"), np.zeros(1, np.int32)
    for grid, block in (((1,), (1025,)), ((0,), (1,)), ((1, 70000), (1,)), ((1,), (32, 64))):
        with pytest.raises(LaunchError, match="invalid launch"):
            places(grid, block, (out,))
    with pytest.raises(LaunchError, match="2 arguments, takes 1"):
        places((1,), (1,), (out, out))
    with pytest.raises(LaunchError, match="named symbol not found: nowhere"):
        module.get_function("nowhere")
    with pytest.raises(SyntaxError, match="undeclared"):
        emulator.compile('extern "C" __global__ void kernel(int* x) { x[0] = undeclared; }')


def _arguments(**others: Any) -> tuple[Any, ...]:
    usual = {
        "x": np.array([1.5], np.float32),
        "half": np.array([1], np.float16),
        "i": np.int32(-3),
        "l": np.int64(2**40),
        "f": np.float32(0.25),
        "d": np.float64(0.125),
        "pair": PAIR,
        "anything": np.zeros(3, np.int8),
        "out": np.zeros(9),
    }
    return tuple((usual | others).values())
