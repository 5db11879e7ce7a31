"""Where a training step's time goes: by operator of the table, and by kernel where torch is."""

from __future__ import annotations

import importlib
import re
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np

from repvgg_ref.ops import BlockPasses, Ops
from tests.random_networks import random_model
from tests.studies.gpu.settle import ours
from tests.studies.gpu.settle.sections import Found
from tests.studies.gpu.settle.sizes import Sizes, network

# Kernel class -> what its name contains; the first that fits counts.
CLASSES = {
    "branches": r"branch|channel_moments|merge_(moments|sums)",
    "head": r"spatial_sums|scale_channels|cross_entropy",
    "im2col": r"im2col|col2im|bias_relu",
    "convolution": r"cudnn|conv|fprop|dgrad|wgrad|implicit|winograd|xmma|cutlass",
    "matrix product": r"gemm|gemv|cublas|nvjet|splitk",
    "element-wise": r"cupy|elementwise",
    "copies": r"memcpy|memset",
}


def profile_step(found: Found, sizes: Sizes) -> None:
    """A bf16 step of the first trained network."""
    import cupy

    name, batch = sizes.trained[0]
    arch = network(name)
    rng = np.random.default_rng(5)
    started = ours.Training(random_model(arch, 0), "bf16", lr=1e-3)
    shape = (batch, arch.in_channels, sizes.pixels, sizes.pixels)
    x = started.ops.from_host(rng.normal(size=shape).astype(np.float32))
    labels = started.ops.from_host(rng.integers(0, arch.num_classes, batch))
    for _ in range(3):
        started.step(x, labels)
    cupy.cuda.Device().synchronize()
    found["network"] = f"{name} x {batch}"
    found["enqueue_ms"], found["step_ms"] = _enqueued(lambda: started.step(x, labels))
    found["kernels"] = _by_kernel(lambda: started.step(x, labels))
    found["memory_gib"] = cupy.get_default_memory_pool().total_bytes() / 2**30
    spans: list[tuple[str, Any, Any]] = []
    started.ops = timed(started.ops, spans)
    started.step(x, labels)
    cupy.cuda.Device().synchronize()
    found["operators_ms"] = _by_operator(spans)


def timed(ops: Ops, spans: list[tuple[str, Any, Any]]) -> Ops:
    """`ops` that records an event before and after each operator, and each pass of a block."""
    import cupy

    def timing(name: str, operator: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            before, after = cupy.cuda.Event(), cupy.cuda.Event()
            before.record()
            found = operator(*args, **kwargs)
            after.record()
            spans.append((name, before, after))
            return found

        return run

    def recognise(linear: Any) -> BlockPasses | None:
        passes = ops.recognise_block(linear)
        return None if passes is None else TimedPasses(passes, timing)

    changed: dict[str, Any] = {
        field.name: timing(field.name, getattr(ops, field.name))
        for field in fields(Ops)
        if field.name.endswith(("forward", "backward", "stats"))
    }
    return replace(ops, recognise_block=recognise, **changed)


class TimedPasses:
    """A block's passes, each under `timing`."""

    def __init__(self, passes: BlockPasses, timing: Callable[..., Callable[..., Any]]) -> None:
        self.forward = timing("block forward", passes.forward)
        self.backward = timing("block backward", passes.backward)
        self.parameter_grads = timing("block parameter grads", passes.parameter_grads)


def kernel_class(name: str) -> str:
    """Which of `CLASSES` a kernel belongs to."""
    for kind, pattern in CLASSES.items():
        if re.search(pattern, name, re.IGNORECASE):
            return kind
    return "other"


def _enqueued(step: Callable[[], object], count: int = 5) -> tuple[float, float]:
    """Milliseconds until a step is enqueued, and until it is done: the host must be the faster."""
    import cupy

    began = time.perf_counter()
    for _ in range(count):
        step()
    enqueued = time.perf_counter()
    cupy.cuda.Device().synchronize()
    done = time.perf_counter()
    return (enqueued - began) / count * 1000, (done - began) / count * 1000


def _by_operator(spans: list[tuple[str, Any, Any]]) -> dict[str, float]:
    import cupy

    total: dict[str, float] = defaultdict(float)
    for name, before, after in spans:
        total[name] += float(cupy.cuda.get_elapsed_time(before, after))
    return dict(sorted(total.items(), key=lambda item: -item[1]))


def _by_kernel(step: Callable[[], object]) -> dict[str, Any]:
    """Device time of each kernel class, from torch's profiler, which sees every kernel."""
    try:
        peer: Any = importlib.import_module("tests.peers.gpu_torch")
        kernels = peer.kernel_times(step)
    except Exception as error:  # the table by operator stays
        return {"error": f"{type(error).__name__}: {error}"[:300]}
    classes: dict[str, float] = defaultdict(float)
    for name, milliseconds, _ in kernels:
        classes[kernel_class(name)] += milliseconds
    longest = sorted(kernels, key=lambda each: -each[1])[:25]
    return {
        "classes_ms": dict(sorted(classes.items(), key=lambda item: -item[1])),
        "longest": [{"name": n[:120], "ms": ms, "count": count} for n, ms, count in longest],
    }
