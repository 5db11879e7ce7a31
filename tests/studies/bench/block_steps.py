"""A training step of every block beside the paper's: ``python -m tests.studies.bench.block_steps``.

Per multiply-accumulate of the train form, forward and backward, on the ``numpy`` backend; steps of
all blocks in turns, the least of all rounds. The floor is the time of a block's convolutions alone,
each forward and with both gradients, by the same functions: what is above it are passes over pixels
(norms, sums, masks, borders), what is below it kernels that are added up before they meet x, and
1x1 kernels whose output is never formed. On one thread the processor's time counts, which other
work on the machine disturbs little; with all threads the clock's.
Writes ``train/results/block-steps.json``.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.average import AvgPool
from repvgg_ref.blocks.catalogue import block_names, expression
from repvgg_ref.blocks.constructors import FormulaConv
from repvgg_ref.blocks.linear import Conv
from repvgg_ref.cpu import NUMPY
from repvgg_ref.cpu.training.convolutions import (
    Convolution,
    Geometry,
    convolution_of,
    convolve,
    input_gradient,
    is_line,
    weight_gradient,
)
from repvgg_ref.models.architectures import plain_architecture
from repvgg_ref.models.graph import Network, extents
from repvgg_ref.models.layers import Block
from repvgg_ref.models.network import build
from repvgg_ref.models.registry import network
from repvgg_ref.models.residual_reorg import residual_reorg

RESULTS = Path(__file__).parents[1] / "train" / "results" / "block-steps.json"
ROUNDS = 5
ROOF = 1.5  # times what the paper's block takes per multiply-accumulate


class Setting(NamedTuple):
    """A network of every block, and its batch."""

    make: Callable[[str], Network]
    size: int
    images: int


def _small(block: str) -> Network:
    widths: dict[str, Any] = {"depths": (2, 4, 1), "channels": (32, 32, 64, 128)}
    reorganised = block == "residual-reorg"
    kind = "plain" if reorganised else block
    chain = plain_architecture(**widths, kind=kind, num_classes=10)
    return residual_reorg(chain) if reorganised else chain


def _a0(block: str) -> Network:
    return network("RepVGG-A0", block=block, num_classes=10)


SETTINGS = {
    "small, 64 of 32 x 32": Setting(_small, 32, 64),
    "A0, 16 of 64 x 64": Setting(_a0, 64, 16),
    "A0, 4 of 224 x 224": Setting(_a0, 224, 4),
}


class Kernel(NamedTuple):
    """A convolution of a block, and the pixels that it is applied to."""

    conv: Conv
    height: int
    width: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        stride = self.conv.stride[0]
        pixels = ((self.height - 1) // stride + 1) * ((self.width - 1) // stride + 1)
        return prod(self.conv.shapes()[f"{self.conv.name}.weight"]) * pixels


def kernels(arch: Network, size: int) -> Iterator[Kernel]:
    """Every convolution of the train form, an average being none."""
    seen = extents(arch, size, size)
    for node in arch.evaluated:
        if isinstance(node.op, Block):
            _, height, width = seen[node.inputs[0]]
            for conv in _convs(expression(node.op.spec)):
                yield Kernel(conv, height, width)


def _convs(part: Any) -> Iterator[Conv]:
    if isinstance(part, Conv):
        yield part
    elif isinstance(part, FormulaConv) and not isinstance(part, AvgPool):
        yield part.conv
    for inner in getattr(part, "parts", ()):
        yield from _convs(inner)


def convolutions(arch: Network, size: int, images: int) -> list[tuple[Convolution, Array]]:
    """The same with numbers, and a gradient for each."""
    rng, found = np.random.default_rng(0), []
    for conv, height, width in kernels(arch, size):
        x = rng.standard_normal((images, height, width, conv.in_channels)).astype(np.float32)
        geometry = Geometry(conv.stride[0], max(conv.dilation), conv.groups)
        shape = conv.shapes()[f"{conv.name}.weight"]
        if shape[2] != shape[3] and not is_line(shape[2:], geometry):
            shape = (*shape[:2], max(shape[2:]), max(shape[2:]))
        weight = rng.standard_normal(shape).astype(np.float32)
        made = convolution_of(x, weight, geometry)
        found.append((made, convolve(made)))
    return found


def alone(found: list[tuple[Convolution, Array]]) -> None:
    """All convolutions, forward and back."""
    for conv, grad in found:
        convolve(conv)
        weight_gradient(grad, conv)
        if conv.x.shape[3] > 3:  # nobody asks for the images' gradient
            input_gradient(grad, conv)


def measured(setting: Setting, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of every block's step and of its convolutions, the least of the rounds."""
    rng = np.random.default_rng(0)
    shape = setting.images, 3, setting.size, setting.size
    x, labels = rng.standard_normal(shape).astype(np.float32), np.arange(setting.images) % 10
    best: dict[str, dict[str, float]] = {name: {} for name in block_names()}
    models = {name: build(setting.make(name)) for name in best}

    def keep(name: str, what: str, clock: Callable[[], float], work: Callable[[], object]) -> None:
        began = clock()
        work()
        best[name][what] = min(best[name].get(what, np.inf), clock() - began)

    for _ in range(rounds):
        for name, model in models.items():
            held = convolutions(model.arch, setting.size, setting.images)

            def step(model: Any = model) -> object:
                return model.loss_and_grads(x, labels)

            keep(name, "wall", time.perf_counter, step)
            with NUMPY.on_threads(1):
                keep(name, "step", time.process_time, step)
                keep(name, "floor", time.process_time, lambda held=held: alone(held))  # type: ignore[misc]
    return best


def ratios(setting: Setting, rounds: int) -> dict[str, dict[str, float]]:
    """Every block's multiply-accumulates and times, beside the paper's block's."""
    best = measured(setting, rounds)
    macs = {n: sum(k.macs for k in kernels(setting.make(n), setting.size)) for n in best}
    paper = best["repvgg"]
    return {
        name: {
            "macs": round(macs[name] / macs["repvgg"], 3),
            "step": round(each["step"], 4),
            "per_mac": round(each["step"] / paper["step"] * macs["repvgg"] / macs[name], 3),
            "per_mac_all_threads": round(
                each["wall"] / paper["wall"] * macs["repvgg"] / macs[name], 3
            ),
            "over_floor": round(each["step"] / each["floor"], 3),
        }
        for name, each in best.items()
    }


def main() -> None:
    """Measure, print, keep."""
    found = {}
    for says, setting in SETTINGS.items():
        found[says] = ratios(setting, ROUNDS)
        print(
            f"\n{says}\n{'block':22}{'MACs':>7}{'seconds':>9}{'per MAC':>9}{'all':>7}{'/floor':>8}"
        )
        for name, row in found[says].items():
            numbers = "{macs:7.2f}{step:9.3f}{per_mac:9.2f}{per_mac_all_threads:7.2f}"
            print(f"{name:22}" + (numbers + "{over_floor:8.2f}").format(**row), flush=True)
    RESULTS.write_text(json.dumps({"roof": ROOF, "settings": found}, indent=1) + "\n")
    worst = max(row["per_mac"] for rows in found.values() for row in rows.values())
    sys.exit(f"above the roof of {ROOF}" if worst > ROOF else 0)


if __name__ == "__main__":
    main()
