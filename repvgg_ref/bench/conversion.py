"""The main job against the official script, whole processes in turns.

The official way is `convert.py` of the official repository: torch.load, build the network,
load_state_dict, deepcopy, fold every block in float32, torch.save.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from repvgg_ref.bench.contenders.base import ENTRIES, OURS
from repvgg_ref.bench.machine import version
from repvgg_ref.bench.memory import peak_bytes
from repvgg_ref.bench.result import Measured, Skipped, Spread, spread
from repvgg_ref.bench.rival import ContenderError, environment
from repvgg_ref.bench.task import Task
from repvgg_ref.files.checkpoint import load, save
from repvgg_ref.interpreter import running

OFFICIAL = "torch, official script"
TOLERANCE = 1e-4  # of a layer's largest tap: they fold in float32, we round once


@dataclass
class Conversion:
    """Both ways on one training checkpoint; the first one is ours."""

    model: str
    checkpoint_bytes: int
    contenders: list[Measured]
    skipped: list[Skipped]

    def ratio(self, other: Measured) -> Spread:
        """Their seconds over ours, whole processes."""
        return spread(other.seconds, self.contenders[0].seconds)

    def as_json(self) -> dict[str, Any]:
        """Everything, all rounds included."""
        return {
            "kind": "conversion",
            "network": self.model,
            "checkpoint_bytes": self.checkpoint_bytes,
            "rounds": len(self.contenders[0].seconds),
            "contenders": [
                {
                    **asdict(one),
                    "median_seconds": median(one.seconds),
                    "ratio": asdict(self.ratio(one)),
                }
                for one in self.contenders
            ],
            "skipped": [asdict(each) for each in self.skipped],
        }


def race_conversions(
    task: Task, *, official: bool, rounds: int, progress: Callable[[str, int, int], None] | None
) -> Conversion:
    """Time `repvgg_ref.files.convert` and, if `official`, the script in torch on `task.network`.

    Raises
    ------
    ContenderError
        If one of them fails, or their fused kernels differ by more than float32 folding explains.
    """
    ways = [OURS, OFFICIAL] if official else [OURS]
    with TemporaryDirectory() as folder:
        source = Path(folder) / "train.pth"
        save(task.model(), source)
        size = source.stat().st_size
        targets = {way: Path(folder) / f"deploy-{k}.pth" for k, way in enumerate(ways)}
        found = {way: _measured(way) for way in ways}
        for number in range(rounds):
            for way in ways[number % len(ways) :] + ways[: number % len(ways)]:
                targets[way].unlink(missing_ok=True)
                _convert(way, task, source, targets[way], found[way])
                if progress is not None:
                    progress(way, sum(len(m.seconds) for m in found.values()), rounds * len(ways))
        if official:
            found[OFFICIAL].error = _difference(targets[OFFICIAL], targets[OURS])
            if not found[OFFICIAL].error <= TOLERANCE:
                raise ContenderError(
                    "the two ways fuse differently",
                    got=f"a difference of {found[OFFICIAL].error:.2g} of a layer's largest tap",
                    wanted=f"at most {TOLERANCE:.2g}",
                )
    return Conversion(task.network, size, list(found.values()), [])


def _measured(way: str) -> Measured:
    package = "repvgg-ref" if way == OURS else "torch"
    return Measured(way, "whole process", version(package), 0.0, {})


def _convert(way: str, task: Task, source: Path, target: Path, into: Measured) -> None:
    """One process from its start to its end; it tells its processor time and peak itself."""
    began = time.perf_counter()
    arguments = [way, task.network, str(source), str(target)]
    done = subprocess.run(
        running("repvgg_ref.bench.conversion", "main", *arguments),
        env=environment(task.threads),
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["nothing said"]
        raise ContenderError(f"{way} failed to convert", got=lines[-1])
    try:
        told = json.loads(done.stdout.splitlines()[-1])
        cpu_seconds, peak = float(told["cpu_seconds"]), int(told["peak"])
    except (LookupError, RecursionError, TypeError, ValueError):
        raise ContenderError(f"{way} did not tell its time and memory") from None
    into.seconds.append(seconds)
    into.cpu_seconds.append(cpu_seconds)
    into.memory["peak"] = max(peak, into.memory.get("peak", 0))


def _difference(theirs: Path, ours: Path) -> float:
    left, right = load(theirs).params, load(ours).params
    errors = [np.abs(left[k] - right[k]).max() / np.abs(right[k]).max() for k in right]
    return float(np.max(errors))


def _official(name: str, source: str, target: str) -> None:
    """The steps of the official `convert.py`."""
    from repvgg_ref.bench.contenders.torch_network import train_network
    from repvgg_ref.models.architectures import architecture

    torch: Any = importlib.import_module(next(iter(ENTRIES["torch"].needs)))
    arch = architecture(name)
    network = train_network(torch, arch, eps=1e-5)
    state = torch.load(source)
    network.load_state_dict({key.replace("module.", ""): value for key, value in state.items()})
    deploy = deepcopy(network)
    for spec in arch.blocks:
        _switch_to_deploy(torch, deploy.get_submodule(spec.name))
    torch.save(deploy.state_dict(), target)


def _switch_to_deploy(torch: Any, block: Any) -> None:
    """As in the official `RepVGGBlock`, in float32."""
    dense = block.rbr_dense.conv
    kernel, bias = _fold(dense.weight, block.rbr_dense.bn)
    point, point_bias = _fold(block.rbr_1x1.conv.weight, block.rbr_1x1.bn)
    kernel, bias = kernel + torch.nn.functional.pad(point, [1, 1, 1, 1]), bias + point_bias
    if hasattr(block, "rbr_identity"):
        identity = torch.zeros_like(dense.weight)
        for channel in range(len(identity)):
            identity[channel, channel % identity.shape[1], 1, 1] = 1
        copied, copied_bias = _fold(identity, block.rbr_identity)
        kernel, bias = kernel + copied, bias + copied_bias
        del block.rbr_identity
    settings = {"stride": dense.stride, "padding": dense.padding, "groups": dense.groups}
    block.rbr_reparam = torch.nn.Conv2d(dense.in_channels, dense.out_channels, 3, **settings)
    block.rbr_reparam.weight.data, block.rbr_reparam.bias.data = kernel, bias
    for parameter in block.parameters():
        parameter.detach_()
    del block.rbr_dense, block.rbr_1x1


def _fold(kernel: Any, bn: Any) -> tuple[Any, Any]:
    std = (bn.running_var + bn.eps).sqrt()
    t = (bn.weight / std).reshape(-1, 1, 1, 1)
    return kernel * t, bn.bias - bn.running_mean * bn.weight / std


def main() -> None:
    """Convert once, as asked on the command line, and tell what it took."""
    way, name, source, target = sys.argv[1:]
    if way == OURS:
        from repvgg_ref.files.convert import convert

        convert(source, target)
    else:
        _official(name, source, target)
    told = {"cpu_seconds": time.process_time(), "peak": peak_bytes()}
    sys.stdout.write(json.dumps(told) + "\n")
