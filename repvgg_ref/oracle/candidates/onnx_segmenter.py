"""An ``.onnx`` file of a PSPNet, run in ONNX Runtime with every layer's output tapped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.candidates.base import FileEvidence
from repvgg_ref.oracle.candidates.onnx_chain import Chain
from repvgg_ref.oracle.candidates.onnx_model import Loaded, OnnxCandidate, precision_of
from repvgg_ref.oracle.candidates.onnx_pyramid import (
    Pyramid,
    channels_of,
    find_pyramid,
    placed,
    pyramid_chain,
)
from repvgg_ref.oracle.candidates.onnx_pyramid_evidence import pyramid_evidence


@dataclass
class PyramidCandidate(OnnxCandidate):
    """The same for a network that says a class for every pixel; see `onnx_pyramid`."""

    _pyramid: Pyramid = field(default_factory=Pyramid, repr=False, compare=False)

    def _found(self, model: Any, chains: Sequence[Chain]) -> Loaded:
        chain = pyramid_chain(chains)
        taps, self._pyramid = find_pyramid(chain, self.arch)
        precision, notes = precision_of(chain, self.arch)
        widths = channels_of(taps, self._pyramid, self.arch)
        return Loaded(model, chain, taps, widths, FileEvidence({}), precision, notes)

    def _placed(self, loaded: Loaded, found: Mapping[str, Array]) -> Loaded:
        floors, pyramid = placed(self._pyramid, found, self.arch)
        evidence = pyramid_evidence(loaded.chain, pyramid, self.arch)
        taps = replace(loaded.taps, blocks=loaded.taps.blocks | floors)
        return replace(loaded, taps=taps, evidence=evidence)
