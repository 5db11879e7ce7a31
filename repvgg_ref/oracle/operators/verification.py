"""The front of judging operators: is this kernel right, which output is wrong, which bug is it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

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
from repvgg_ref.oracle.operators.judge import Judged
from repvgg_ref.oracle.operators.operator import Answer, Call, Operator, complete
from repvgg_ref.oracle.operators.ports import FunctionPort, ModulePort, Port, dumped
from repvgg_ref.oracle.operators.reporting import Case, OperatorReport, reported
from weights_io import sanitize

PortLike = Callable[..., Any] | str | Path | Mapping[str, Array]


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
        type error and torch is loaded). Files and mappings hold arrays, settings, outputs by name.
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
    return reported(Case(operator, judged, name, PRECISIONS[held], outputs, notes))


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
