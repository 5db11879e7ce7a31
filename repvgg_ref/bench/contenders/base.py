"""What a contender is, and the list of them. Nothing here loads a framework."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from repvgg_ref.arrays import Array
from repvgg_ref.bench.task import Task
from repvgg_ref.errors import MissingExtraError, ReportedError

OURS = "repvgg-ref"
DIRECT = "repvgg-ref, direct"
BRANCHES = "repvgg-ref, branches"

# A training step must agree in these, from the first layer to the last, under official names.
COMPARED_GRADIENTS = (
    "stage0.rbr_dense.conv.weight",
    "stage2.0.rbr_1x1.bn.weight",
    "linear.weight",
)


class CannotTakePartError(ReportedError):
    """A contender that cannot do the task; the message says why."""


def _nothing() -> None:
    """A CPU framework has done its work when `run` returns."""


@dataclass(frozen=True)
class Contender:
    """A network ready to run on the task's images; weights are packed, images in their place.

    Attributes
    ----------
    run : callable
        One inference or training step; returns whatever `outputs` reads.
    outputs : callable
        From that to named arrays, compared with ours before anything is timed.
    sync : callable
        Waits until the device is done; part of every timed turn.
    count : callable
        What `run` should need in bytes, by theory; only ours can say.
    layers : callable, optional
        ``layers(rounds)`` times the layers one by one; only ours can.
    """

    run: Callable[[], Any]
    outputs: Callable[[Any], Mapping[str, Array]]
    sync: Callable[[], None] = _nothing
    count: Callable[[], dict[str, int]] = dict
    layers: Callable[[int], dict[str, Any]] | None = None


@dataclass(frozen=True)
class Entry:
    """A line of the list: how a contender is called, installed and found.

    Attributes
    ----------
    adapter : str
        The module with ``variants(task)`` and ``prepare(task, variant)``.
    needs : mapping
        Module to import -> what pip calls it. None for our own contenders.
    kinds : tuple
        The tasks it can do.
    """

    name: str
    adapter: str
    needs: Mapping[str, str] = field(default_factory=dict)
    kinds: tuple[str, ...] = ("inference",)

    def missing(self) -> list[str]:
        """What pip would have to install."""
        return [
            pip for module, pip in self.needs.items() if importlib.util.find_spec(module) is None
        ]

    def variants(self, task: Task) -> tuple[str, ...]:
        """The ways it can be run; the fastest represents it."""
        found: tuple[str, ...] = importlib.import_module(self.adapter).variants(task)
        return found

    def prepare(self, task: Task, variant: str) -> Contender:
        """Build the network; called in the contender's own process."""
        made: Contender = importlib.import_module(self.adapter).prepare(task, variant)
        return made


_HERE = "repvgg_ref.bench.contenders"
_BOTH = ("inference", "training")

ENTRIES: Mapping[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry(OURS, f"{_HERE}.fused", kinds=_BOTH),
        Entry(DIRECT, f"{_HERE}.direct"),
        Entry(BRANCHES, f"{_HERE}.branches"),
        Entry("torch", f"{_HERE}.torch_peer", {"torch": "torch"}, kinds=_BOTH),
        Entry(
            "onnxruntime",
            f"{_HERE}.onnxruntime_peer",
            {"onnxruntime": "onnxruntime", "onnx": "onnx"},
        ),
        Entry("openvino", f"{_HERE}.openvino_peer", {"openvino": "openvino", "onnx": "onnx"}),
        Entry("ncnn", f"{_HERE}.ncnn_peer", {"ncnn": "ncnn"}),
    )
}
PEERS = tuple(entry for entry in ENTRIES.values() if entry.needs)


def require_installed(entry: Entry) -> None:
    """Raise `MissingExtraError`, with the line that mends it, unless `entry` can be imported."""
    if missing := entry.missing():
        raise MissingExtraError(
            f"{entry.name} cannot be timed",
            got=f"{', '.join(missing)} not installed",
            wanted="an installed peer",
            advice=install(missing),
        )


def install(packages: list[str]) -> str:
    """The command that installs `packages`."""
    return f"pip install {' '.join(packages)}"
