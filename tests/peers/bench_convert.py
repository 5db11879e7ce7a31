# mypy: disable-error-code="no-any-return"
"""Whole-process time and memory of `repvgg-ref convert` and of the official way, side by side.

    python -m tests.peers.bench_convert [--rounds 7] [RepVGG-A0 RepVGG-B3 ...]

For each model a training checkpoint with trained-looking batch norms is written, then both convert
it to `.pth`, taking turns (machines are noisy: compare within a round), each in a process of its
own. The official way is `convert.py` of the official repository: torch.load, build the network,
load_state_dict, deepcopy, switch_to_deploy, torch.save. Prints one JSON object; gates nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from copy import deepcopy
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", default=["RepVGG-A0", "RepVGG-B3"])
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    results = {name: _compare(name, asked.rounds) for name in asked.models}
    print(json.dumps(results, indent=2))


def _compare(name: str, rounds: int) -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        source = Path(folder) / "train.pth"
        _run([__file__, "--write", name, str(source)])
        size = source.stat().st_size
        ours = ["-m", "repvgg_ref_cli", "convert", "--in", str(source), "--json", "--out"]
        theirs = [__file__, "--official", name, str(source)]
        runs: dict[str, list[dict[str, float]]] = {"repvgg-ref": [], "official": []}
        for _ in range(rounds):
            for who, command in (("repvgg-ref", ours), ("official", theirs)):
                target = Path(folder) / f"{who}.pth"
                runs[who].append(_run([*command, str(target)]))
                target.unlink()
    found: dict[str, Any] = {"checkpoint_bytes": size, "rounds": rounds}
    for who, measured in runs.items():
        found[who] = {key: round(median(run[key] for run in measured), 3) for key in measured[0]}
    pairs = list(zip(runs["official"], runs["repvgg-ref"], strict=True))
    for key in ("seconds", "cpu_seconds", "peak_mib"):
        ratios = sorted(round(theirs[key] / ours[key], 2) for theirs, ours in pairs)
        found[f"{key}_ratio"] = {"median": median(ratios), "all": ratios}
    return found


def _run(arguments: list[str]) -> dict[str, float]:
    """Run Python; wall and processor time in seconds, peak resident memory in MiB."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "cli")])
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.DEVNULL,
        cwd=ROOT,
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed: {arguments}")
    return {
        "seconds": time.perf_counter() - begin,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mib": usage.ru_maxrss / 1024,
    }


def _write(name: str, path: str) -> None:
    import repvgg_ref as rr
    from tests.random_networks import random_model

    rr.save(random_model(rr.architecture(name), seed=0), path)


def _official(name: str, source: str, target: str) -> None:
    """The steps of the official `convert.py` on the independent torch network."""
    import torch

    from repvgg_ref.models.architectures import architecture
    from tests.peers.torch_repvgg import build_torch

    network = build_torch(architecture(name))
    state = torch.load(source)
    network.load_state_dict({key.replace("module.", ""): value for key, value in state.items()})
    deploy = deepcopy(network)
    for path in deploy.paths:
        _switch_to_deploy(torch, deploy.get_submodule(path))
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
    block.rbr_reparam = torch.nn.Conv2d(
        dense.in_channels, dense.out_channels, 3, dense.stride, 1, groups=dense.groups
    )
    block.rbr_reparam.weight.data, block.rbr_reparam.bias.data = kernel, bias
    for parameter in block.parameters():
        parameter.detach_()
    del block.rbr_dense, block.rbr_1x1


def _fold(kernel: Any, bn: Any) -> tuple[Any, Any]:
    std = (bn.running_var + bn.eps).sqrt()
    t = (bn.weight / std).reshape(-1, 1, 1, 1)
    return kernel * t, bn.bias - bn.running_mean * bn.weight / std


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write"]:
        _write(*sys.argv[2:])
    elif sys.argv[1:2] == ["--official"]:
        _official(*sys.argv[2:])
    else:
        main()
