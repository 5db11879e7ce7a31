"""What the oracle says: a verdict, the first bad layer, the bug's name, and how sure it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

from repvgg_ref.arrays import Array, one_line
from repvgg_ref.errors import ReportedError
from repvgg_ref.models.about import Assumed
from repvgg_ref.oracle.power import Power

Verdict = Literal["agree", "disagree", "cannot-judge"]
Kind = Literal["permutation", "scaling"]
EVERYWHERE = "all"  # the place of a cause that stands in every layer where it would show


class VerificationError(ReportedError):
    """A candidate that was not found to agree with the reference; it may be told on many lines."""

    _lines = True


@dataclass(frozen=True)
class LayerReport:
    """One layer, computed by the reference from the candidate's own input.

    Attributes
    ----------
    max_error, bound : float
        At the output element with the largest ratio of error to certified bound.
    ratio : float
        ``max_error / bound``; NaN where the candidate gave NaN.
    likely_ratio : float
        Error over the probabilistic bound (Higham & Mary 2019): above 1 is unusual, not wrong.
    inherited : float or None
        Largest error of this layer's *input*, relative to its largest value: what came from above.
    ok : bool
        Whether every element is within its certified bound.
    detects : mapping
        The smallest relative errors that would have been seen, by what they would be in; see
        `estimates.port.PortEstimates.detects`. None: only the certified bound would tell.
    note : str
        Why the layer is bad, if it is not a matter of size (a shape, NaN, a missing layer).
    """

    name: str
    max_error: float
    bound: float
    ratio: float
    ok: bool
    likely_ratio: float = 0.0
    inherited: float | None = None
    note: str = ""
    detects: Mapping[str, float | None] = field(default_factory=dict)

    @classmethod
    def incomparable(cls, name: str, note: str, inherited: float | None = None) -> Self:
        """A bad layer of which no error can be measured: another shape, or NaN."""
        nan = float("nan")
        return cls(name, nan, 0.0, nan, ok=False, inherited=inherited, note=note)


@dataclass(frozen=True)
class Finding:
    """One explanation of what the candidate does differently.

    Attributes
    ----------
    bug : str
        The bug's name, ``eps-outside-root``; "unknown" if none explains.
    layer : str or None
        Where; "all": in every layer that can show it. None: of no layer, or nobody knows.
    estimate : float or None
        The bug's parameter as measured (eps), or the regression coefficient (1 = exactly this).
    confidence : float
        0 to 1: probability that this, among all explanations tried, is the right one.
    explains : float
        Fraction of the residual's energy that vanishes once the bug is assumed.
    says, advice : str
        In words: what the candidate does, and what to try next.
    taps : mapping or None
        What was estimated of the weights: `estimates.taps.tap_errors`.
    also : tuple of str
        The other layers that a candidate does not show and that have it, which is all that can.
    """

    bug: str
    layer: str | None
    estimate: float | None
    confidence: float
    explains: float
    says: str = ""
    advice: str = ""
    standard_error: float | None = None
    equivalents: tuple[str, ...] = ()
    taps: Mapping[str, Any] | None = None
    also: tuple[str, ...] = ()

    def is_in(self, layer: str) -> bool:
        """Whether it is said of a layer, alone or among all."""
        return self.layer in (layer, EVERYWHERE)


@dataclass(frozen=True)
class Equivalence:
    """A change to a layer's output channels that the next layer takes back: an equal network."""

    layer: str
    kind: Kind
    says: str


@dataclass(frozen=True)
class ProbeReport:
    """A further call of the candidate; `ok` is None where it could not be made or judged."""

    call: str
    ok: bool | None
    says: str = ""


@dataclass(frozen=True)
class Report:
    """The verdict on one candidate; `raise_if_bad` makes it a test. `unit` is what is judged."""

    unit: ClassVar[str] = "layer"

    verdict: Verdict
    reason: str
    model: str
    candidate: str
    precision: str
    layers: tuple[LayerReport, ...] = ()
    diagnosis: tuple[Finding, ...] = ()
    first_bad_layer: str | None = None
    notes: tuple[str, ...] = ()
    residual: Array | None = field(default=None, repr=False, compare=False)
    equivalences: tuple[Equivalence, ...] = ()
    probes: tuple[ProbeReport, ...] = ()
    power: Power | None = None
    assumed: Assumed = field(default_factory=Assumed)

    __repr__ = one_line

    def __bool__(self) -> bool:
        """Whether the verdict is "agree": an object that is always true makes no test."""
        return self.verdict == "agree"

    def raise_if_bad(self) -> None:
        """Raise `VerificationError` unless the verdict is "agree"."""
        if self.verdict != "agree":
            bugs = ", ".join(finding.bug for finding in self.diagnosis[:3])
            raise VerificationError(
                f"{self.candidate}: {self.verdict}: {self.reason}",
                got=bugs or None,
                wanted="agreement with the reference",
                advice=self.diagnosis[0].advice or None if self.diagnosis else None,
            )

    def to_json(self) -> dict[str, Any]:
        """The object that ``repvgg-ref verify --json`` prints."""
        return {
            "verdict": self.verdict,
            "reason": self.reason,
            "model": self.model,
            "candidate": self.candidate,
            "first_bad_layer": self.first_bad_layer,
            "diagnosis": [
                {
                    "bug": f.bug,
                    "layer": f.layer,
                    "estimate": _number(f.estimate),
                    "standard_error": _number(f.standard_error),
                    "confidence": _number(f.confidence),
                    "explains": _number(f.explains),
                    "says": f.says,
                    "advice": f.advice,
                    "equivalents": list(f.equivalents),
                    "taps": None if f.taps is None else dict(f.taps),
                }
                for f in self.diagnosis
            ],
            "precision": self.precision,
            "layers": [
                {
                    "name": layer.name,
                    "max_error": _number(layer.max_error),
                    "bound": _number(layer.bound),
                    "ratio": _number(layer.ratio),
                    "likely_ratio": _number(layer.likely_ratio),
                    "inherited": _number(layer.inherited),
                    "ok": layer.ok,
                    "note": layer.note,
                    "detects": {what: _number(size) for what, size in layer.detects.items()},
                }
                for layer in self.layers
            ],
            "notes": list(self.notes),
            "equivalences": [
                {"layer": e.layer, "kind": e.kind, "says": e.says} for e in self.equivalences
            ],
            "probes": [{"call": p.call, "ok": p.ok, "says": p.says} for p in self.probes],
            "power": None if self.power is None else self.power.to_json(),
            "assumed": self.assumed.to_json(),
        }


def _number(value: float | None) -> float | None:
    """JSON has no NaN and no infinity: null there."""
    return float(value) if value is not None and abs(float(value)) < float("inf") else None
