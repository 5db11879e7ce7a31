"""What every candidate hands over, whatever it is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from repvgg_ref.arrays import Array, one_line
from repvgg_ref.blocks.fusion import FusedConv
from repvgg_ref.errors import ReportedError
from repvgg_ref.oracle.report import Finding
from weights_io import sanitize

Shape = tuple[int | None, ...]
FailureVerdict = Literal["cannot-judge", "disagree"]


class CandidateFailure(ReportedError):  # noqa: N818 - it is an outcome, not only an error
    """A candidate that gave nothing to compare; `verdict` says what follows from that.

    "cannot-judge" where the reason may lie outside the port (a crash, a file that cannot be read),
    "disagree" where the port itself gave the wrong thing (it lost an image of the batch).
    `refused` says that the port was reached and would not take this call: another may do.
    """

    def __init__(
        self,
        what: str,
        *,
        got: object = None,
        wanted: object = None,
        advice: str | None = None,
        verdict: FailureVerdict = "cannot-judge",
        refused: bool = False,
    ) -> None:
        super().__init__(what, got=got, wanted=wanted, advice=advice)
        self.verdict: FailureVerdict = verdict
        self.refused = refused


@dataclass(frozen=True)
class FileEvidence:
    """What a port's file says without being run.

    Attributes
    ----------
    kernels : mapping
        Layer -> the one convolution that the file holds for it; the classifier's is 1x1.
    findings : tuple of Finding
        What is wrong in any case.
    suspects : tuple of Finding
        What is to blame if the layer's values are wrong, and harmless if they are right.
    doubts : tuple of str
        What could act otherwise on other inputs, so that no values here prove it right.
    notes : tuple of str
    computed : frozenset of str
        The layers whose kernels are not stored, but sums or multiples of what is.
    scaled : (str, str) or None
        The formats of weights and biases before they were divided by estimated factors.
    """

    kernels: Mapping[str, FusedConv]
    findings: tuple[Finding, ...] = ()
    suspects: tuple[Finding, ...] = ()
    doubts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    computed: frozenset[str] = frozenset()
    scaled: tuple[str, str] | None = None


@dataclass(frozen=True)
class Outputs:
    """Layer outputs of one candidate, as it gave them: shapes and values are not judged here.

    Attributes
    ----------
    layers : mapping
        Layer name -> array, NCHW; "linear" -> (N, classes). Never empty, often partial.
    x : array or None
        The input these outputs belong to, if the candidate brought its own.
    precision : {"fp32", "fp16", "bf16", "tf32"} or None
        What the candidate declares to compute in.
    notes : tuple of str
        What was decided on the way: a transposition, a match by position.
    problem : str or None
        A disagreement that shows in the structure alone (22 convolutions wanted, 21 found): the
        layers are those in front of it and must not make an "agree".
    wrote_input : bool
        Whether the port wrote into the batch it was called with.
    evidence : FileEvidence or None
        What the file holds, where it can be read.
    """

    layers: Mapping[str, Array]
    x: Array | None = None
    precision: str | None = None
    notes: tuple[str, ...] = ()
    problem: str | None = None
    wrote_input: bool = False
    evidence: FileEvidence | None = None

    __repr__ = one_line


class Candidate:
    """Somebody's port, ready to be asked for its layer outputs.

    Attributes
    ----------
    name : str
        What messages call it; safe to print.
    brings_input : bool
        Whether it may be run without an input.
    is_called : bool
        Whether it computes when it is run, so that it can be run on another batch; else it is a
        dump of what was computed once.
    """

    name: str
    brings_input: bool = False
    is_called: ClassVar[bool] = False

    def run(self, x: Array | None) -> Outputs:
        """Layer outputs for the batch `x` (N, C, H, W), or for the candidate's own input."""
        raise NotImplementedError

    def run_again(self, x: Array, seconds: float) -> Outputs:
        """The same for another batch, given up after `seconds` where that is possible."""
        del seconds
        return self.run(x)

    def close(self) -> None:
        """End what still runs for it."""

    def input_shape(self) -> Shape | None:
        """(N, C, H, W) with None where free; None if nothing is known."""
        return None

    def images(self, x: Array) -> Array:
        """What to run so that `x` enters the network: `x`, unless the port normalises by itself."""
        return x

    @property
    def takes_integers(self) -> bool:
        """Whether it takes images as bytes or other integers, so that not any batch can be fed."""
        return False

    def batch(self, x: Array | None) -> Array:
        """`x`, if there is one."""
        if x is None:
            raise CandidateFailure(f"{self.name}: needs an input batch", wanted="(N, C, H, W)")
        return x


@dataclass(frozen=True)
class WeightsCandidate:
    """A weights file: its kernels can be compared without running anything."""

    path: Path

    @property
    def name(self) -> str:
        """The file's name."""
        return sanitize(self.path.name)
