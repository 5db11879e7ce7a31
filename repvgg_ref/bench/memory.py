"""Resident memory as the system counts it, beside what a network should need by theory.

Section 3.1 of arXiv 2101.03697: a plain chain frees a layer's input as soon as its output is
there; with branches the input waits for the addition beside every branch's output.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from pathlib import Path

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.catalogue import norms
from repvgg_ref.cpu.engine import Engine, chunks
from repvgg_ref.cpu.plan import conv_shapes
from repvgg_ref.models.network import Model

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def settle_memory() -> None:
    """Give freed memory back to the system, so that what follows is not hidden by it."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def resident_bytes() -> int:
    """What the process holds now; where the system does not tell, its peak so far."""
    return _status("VmRSS") or _peak_of_process()


def reset_peak() -> bool:
    """Let the peak count from now on; False where the system cannot (anywhere but Linux)."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def peak_bytes() -> int:
    """The most that the process has held since `reset_peak`, else since its start."""
    return _status("VmHWM") or _peak_of_process()


def fused_count(deploy: Model, engine: Engine, x: Array) -> dict[str, int]:
    """Bytes by theory of the fused chain, and what the plan of `engine` holds.

    Returns
    -------
    dict
        `weights` of the deploy form, `activations`: the largest input and output of one layer,
        `theory` their sum; `packed`: weights as the algorithms want them, `buffers`: the two
        activation buffers with their borders, `scratch`: all scratch, `held`: all there is.
    """
    shape = chunks(x)[0].shape  # so many images go through the chain together
    plan = engine.plan(shape)
    weights = sum(array.nbytes for array in deploy.params.values())
    activations = max(_activations(deploy, shape))
    packed = engine.packed_bytes
    buffers = sum(buffer.nbytes for buffer in plan.buffers)
    return {
        "weights": weights,
        "activations": activations,
        "theory": weights + activations,
        "packed": packed,
        "buffers": buffers,
        "scratch": plan.scratch_bytes - buffers,
        "held": weights + packed + plan.scratch_bytes,
    }


def branches_count(model: Model, shape: tuple[int, ...]) -> dict[str, int]:
    """Bytes by theory of the three-branch form: a layer's input and an output of each branch."""
    weights = sum(array.nbytes for array in model.params.values())
    activations = max(_activations(model, shape, branches=True))
    return {"weights": weights, "activations": activations, "theory": weights + activations}


def _activations(model: Model, shape: tuple[int, ...], *, branches: bool = False) -> list[int]:
    """Bytes of float32 that live while each layer is computed."""
    images, channels, height, width = shape
    before = images * channels * height * width
    found = []
    for spec, conv in zip(
        model.arch.blocks, conv_shapes(model.arch.blocks, images, height, width), strict=True
    ):
        after = conv.images * conv.height * conv.width * conv.outputs
        outputs = len(norms(spec)) if branches else 1
        found.append(4 * (before + outputs * after))
        before = after
    return found


def _status(name: str) -> int:
    with contextlib.suppress(OSError):
        for line in _STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return 0


def _peak_of_process() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
