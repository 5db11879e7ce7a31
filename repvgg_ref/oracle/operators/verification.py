"""The front of judging operators: is this kernel right, which output is wrong, which bug is it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.errors import ReportedError
from repvgg_ref.oracle.blas import single_threaded_blas
from repvgg_ref.oracle.bounds.precision import PRECISIONS, Precision, precision_of
from repvgg_ref.oracle.candidates.base import CandidateFailure
from repvgg_ref.oracle.candidates.outside import is_module
from repvgg_ref.oracle.operators.cases import calls as made_calls
from repvgg_ref.oracle.operators.cases import integers_like
from repvgg_ref.oracle.operators.catalogue import operator_called
from repvgg_ref.oracle.operators.evidence import channel_axis
from repvgg_ref.oracle.operators.judge import Judged, OutputCheck
from repvgg_ref.oracle.operators.operator import Answer, Call, Operator, complete
from repvgg_ref.oracle.operators.ports import FunctionPort, ModulePort, Port, dumped
from repvgg_ref.oracle.report import Finding, LayerReport, Report
from weights_io import sanitize

PortLike = Callable[..., Any] | str | Path | Mapping[str, Array]

_MOST_DIAGNOSED = 3  # calls that are explained


@dataclass(frozen=True, kw_only=True)
class OperatorReport(Report):
    """A `Report` on one operator: its layers are the operator's outputs, each at its worst call.

    Attributes
    ----------
    calls : tuple of str
        What the port was asked, in words.
    exact : bool or None
        Whether sums of small integers came out exact; None if none were asked.
    tests : mapping
        Output -> bias and variance of its errors as shares of what rounding can do, at the worst.
    detectable : mapping
        Output -> the smallest error that would have been seen, relative to its channel's size.
    """

    unit: ClassVar[str] = "output"

    calls: tuple[str, ...] = ()
    exact: bool | None = None
    tests: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    detectable: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The object that ``repvgg-ref verify-op --json`` prints."""
        found = super().to_json()
        return found | {
            "operator": self.model,
            "calls": list(self.calls),
            "exact": self.exact,
            "tests": {name: dict(each) for name, each in self.tests.items()},
            "detectable": dict(self.detectable),
        }


def verify_op(
    operator: str,
    port: PortLike,
    *arrays: Any,
    precision: str = "auto",
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    outputs: Sequence[str] | None = None,
    timeout: float = 300.0,
    seed: int = 0,
    **settings: Any,
) -> OperatorReport:
    """Judge one operator of anybody's library.

    Parameters
    ----------
    operator : str
        ``conv2d``, ``batch_norm``, ``linear``, ``conv_bias_relu``, ``repvgg_block``, or one of
        them with ``-backward``.
    port : callable, "module:callable", npz file or mapping
        Called as ``port(*arrays, **settings)`` with NumPy arrays (torch tensors, if it fails with a
        type error and torch is loaded); a file or mapping holds arrays, settings and outputs by name.
    arrays : arrays, optional
        The operator's, in its order. Left out, the port is asked on inputs that separate bugs.
    precision : {"auto", "fp32", "tf32", "bf16", "fp16", "fp16-acc16"}
        What the port is held to. "auto" never excuses float32 for computing like less.
    shapes : mapping, optional
        Shapes of made inputs, ``{"x": (8, 64, 56, 56), "weight": (64, 64, 3, 3)}``.
    outputs : sequence of str, optional
        Those to be judged, if the port does not give all.
    settings
        Keyword arguments of the operator. With made inputs those left out vary.

    Returns
    -------
    OperatorReport
        `.verdict` is "agree", "disagree" or "cannot-judge"; `.raise_if_bad()` makes it a test.

    Raises
    ------
    ReportedError
        If there is no such operator, setting or precision, or if arrays do not fit together.
    """
    chosen = operator_called(operator)
    if precision not in ("auto", *PRECISIONS):
        wanted = ", ".join(("auto", *PRECISIONS))
        raise ReportedError("there is no such precision", got=repr(precision), wanted=wanted)
    complete(chosen, settings)
    given = _given(chosen, arrays)
    try:
        asked, name = _asked(chosen, port, given, settings, shapes or {}, precision, timeout, seed)
    except CandidateFailure as failure:
        named = getattr(port, "__name__", str(port)) if not isinstance(port, Mapping) else "dump"
        return OperatorReport(
            failure.verdict, str(failure), chosen.name, sanitize(named), precision
        )
    with single_threaded_blas():
        return _judge(chosen, asked, name, precision, outputs)


Asked = list[tuple[Call, Answer]]


def _given(operator: Operator, arrays: Sequence[Any]) -> dict[str, Array]:
    """The arrays by name; a bundle's own come beside the others."""
    if len(arrays) > len(operator.arrays):
        raise ReportedError(
            f"{operator.name}: too many arrays",
            got=len(arrays),
            wanted=", ".join(operator.arrays),
        )
    found: dict[str, Array] = {}
    for name, array in zip(operator.arrays, arrays, strict=False):
        if isinstance(array, Mapping):
            found |= {key: np.asarray(value) for key, value in array.items()}
        elif array is not None:
            found[name] = np.asarray(array)
    missing = [n for n in operator.arrays if n not in found and n != operator.bundle]
    if found and (absent := [n for n in missing if n not in operator.optional]):
        raise ReportedError(
            f"{operator.name}: arrays are missing",
            got=", ".join(found),
            wanted=", ".join(absent),
            advice="give all of them, or none for inputs that separate bugs",
        )
    return found


def _asked(
    operator: Operator,
    port: PortLike,
    given: dict[str, Array],
    settings: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    precision: str,
    timeout: float,
    seed: int,
) -> tuple[Asked, str]:
    """Every call and its answer; numbers beyond float16's range only for those who hold them."""
    if isinstance(port, Mapping) or (isinstance(port, str | Path) and not is_module(str(port))):
        call, answer, name = dumped(operator, port, given, settings)
        return [(call, answer)], name
    asking = _port(port, timeout)
    if given:
        call = Call(operator, given, complete(operator, settings), "")
        call.outputs()  # shapes that do not fit are the caller's fault
        own = [call, *integers_like(call, seed)]
        return list(zip(own, asking.answers(own), strict=True)), asking.name
    first = made_calls(operator, settings, shapes, extremes=False, seed=seed)
    asked = list(zip(first, asking.answers(first), strict=True))
    held = precision if precision != "auto" else _precision_of(asked)
    if not held.startswith("fp16"):
        more = made_calls(operator, settings, shapes, extremes=True, seed=seed + 1)
        asked += zip(more, asking.answers(more) if more else [], strict=True)
    return asked, asking.name


def _port(port: PortLike, timeout: float) -> Port:
    if isinstance(port, str | Path):
        return ModulePort(str(port), timeout)
    if not callable(port):
        raise ReportedError(
            "this is no port",
            got=type(port).__name__,
            wanted="a callable, module:callable, an npz file, or a mapping of arrays",
        )
    return FunctionPort(port, sanitize(getattr(port, "__name__", type(port).__name__)))


def _precision_of(asked: Asked) -> str:
    """What the arrays' types or values give away, where values are of 24 bits."""
    kinds = {answer.precision for _, answer in asked}
    if len(kinds) == 1 and (kind := kinds.pop()) is not None:
        return kind
    told = [a for c, a in asked if not c.integers and not c.label.startswith("short")] or [
        answer for _, answer in asked
    ]
    return precision_of(
        {f"{i}.{n}": array for i, answer in enumerate(told) for n, array in answer.outputs.items()}
    )


def _judge(
    operator: Operator,
    asked: Asked,
    name: str,
    precision: str,
    outputs: Sequence[str] | None,
) -> OperatorReport:
    held = precision if precision != "auto" else _precision_of(asked)
    judged = _compared(asked, PRECISIONS[held])
    notes = list(dict.fromkeys(note for _, answer in asked for note in answer.notes))
    if precision == "auto" and held == "fp16" and any(each.bad for each in judged):
        wider = _compared(asked, PRECISIONS["fp16-acc16"])
        if not any(each.bad for each in wider):
            judged, held = wider, "fp16-acc16"
            notes.append("sums are kept in float16: within the bounds of that")
    return _reported(_Case(operator, judged, name, PRECISIONS[held], outputs, notes))


def _compared(asked: Asked, precision: Precision) -> list[Judged]:
    """Integers first: what a port is on them says how it may compute the rest."""
    whole = {
        i: Judged(call, answer, precision)
        for i, (call, answer) in enumerate(asked)
        if call.integers
    }
    told = [check.exact for each in whole.values() for check in each.checks]
    told = [exact for exact in told if exact is not None]
    exact = all(told) if told else None
    return [
        whole[i] if i in whole else Judged(call, answer, precision, exact)
        for i, (call, answer) in enumerate(asked)
    ]


@dataclass(frozen=True)
class _Case:
    """A port that has answered, compared."""

    operator: Operator
    judged: list[Judged]
    name: str
    precision: Precision
    outputs: Sequence[str] | None
    notes: list[str]

    @property
    def checks(self) -> list[OutputCheck]:
        return [check for each in self.judged for check in each.checks]

    @property
    def missing(self) -> list[str]:
        """Outputs that nobody gave, of those that are wanted."""
        absent = dict.fromkeys(name for each in self.judged for name in each.missing)
        return [n for n in absent if self.outputs is None or n in self.outputs]

    @property
    def is_exact(self) -> bool | None:
        told = [check.exact for check in self.checks if check.exact is not None]
        return all(told) if told else None


def _reported(case: _Case) -> OperatorReport:
    bad = [each for each in case.judged if each.bad]
    findings = _merged([each.findings() for each in bad[:_MOST_DIAGNOSED]])
    hidden = [] if bad else _hidden(case)
    layers = _layers(case, hidden)
    wrong = bool(bad or hidden)
    first = next((layer.name for layer in layers if not layer.ok), None)
    return OperatorReport(
        verdict="disagree" if wrong else "cannot-judge" if case.missing else "agree",
        reason=_reason(case, bad, findings or hidden),
        model=case.operator.name,
        candidate=case.name,
        precision=case.precision.name,
        layers=tuple(layers),
        diagnosis=tuple(findings or hidden),
        first_bad_layer=first if wrong else None,
        notes=tuple(dict.fromkeys([*case.notes, *([] if wrong else _notes(case))])),
        calls=tuple(each.call.label or "the arrays given" for each in case.judged),
        exact=case.is_exact,
        tests=_tests(case),
        detectable=_detectable(case),
    )


def _hidden(case: _Case) -> list[Finding]:
    """Bugs within the bounds; on integers nothing can hide, short numbers hide roundings."""
    told = [each for each in case.judged if each.given and not each.missing]
    told = [each for each in told if each.call.label.startswith(("full", "running", "batch"))] or [
        each for each in told if not each.call.integers
    ]
    return _merged([each.hidden(len(told)) for each in told])


def _merged(found: list[list[Finding]]) -> list[Finding]:
    """Each bug once, those that explain most calls first; "unknown" only where nothing is named."""
    counts: dict[str, int] = {}
    first: dict[str, Finding] = {}
    for findings in found:
        for finding in findings:
            first.setdefault(finding.bug, finding)
            counts[finding.bug] = counts.get(finding.bug, 0) + 1
    named = {bug: finding for bug, finding in first.items() if bug != "unknown"}
    order = sorted(named or first, key=lambda bug: -counts[bug])
    return [first[bug] for bug in order][:5]


def _layers(case: _Case, hidden: list[Finding]) -> list[LayerReport]:
    """Every output at its worst call, or the first that is wrong."""
    worst: dict[str, OutputCheck] = {}
    for check in case.checks:
        known = worst.get(check.name)
        if known is None or (known.is_sound and _badness(check) > _badness(known)):
            worst[check.name] = check  # of those that are wrong the first: integers tell most
    spoiled = {finding.layer for finding in hidden}
    found = []
    for name, check in worst.items():
        layer = check.layer
        note = layer.note or (check.regular.says if check.regular else "")
        if not check.is_sound and not note.endswith(check.call.label):
            note = f"{note + '; ' if note else ''}{check.call.label}"
        if name in spoiled:
            note = f"within its bound, but {hidden[0].bug} shows in it"
        values = {**vars_of(layer), "note": note, "ok": check.is_sound and name not in spoiled}
        found.append(LayerReport(**values))
    return found


def vars_of(layer: LayerReport) -> dict[str, Any]:
    """Its fields."""
    return {name: getattr(layer, name) for name in layer.__dataclass_fields__}


def _badness(check: OutputCheck) -> tuple[bool, float]:
    ratio = check.layer.ratio
    return not check.is_sound, float("inf") if np.isnan(ratio) else ratio


def _reason(case: _Case, bad: list[Judged], findings: list[Finding]) -> str:
    says = findings[0].says if findings else ""
    if bad:
        check = bad[0].bad[0]
        layer = check.layer
        what = layer.note or (
            f"error {layer.max_error:.3g}, {layer.ratio:.3g} times its bound"
            if not layer.ok
            else "within its bound, but not by rounding"
        )
        where = f" ({check.call.label})" if check.call.label and not layer.note else ""
        return f"{check.name}: {what}{where}: {says}"
    if findings:
        return f"{findings[0].layer}: within its bound, but a bug shows in the errors: {says}"
    if case.missing:
        return f"not returned: {', '.join(case.missing)}; name the outputs to be judged to go on"
    used = max((check.layer.ratio for check in case.checks if not check.layer.note), default=0.0)
    exact = {True: ", sums of integers exact", False: ", sums of integers not exact", None: ""}
    tests = " and no test speaks against rounding" if _tests(case) else ""
    return (
        f"{len(case.judged)} calls are within their certified bounds (at most {used:.1%} of one is"
        f" used){exact[case.is_exact]}{tests}"
    )


def _notes(case: _Case) -> list[str]:
    ways = {check.layer.note for check in case.checks if check.layer.ok and check.layer.note}
    found = [f"beyond the bound of sums, within that of {way}" for way in sorted(ways)]
    if case.is_exact is False and not ways:
        found.append("sums of small integers are inexact: products are not simply summed")
    directions = {c.direction for c in case.checks if c.direction and not c.tests.is_passed}
    return [*found, *(f"rounding is directed: {each}" for each in sorted(directions))]


def _tests(case: _Case) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for check in case.checks:
        if check.tests.outputs:
            known = found.setdefault(check.name, {"bias": 0.0, "variance": 0.0})
            known["bias"] = max(known["bias"], check.tests.bias)
            known["variance"] = max(known["variance"], check.tests.variance)
    return found


def _detectable(case: _Case) -> dict[str, float]:
    """Relative to a channel's root mean square; where integers are exact, one unit in the last place."""
    found: dict[str, float] = {}
    exact = {c.name: c.exact for c in case.checks if c.exact is not None}
    for each in case.judged:
        for name, right in each.certified.items():
            if name not in each.given:
                continue
            if exact.get(name):
                found[name] = 2 * case.precision.u_store
                continue
            axis = channel_axis(name, right.value)
            others = tuple(a for a in range(right.value.ndim) if a != axis)
            size = np.sqrt(np.mean(right.value**2, axis=others, keepdims=True))
            relative = float(np.median(right.error / np.maximum(size, 1e-300)))
            found[name] = min(found.get(name, np.inf), relative)
    return found
