# mypy: disable-error-code="no-any-return"
"""A training step of ours and of torch, side by side: time, memory, and where our time goes.

    python -m tests.studies.peers.bench_training [--model RepVGG-A0] [--batch 16] [--size 224]
                                         [--threads 2] [--rounds 7] [--no-torch]

Each contender is a process of its own that holds the same weights and images and does one step
(loss and all gradients) when told to; they take turns, since machines are noisy: compare within a
round. Torch is eager, contiguous float32. Prints one JSON object; gates nothing. Ratios are
torch's over ours: above 1 ours is faster, or smaller.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
Step = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="RepVGG-A0")
    for name, default in {"batch": 16, "size": 224, "threads": 2, "rounds": 7}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        _work(asked)
        return
    contenders = ["repvgg-ref"] if asked.no_torch else ["repvgg-ref", "torch"]
    workers = {who: _Worker(who, asked) for who in contenders}
    runs: dict[str, list[dict[str, float]]] = {who: [] for who in contenders}
    for _ in range(asked.rounds):
        for who, worker in workers.items():
            runs[who].append(worker.ask("step"))
    print(json.dumps(_summary(asked, runs, workers["repvgg-ref"].ask("profile")), indent=2))


def _summary(
    asked: argparse.Namespace, runs: dict[str, list[dict[str, float]]], profile: dict[str, float]
) -> dict[str, Any]:
    found: dict[str, Any] = {
        key: getattr(asked, key) for key in ("model", "batch", "size", "threads", "rounds")
    }
    for who, measured in runs.items():
        found[who] = {key: round(median(run[key] for run in measured), 4) for key in measured[0]}
    if "torch" in runs:
        pairs = list(zip(runs["torch"], runs["repvgg-ref"], strict=True))
        for key in ("seconds", "cpu_seconds", "peak_mib"):
            ratios = [round(theirs[key] / ours[key], 2) for theirs, ours in pairs]
            spread = [min(ratios), max(ratios)]
            found[f"{key}_ratio"] = {"median": median(ratios), "spread": spread, "rounds": ratios}
    found["cpu_seconds_by_pass"] = profile
    return found


class _Worker:
    """A contender's process; it has done its first steps before it answers."""

    def __init__(self, who: str, asked: argparse.Namespace) -> None:
        numbers = [
            f"--{key}={getattr(asked, key)}" for key in ("model", "batch", "size", "threads")
        ]
        threads = str(asked.threads)
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.studies.peers.bench_training"),
                *(f"--worker={who}", *numbers),
            ],
            env=os.environ | {"REPVGG_NUM_THREADS": threads, "OMP_NUM_THREADS": threads},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self.ask("step")

    def ask(self, what: str) -> dict[str, float]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit("a contender died; its message is above")
        return json.loads(answer)


def _work(asked: argparse.Namespace) -> None:
    step = {"repvgg-ref": _ours, "torch": _torch}[asked.worker](asked)
    step()
    for what in sys.stdin:
        answer = _profiled(step) if what.strip() == "profile" else _timed(step)
        print(json.dumps(answer), flush=True)


def _timed(step: Step) -> dict[str, float]:
    wall, processor = time.perf_counter(), time.process_time()
    step()
    return {
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - processor,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _profiled(step: Step, steps: int = 3) -> dict[str, float]:
    """Processor seconds of a step by pass; calls within a call count for the inner one."""
    from repvgg_ref.cpu.convolution import conv2d
    from repvgg_ref.cpu.training import branches, passes

    spent: defaultdict[str, float] = defaultdict(float)
    inner = [0.0]
    names: dict[str, list[tuple[Any, str]]] = {
        "convolution forward": [(branches, "convolve")],
        "input gradient 3x3": [(branches, "input_gradient")],
        "weight gradient 3x3": [(branches, "weight_gradient")],
        "kernels packed": [(conv2d, "make_convolution")],
        "moments": [(passes, "product_moments"), (passes, "channel_moments")],
        "branches combined, ReLU": [(passes, "combine")],
        "gradient masked and summed": [(passes, "gradient_sums")],
        "batch norm backward": [(passes, "through_norm")],
        "input gradient 1x1, identity": [(passes, "add_pointwise")],
    }

    def timed(label: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **settings: Any) -> Any:
            inner.append(0.0)
            began = time.process_time()
            found = function(*arguments, **settings)
            seconds = time.process_time() - began
            spent[label] += seconds - inner.pop()
            inner[-1] += seconds
            return found

        return call

    for label, places in names.items():
        for module, name in places:
            setattr(module, name, timed(label, getattr(module, name)))
    whole = timed("everything else", step)
    for _ in range(steps):
        whole()
    return {label: round(seconds / steps, 4) for label, seconds in sorted(spent.items())}


def _batch(asked: argparse.Namespace) -> tuple[Any, Any, Any]:
    import numpy as np

    import repvgg_ref as rr

    rng = np.random.default_rng(0)
    model = rr.build(asked.model, seed=0)
    x = rng.standard_normal((asked.batch, 3, asked.size, asked.size), np.float32)
    return model, x, rng.integers(0, model.arch.num_classes, asked.batch)


def _ours(asked: argparse.Namespace) -> Step:
    model, x, labels = _batch(asked)
    return lambda: model.loss_and_grads(x, labels, backend="numpy")


def _torch(asked: argparse.Namespace) -> Step:
    import torch

    from tests.peers.torch_repvgg import build_torch, to_torch

    torch.set_num_threads(asked.threads)
    model, images, classes = _batch(asked)
    network = build_torch(model.arch, eps=model.eps)
    network.load_state_dict(to_torch(model.state_dict()))
    network.train()
    x, labels = torch.tensor(images), torch.tensor(classes)

    def step() -> None:
        network.zero_grad()
        torch.nn.functional.cross_entropy(network(x), labels).backward()

    return step


if __name__ == "__main__":
    main()
