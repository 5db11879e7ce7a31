"""How small a fault of one layer among right ones is seen, placed and described.

    python -m tests.studies.oracle.sensitivity --seconds 900

First the faults of fixed size that have to be seen, then for every kind and layer the smallest
size, by halving, that is an alarm. Inputs are the default ones of `verify`. Writes
``results/sensitivity.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.fusion import FusedConv
from repvgg_ref.models.network import Model
from repvgg_ref.oracle.arithmetic.port import direct_nuisance
from repvgg_ref.oracle.arithmetic.sample import sample_of
from repvgg_ref.oracle.bounds.precision import PRECISIONS
from repvgg_ref.oracle.bugs.base import round_to_bits
from repvgg_ref.oracle.candidates import Outputs
from repvgg_ref.oracle.estimates.estimate import alarms
from repvgg_ref.oracle.estimates.layer import LayerEstimates
from repvgg_ref.oracle.estimates.port import PortEstimates, estimate_port
from repvgg_ref.oracle.probes.first_call import DEFAULT
from repvgg_ref.oracle.programs.block import BlockProgram
from repvgg_ref.oracle.programs.layers import Programs
from repvgg_ref.oracle.verification import judge
from tests.studies.oracle.arithmetics import layer, run, single
from tests.studies.oracle.false_alarms import seen_of
from tests.studies.oracle.networks import network_and_inputs

RESULTS = Path(__file__).parent / "results" / "sensitivity.json"
PORTS = ("blocked", "chain", "F4")
_SEED = 100
_TAP_OUTPUTS = 100  # active outputs that a channel needs for its largest tap to be seen
_LARGEST, _SMALLEST = 2.0**-12, 2.0**-24

Port = Mapping[str, Array]
# (program, input, right output, size, how the port convolves) -> the faulty output
Fault = Callable[[BlockProgram, Array, Array, float, str], Array]
Change = Callable[[Array, Array, Array, float], tuple[Array, Array]]


def _whole(_program: BlockProgram, _x: Array, y: Array, size: float, _port: str) -> Array:
    return y * (1 + size)


def _last_image(_program: BlockProgram, _x: Array, y: Array, size: float, _port: str) -> Array:
    y = y.copy()
    y[-1] *= 1 + size
    return y


def _last_column(_program: BlockProgram, _x: Array, y: Array, size: float, _port: str) -> Array:
    y = y.copy()
    y[..., -1] *= 1 + size
    return y


def _with_kernel(change: Change) -> Fault:
    """The layer with another kernel and bias, in the port's arithmetic."""

    def fault(program: BlockProgram, x: Array, y: Array, size: float, port: str) -> Array:
        kernel = program.fused_kernel()
        weight, bias = change(kernel.weight.copy(), kernel.bias.copy(), y, size)
        changed = replace(program, branches={}, fused=FusedConv(single(weight), single(bias)))
        return layer(changed, x, port)

    return fault


def _bias(weight: Array, bias: Array, _y: Array, size: float) -> tuple[Array, Array]:
    return weight, bias * (1 + size)


def _noise(weight: Array, bias: Array, _y: Array, size: float) -> tuple[Array, Array]:
    noise = np.random.default_rng(0).normal(size=weight.shape)
    return weight * (1 + size * noise), bias


def _bits(weight: Array, bias: Array, _y: Array, size: float) -> tuple[Array, Array]:
    return round_to_bits(weight, round(-np.log2(size))), bias


def _channel(weight: Array, bias: Array, y: Array, size: float) -> tuple[Array, Array]:
    o = most_active(y)
    weight[o] *= 1 + size
    bias[o] *= 1 + size
    return weight, bias


def _tap(weight: Array, bias: Array, y: Array, size: float) -> tuple[Array, Array]:
    o = most_active(y)
    weight[o].flat[np.abs(weight[o]).argmax()] *= 1 + size
    return weight, bias


def most_active(y: Array) -> int:
    """The channel with most outputs above 0."""
    return int((y > 0).sum(axis=(0, 2, 3)).argmax())


FAULTS: dict[str, Fault] = {
    "outputs": _whole,
    "bias": _with_kernel(_bias),
    "weights noise": _with_kernel(_noise),
    "weights kept to bits": _with_kernel(_bits),
    "last image": _last_image,
    "last column": _last_column,
    "one channel": _with_kernel(_channel),
    "largest tap of a channel": _with_kernel(_tap),
}
# What has to be seen; bits as 2**-bits.
REQUIRED = {
    "outputs": 1e-6,
    "bias": 1e-6,
    "weights noise": 2e-6,
    "weights kept to bits": 2.0**-20,
    "last image": 1e-6,
    "last column": 1e-6,
    "one channel": 4e-6,
    "largest tap of a channel": 3e-5,
}
# What a right description may be called.
_DESCRIBED = {
    "outputs": {"outputs-scaled"},
    "bias": {"bias-scaled"},
    "weights noise": {"weights-rounded"},
    "weights kept to bits": {"weights-rounded", "weights-bf16", "weights-truncated"},
    "last image": {"part-scaled"},
    "last column": {"part-scaled"},
    "one channel": {"channel-scaled"},
    "largest tap of a channel": {"taps-altered"},
}


class Bench:
    """One right port of one network, and what becomes of it when one layer is faulty."""

    def __init__(self, network: str, port: str, images: int = DEFAULT[0]) -> None:
        self.network, self.port, self.images = network, port, images
        self.model: Model
        self.model, self.x = network_and_inputs(network, _SEED, DEFAULT[1:], images)
        self.programs = Programs(self.model)
        self.right = run(self.programs, self.x, port)
        self.seen = seen_of(self.programs, self.x, self.right)

    def layers(self, most: int) -> list[str]:
        """Some blocks, evenly spread, the first and the last among them."""
        names = [name for name in self.programs if name != "linear"]
        return [names[k] for k in np.unique(np.linspace(0, len(names) - 1, most).astype(int))]

    def active(self, name: str) -> int:
        """Active outputs of the channel that has most."""
        return int((self.right[name] > 0).sum(axis=(0, 2, 3)).max())

    def outputs(self, name: str, kind: str, size: float) -> dict[str, Array]:
        """All outputs with one faulty layer; the later ones computed from its output."""

        def fault(program: Any, x: Array, y: Array) -> Array:
            return FAULTS[kind](program, x, y, size, self.port)

        return run(self.programs, self.x, self.port, {name: fault})

    @cached_property
    def estimates(self) -> PortEstimates:
        """Of the port without any fault."""
        return estimate_port(self.seen, PRECISIONS["fp32"])

    def shows(self, name: str, kind: str, size: float) -> bool:
        """Whether a fault is an alarm in its own layer, the other layers being right.

        Their estimates and the port's arithmetic are taken from the port without the fault.
        """
        here, right = self.seen[name], self.estimates
        y_hat = single(FAULTS[kind](here.program, here.x, here.y_hat, size, self.port))
        sample = sample_of(here.program, here.x, here.y, y_hat, PRECISIONS["fp32"])
        nuisance = right.arithmetic.nuisances[name]
        if nuisance.algorithm == "direct":
            directed = right.arithmetic.directed
            nuisance = direct_nuisance(sample, directed, right.arithmetic.unit)
        found = LayerEstimates(sample, nuisance).all()
        others = [e for n, listed in right.estimates.items() if n != name for e in listed]
        return any(e in found for e in alarms([*others, *found]))

    def required(self, name: str, kind: str) -> dict[str, Any]:
        """Whether a fault of the size that has to be seen is caught, placed and described."""
        size = REQUIRED[kind]
        outputs = self.outputs(name, kind, size)
        report = judge(self.model, Outputs(outputs), self.x, precision="fp32")
        named = [finding.bug for finding in report.diagnosis if finding.layer == name]
        bad = [each.name for each in report.layers if not each.ok]
        return {
            "network": self.network,
            "port": self.port,
            "images": self.images,
            "layer": name,
            "active": self.active(name),
            "kind": kind,
            "size": size,
            "caught": report.verdict == "disagree",
            "placed": bad == [name],
            "described": bool(_DESCRIBED[kind] & set(named)),
            "named": named,
        }

    def smallest(self, name: str, kind: str) -> float | None:
        """The smallest size, in steps of 2, at which this layer alone has an alarm."""
        found = None
        size = _LARGEST
        while size >= _SMALLEST:
            if not self.shows(name, kind, size):
                break
            found, size = size, size / 2
        return found


def study(bench: Bench, most: int, until: float) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What has to be seen, then the smallest sizes; `most` layers, until the time is up."""
    layers = bench.layers(most)
    required: list[dict[str, Any]] = []
    smallest: dict[str, Any] = {}
    for kind in FAULTS:
        for name in layers:
            few = kind == "largest tap of a channel" and bench.active(name) < _TAP_OUTPUTS
            if few or time.monotonic() > until:
                continue
            found = bench.required(name, kind)
            required.append(found)
            if not (found["caught"] and found["placed"] and found["described"]):
                print(found, flush=True)
    for kind in FAULTS:
        for name in layers:
            smallest.setdefault(kind, {})[name] = {
                "active": bench.active(name),
                "size": bench.smallest(name, kind),
            }
    return required, smallest


def main() -> int:
    """Run the study; exit code 1 if anything that has to be seen was missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300, help="for each port")
    parser.add_argument("--networks", nargs="+", default=("plain-16", "RepVGG-A0"))
    parser.add_argument("--ports", nargs="+", default=PORTS)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--images", type=int, default=DEFAULT[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    required: list[dict[str, Any]] = []
    smallest: dict[str, Any] = {}
    for network in asked.networks:
        for port in asked.ports:
            bench = Bench(network, port, asked.images)
            found, least = study(bench, asked.layers, time.monotonic() + asked.seconds)
            required += found
            smallest[f"{network}, {port}"] = least
            whole = {"required": required, "smallest": smallest}
            asked.out.write_text(json.dumps(whole, indent=1) + "\n")
    good = [all(each[key] for key in ("caught", "placed", "described")) for each in required]
    print(f"{sum(good)} of {len(good)} caught, placed and described")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
