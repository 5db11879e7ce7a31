"""Weight files: how many right ones are called wrong, how many wrong ones are found.

    python -m tests.studies.oracle.weight_files [SEED [KIND...]] > weight_files.json

Right: every converter of `tests.oracle.weights.converters` on every network, as float32 and in one
format drawn at random.
Wrong: one number off by ulps or shares, channel scales, eps 1.1e-5, biases.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import repvgg_ref as rr
from repvgg_ref.arrays import Array
from repvgg_ref.models.architectures import plain_architecture
from repvgg_ref.models.network import Model
from repvgg_ref.oracle.programs.distinguishing import distinguishing_model
from tests.models.small import SMALL
from tests.oracle.weights.converters import FLOAT32, FLOAT64, RIGHT, Converter

KINDS = ("plain", "grouped", "se-before-relu", "plus", "dilated")
_TOLD = ("bit for bit", "the exact fusion, rounded")
BLOCKS = ("acb", "mobileone", "post-addition-bn", "1x1-only", "identity-without-bn", "no branches")


def networks(seed: int, kinds: tuple[str, ...] = (*KINDS, *BLOCKS)) -> Iterator[tuple[str, Model]]:
    """Networks of every shape and of other blocks."""
    for kind in kinds:
        arch = SMALL.get(kind) if kind in KINDS else None
        if arch is None:
            of = "plain" if kind == "no branches" else kind
            arch = plain_architecture(
                depths=[2, 2], channels=[4, 6, 8], num_classes=3, in_channels=3, kind=of
            )
        yield kind, distinguishing_model(arch, seed)


def storages(way: Converter, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Formats (and directions) that a converter's file is kept in: float32, and another."""
    found = [("fp64", "nearest"), ("fp16", "nearest"), ("bf16", "nearest")]
    if way in FLOAT64:
        found += [("fp32", "zero"), ("fp32", "up"), ("fp16", "zero"), ("bf16", "zero")]
    return [("fp32", "nearest"), found[rng.integers(len(found))]]


def verdict(model: Model, port: Model, folder: str) -> Any:
    """What the oracle says of a file."""
    path = Path(folder) / "port.npz"
    rr.save(port, path)
    return rr.verify(model, path)


def off(array: Array, at: tuple[int, ...], how: str) -> Array:
    """A copy with one number wrong."""
    wrong = array.copy()
    x = wrong[at]
    wrong[at] = (
        x + 4 * np.spacing(x)
        if how == "4 ulp"
        else x + 16 * np.spacing(x)
        if how == "16 ulp"
        else x * np.float32(1.001)
    )
    return wrong  # fmt: skip


def faults(
    model: Model, way: Converter, rng: np.random.Generator
) -> Iterator[tuple[str, str, Model]]:
    """Wrong files: what is wrong, where, and the file."""
    specs = model.arch.blocks
    for how in ("4 ulp", "16 ulp", "0.1 %"):
        for part in ("tap", "centre tap", "bias"):
            spec, port = specs[rng.integers(len(specs))], way.converted(model)
            name = f"{spec.name}.fused.{'bias' if part == 'bias' else 'weight'}"
            array = port.params[name]
            at = tuple(int(rng.integers(n)) for n in array.shape)
            if part != "bias":
                at = (
                    *at[:2],
                    *(
                        (1, 1)
                        if part == "centre tap"
                        else ((0, 0), (0, 1), (2, 1))[rng.integers(3)]
                    ),
                )
            if array[at] == 0:
                continue
            port.params[name] = off(array, at, how)
            yield f"{part} off by {how}", spec.name, port
    for size in (2e-6, 1e-5, 1e-3):
        spec, port = specs[rng.integers(len(specs))], way.converted(model)
        o = int(rng.integers(spec.out_channels))
        for part in ("weight", "bias"):
            port.params[f"{spec.name}.fused.{part}"][o] *= np.float32(1 + size)
        yield f"channel scaled by 1 + {size:g}", spec.name, port
    other = Model(model.arch, "train", model.params, 1.1e-5)
    yield "eps 1.1e-5", specs[0].name, way.converted(other)
    for what, factor in (("bias (1 + 1e-6)", 1 + 1e-6), ("bias dropped", 0), ("bias negated", -1)):
        spec, port = specs[rng.integers(len(specs))], way.converted(model)
        port.params[f"{spec.name}.fused.bias"] *= np.float32(factor)
        yield what, spec.name, port


def main() -> None:
    """Count, and print what was found as JSON."""
    seed = int(sys.argv[1]) if sys.argv[1:] else 0
    kinds = tuple(sys.argv[2:]) or (*KINDS, *BLOCKS)
    right, alarms = 0, []
    settled: Counter[str] = Counter()
    planted: Counter[str] = Counter()
    named: Counter[str] = Counter()
    missed, misplaced = [], []
    rng = np.random.default_rng(seed)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for kind, model in networks(seed, kinds):
            for way in RIGHT:
                for stored in storages(way, rng):
                    report = verdict(model, way.converted(model, *stored), folder)
                    right += 1
                    settled[next((t for t in _TOLD if t in report.reason), "not settled")] += 1
                    if report.verdict != "agree":
                        alarms.append((kind, way.name, *stored, report.reason[:120]))
            for way in (FLOAT32[0], FLOAT32[10], FLOAT64[0]):
                for what, layer, port in faults(model, way, rng):
                    report = verdict(model, port, folder)
                    planted[what] += 1
                    if report.verdict != "disagree":
                        missed.append((kind, way.name, what, layer))
                    elif report.first_bad_layer != layer and not what.startswith("eps"):
                        misplaced.append((kind, way.name, what, layer, report.first_bad_layer))
                    elif report.diagnosis:
                        named[f"{what}: {report.diagnosis[0].bug}"] += 1
            print(kind, right, len(alarms), sum(planted.values()), len(missed), file=sys.stderr)
    print(
        json.dumps(
            {
                "right files": right,
                "called wrong": alarms,
                "how settled": settled,
                "wrong files": planted,
                "missed": missed,
                "misplaced": misplaced,
                "named": named,
                "seconds": round(time.monotonic() - started),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
