# mypy: disable-error-code="no-any-return, attr-defined"
"""A PSPNet on one large picture, ours and torch's, side by side: memory beyond the weights, time.

    python -m tests.studies.peers.segmenter_memory [--model PSPNet-RepVGG-A0] [--size 713]
                                          [--threads 2] [--rounds 5] [--json OUT.json]

Each contender is a process of its own that holds the same fused weights and runs one pass when
told to; they take turns, since machines are noisy. Dilated convolutions are told shape by shape, in
seconds of the processor, which other work on the machine disturbs little.
Memory is the peak of what the kernel counts as resident (VmHWM, set back before the pass) less what
was resident with the weights loaded and before any pass; of the first pass, and of a later one,
when what is kept for the next pass is there.
Torch is eager, contiguous float32, each batch norm folded. Gates nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[3]
Tap = Callable[[str], None]  # told each layer when it is done
Run = Callable[[Tap], Any]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="PSPNet-RepVGG-A0")
    for name, default in {"size": 713, "threads": 2, "rounds": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        _work(asked)
        return
    from repvgg_ref.bench.machine import machine

    workers = {who: _started(who, asked) for who in ("repvgg-ref", "torch")}
    runs: dict[str, list[dict[str, float]]] = {who: [] for who in workers}
    for _ in range(asked.rounds):
        for who, worker in workers.items():
            print("pass", file=worker.stdin, flush=True)
            runs[who].append(json.loads(worker.stdout.readline()))
    for worker in workers.values():
        worker.stdin.close()
    found: dict[str, Any] = {"load": os.getloadavg()[0], "logits": _difference(runs)}
    found |= {key: value for key, value in machine().items() if key in ("processor", "cores")}
    found |= {key: getattr(asked, key) for key in ("model", "size", "threads", "rounds")}
    for who, each in runs.items():
        found[who] = {
            "first_mb": each[0]["peak_mb"],
            "later_mb": max(run["peak_mb"] for run in each[1:]),
            "seconds": median(run["seconds"] for run in each[1:]),
        }
    ours, theirs = found["repvgg-ref"], found["torch"]
    found["memory"] = round(max(ours["first_mb"], ours["later_mb"]) / theirs["later_mb"], 3)
    pairs = zip(runs["torch"][1:], runs["repvgg-ref"][1:], strict=True)
    found["speed"] = round(median(b["seconds"] / a["seconds"] for b, a in pairs), 3)
    found["dilated"] = _by_shape(_model(asked).arch, runs)
    text = json.dumps(found, indent=1)
    print(text)
    if asked.json:
        asked.json.write_text(text + "\n", encoding="utf-8")


def _difference(runs: dict[str, list[dict[str, float]]]) -> float:
    """Of the sums of absolute logits, relative."""
    ours, theirs = (runs[who][0]["sum"] for who in ("repvgg-ref", "torch"))
    return abs(ours - theirs) / theirs


def _by_shape(arch: Any, runs: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Layers of one shape together, the least of the passes."""
    shapes: dict[tuple[int, int, int, int], list[str]] = {}
    for spec in arch.blocks:
        if spec.dilation > 1:
            shape = spec.in_channels, spec.out_channels, spec.dilation, spec.groups
            shapes.setdefault(shape, []).append(spec.name)
    rows = []
    for shape, names in shapes.items():
        spent = {
            who: [sum(run["layers"][name] for name in names) for run in each[1:]]
            for who, each in runs.items()
        }
        row: dict[str, Any] = dict(zip(("in", "out", "dilation", "groups"), shape, strict=True))
        row |= {"layers": len(names)} | {who: min(each) for who, each in spent.items()}
        rows.append(row | {"speed": round(row["torch"] / row["repvgg-ref"], 3)})
    return rows


def _started(who: str, asked: argparse.Namespace) -> Any:
    threads = str(asked.threads)
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "REPVGG_THREADS")
    command = [sys.executable, "-m", __spec__.name if __spec__ else __name__, "--worker", who]
    command += [f"--{name}={getattr(asked, name)}" for name in ("model", "size", "threads")]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | dict.fromkeys(names, threads),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _work(asked: argparse.Namespace) -> None:
    run = {"repvgg-ref": _ours, "torch": _theirs}[asked.worker](asked)
    before = _resident("VmRSS")
    for _ in sys.stdin:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM begins anew
        marks: list[tuple[str, float]] = []

        def tap(name: str, marks: list[tuple[str, float]] = marks) -> None:
            marks.append((name, time.process_time()))

        start, spent = time.perf_counter(), time.process_time()
        y = run(tap)
        seconds = time.perf_counter() - start
        peak = round((_resident("VmHWM") - before) / 1e3, 1)
        total = float(np.abs(np.asarray(y, np.float64)).sum())
        del y
        begun = [spent, *(at for _, at in marks)]
        layers = {name: at - since for (name, at), since in zip(marks, begun[:-1], strict=True)}
        told = {"seconds": seconds, "peak_mb": peak, "sum": total, "layers": layers}
        print(json.dumps(told), flush=True)


def _resident(what: str) -> int:
    """Kilobytes, as the kernel counts them."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return int(next(line for line in lines if line.startswith(what)).split()[1])


def _model(asked: argparse.Namespace) -> Any:
    import repvgg_ref as rr

    return rr.fuse(rr.build(asked.model, num_classes=19, seed=0))


def _picture(asked: argparse.Namespace) -> Any:
    shape = 1, 3, asked.size, asked.size
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def _ours(asked: argparse.Namespace) -> Run:
    from repvgg_ref.cpu import NUMPY

    model, x = _model(asked), _picture(asked)

    def run(tap: Tap) -> Any:
        logits = None
        for name, y in model.walk(x, NUMPY):
            tap(name)
            logits = y if name == model.arch.head.name else None
            del y  # or it would be held beside the next one
        return logits

    return run


def _theirs(asked: argparse.Namespace) -> Run:
    import torch

    from repvgg_ref.models.dense import AdaptiveAvgPool, Concat, ResizeAs, Zoom
    from repvgg_ref.models.graph import INPUT
    from repvgg_ref.models.layers import Block

    torch.set_num_threads(asked.threads)
    model, x = _model(asked), torch.from_numpy(_picture(asked))
    params = {name: torch.from_numpy(array) for name, array in model.params.items()}
    of = torch.nn.functional
    nodes = model.arch.evaluated
    last = {name: node.name for node in nodes for name in node.inputs}

    def computed(node: Any, xs: list[Any]) -> Any:
        op, x = node.op, xs[0]
        if isinstance(op, Block):
            spec, name = op.spec, f"{node.name}.fused"
            pad, kernel = spec.dilation * (spec.kernel // 2), params[f"{name}.weight"]
            how = spec.stride, pad, spec.dilation, spec.groups
            y = of.conv2d(x, kernel, params[f"{name}.bias"], *how)
            return of.relu_(y) if spec.activation == "relu" else y
        if isinstance(op, AdaptiveAvgPool):
            return of.adaptive_avg_pool2d(x, op.bins)
        if isinstance(op, Concat):
            return torch.cat(xs, 1)
        if isinstance(op, ResizeAs | Zoom):
            size = op.extent([tuple(each.shape[1:]) for each in xs])[1:]
            return of.interpolate(x, size, mode="bilinear", align_corners=True)
        return x

    def run(tap: Tap) -> Any:
        alive = {INPUT: x}
        with torch.inference_mode():
            for node in nodes:
                alive[node.name] = computed(node, [alive[name] for name in node.inputs])
                tap(node.name)
                for name in node.inputs:  # as soon as nobody wants it, as ours does
                    if last[name] == node.name:
                        alive.pop(name, None)
        return alive[nodes[-1].name].numpy()

    return run


if __name__ == "__main__":
    main()
