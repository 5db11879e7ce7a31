"""Correct ports to accuse nobody of: every runtime that pip installs, at every precision it offers.

A candidate is built from our train form (float32): fused here in float64 and rounded once, or with
its branches left apart. What it computes afterwards is the runtime's business alone.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from repvgg_ref.arrays import Array
from repvgg_ref.models.network import Model

Port = Callable[[Array], Mapping[str, Array]]


@dataclass(frozen=True)
class RightCandidate:
    """A correct port.

    Attributes
    ----------
    package : str
        The module that must be installed.
    precision : str
        What `verify` is told to hold it to.
    build : callable
        (train-form model, empty folder) -> a callable of an NCHW batch, or a path for `verify`.
    groups_broken : bool
        Grouped convolutions are known to be wrong in it, whoever asks: no right candidate there.
    """

    name: str
    package: str
    precision: str
    build: Callable[[Model, Path], Port | Path]
    groups_broken: bool = False

    @property
    def installed(self) -> bool:
        """Whether its package is."""
        return importlib.util.find_spec(self.package) is not None

    def suits(self, model: Model) -> bool:
        """Whether the runtime is known to compute this network rightly."""
        return not (self.groups_broken and any(spec.groups > 1 for spec in model.arch.blocks))


def all_candidates() -> list[RightCandidate]:
    """Every correct port; those whose package is missing as well."""
    from tests.peers import right_mnn, right_ncnn, right_onnxruntime, right_openvino, right_torch

    families = (right_torch, right_onnxruntime, right_openvino, right_ncnn, right_mnn)
    return [candidate for family in families for candidate in family.CANDIDATES]
