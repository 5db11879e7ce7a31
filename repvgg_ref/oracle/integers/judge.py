"""A dump of numbers against an integer network, layer by layer and bit for bit.

Every layer is computed from the candidate's *own* input of it, so an error shows where it is made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.files.wrappers import listed
from repvgg_ref.integer.layers import IntegerLayer
from repvgg_ref.integer.network import IntegerNetwork
from repvgg_ref.integer.schemes import ANY, SCHEMES
from repvgg_ref.oracle.integers.explain import FEW, Asked, explained
from repvgg_ref.oracle.integers.held import INPUT, as_held, in_nchw
from repvgg_ref.oracle.integers.means import other_mean
from repvgg_ref.oracle.integers.program import (
    IntegerProgram,
    Sheet,
    as_images,
    program_of,
)
from repvgg_ref.oracle.integers.report import PRECISION, IntegerLayerReport, IntegerReport
from repvgg_ref.oracle.report import EVERYWHERE, Finding

Progress = Callable[[str, int, int], None]


def judge_numbers(
    network: IntegerNetwork,
    numbers: Mapping[str, Array],
    *,
    reference: str,
    candidate: str,
    notes: Sequence[str] = (),
    progress: Progress | None = None,
) -> IntegerReport:
    """Judge layer outputs; `numbers` holds "input" and layers by name, in the activations' type.

    A layer whose input is not in the dump is computed from the reference's numbers of it, and said
    to be. One whose output is not in it is judged by the next that is; without a next, it cannot be
    judged, and neither can the port.
    """
    numbers, moved = in_nchw(network, numbers)
    numbers, said = as_held(network, numbers)
    notes = (*notes, *moved, *said)
    if (problem := _unusable(network, numbers)) is not None:
        return _cannot(reference, candidate, problem)
    is_whole = all(layer.name in numbers for layer in network.layers)
    # What is not in the dump is computed, and for that a scheme is needed.
    if network.rounding == ANY and not is_whole:
        asked = [network.rounded(scheme) for scheme in SCHEMES]
    else:
        asked = [network]
    reports = (
        _judged(each, numbers, _Walk(notes=list(notes)), reference, candidate, progress)
        for each in asked
    )
    return min(reports, key=lambda report: sum(not row.ok for row in report.layers))


@dataclass
class _Walk:
    """What was seen on the way: rows, what explains them, and layers that nothing judged."""

    notes: list[str]
    rows: list[IntegerLayerReport] = field(default_factory=list)
    kept: dict[str, Asked] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    flat: list[str] = field(default_factory=list)


def _judged(
    network: IntegerNetwork,
    numbers: Mapping[str, Array],
    walk: _Walk,
    reference: str,
    candidate: str,
    progress: Progress | None,
) -> IntegerReport:
    """Judge by the network's own scheme, from the input to the last layer."""
    x, before = numbers[INPUT], INPUT
    for place, layer in enumerate(network.layers):
        x, before = _step(network, layer, x, before, numbers.get(layer.name), walk), layer.name
        if progress is not None:
            progress(layer.name, place + 1, len(network.layers))
    if not walk.rows:
        return _cannot(reference, candidate, "the dump holds no layer of the network")
    if walk.flat:
        flat = listed(walk.flat)
        walk.notes.append(f"hardly tested, since each channel gives one number everywhere: {flat}")
    report = _concluded(network, walk.rows, walk.kept, reference, candidate, walk.notes)
    if walk.missing and report.verdict == "agree":
        unjudged = f"{listed(walk.missing)} cannot be judged: not in the dump"
        reason = f"{len(walk.rows)} layers agree, but {unjudged}"
        return replace(report, verdict="cannot-judge", reason=reason)
    return report


def _step(
    network: IntegerNetwork,
    layer: IntegerLayer,
    x: Array,
    before: str,
    y_hat: Array | None,
    walk: _Walk,
) -> Array:
    """Judge one layer; its output for the next one: the candidate's, or else the reference's."""
    if y_hat is None:
        walk.missing.append(layer.name)
        walk.notes.append(f"{layer.name} is not in the dump: computed from {before}")
        return _own(layer, network, x)
    row, asked = _compared(layer, network.rounding, x, y_hat)
    walk.rows.append(row)
    if row.ok:
        walk.missing.clear()
    if asked is None:
        return _own(layer, network, x)
    walk.kept[layer.name] = asked
    if layer.kind == "conv" and _is_flat(asked.y_hat):
        walk.flat.append(layer.name)
    if not np.isfinite(row.max_error):
        return _own(layer, network, x)
    return y_hat if layer.kind == "conv" else y_hat.reshape(len(y_hat), -1)


def _unusable(network: IntegerNetwork, numbers: Mapping[str, Array]) -> str | None:
    """Why nothing can be computed from the dump's input."""
    if INPUT not in numbers:
        return "the dump has no 'input', so nothing can be computed"
    x, first = numbers[INPUT], network.layers[0]
    if x.dtype != first.input.dtype:
        return f"the dump's input is of type {x.dtype}, the network reads {first.input.dtype}"
    if x.ndim != 4 or x.shape[1] != network.in_channels or 0 in x.shape:
        return (
            f"the dump's input has shape {x.shape}, the network reads "
            f"(N, {network.in_channels}, H, W), at least one image"
        )
    if _is_flat(x):
        return "each channel of the dump's input is one number everywhere: few bugs would show"
    return None


def _is_flat(x: Array) -> bool:
    return bool((x == x[:1, :, :1, :1]).all())


def _own(layer: IntegerLayer, network: IntegerNetwork, x: Array) -> Array:
    rounding = "float-even" if network.rounding == ANY else network.rounding
    return layer.forward(x, rounding)


def _compared(
    layer: IntegerLayer, rounding: str, x: Array, y_hat: Array
) -> tuple[IntegerLayerReport, Asked | None]:
    """The layer's row; and what is needed to explain it, if it can be compared."""
    if (problem := _unfit(layer, x, y_hat)) is not None:
        return IntegerLayerReport.incomparable(layer.name, problem), None
    x, y_hat = as_images(x), as_images(y_hat)
    asked_first = "float-even" if rounding == ANY else rounding
    program = program_of(layer, asked_first, x.shape[1:])
    sheet = Sheet(x)
    y = sheet.numbers(program)
    asked = Asked(layer.name, program, x, y_hat)
    if y.shape != y_hat.shape:
        note = f"shape {y_hat.shape}, not {y.shape}"
        return IntegerLayerReport.incomparable(layer.name, note), asked
    schemes = tuple(
        name
        for name in SCHEMES
        if np.array_equal(sheet.numbers(program.with_rounding(name)), y_hat)
        or other_mean(layer, x, y_hat, name) is not None
    )
    return _row(
        layer.name, y, y_hat, schemes, ok=(rounding == ANY and bool(schemes)) or rounding in schemes
    ), asked


def _row(
    name: str, y: Array, y_hat: Array, schemes: tuple[str, ...], *, ok: bool
) -> IntegerLayerReport:
    apart = np.abs(y.astype(np.int64) - y_hat.astype(np.int64))
    largest = int(apart.max(initial=0))
    return IntegerLayerReport(
        name,
        0.0 if ok else float(largest),
        0.0,
        0.0 if ok else float("inf"),
        ok,
        mismatches=0 if ok else int((apart > 0).sum()),
        numbers=apart.size,
        max_lsb=0 if ok else largest,
        schemes=schemes,
    )


def _unfit(layer: IntegerLayer, x: Array, y_hat: Array) -> str | None:
    """Why numbers cannot be a layer's, in words."""
    for what, array, dtype in (
        ("input", x, layer.input.dtype),
        ("output", y_hat, layer.output.dtype),
    ):
        if array.dtype != dtype:
            return f"{what} of type {array.dtype}, not {dtype}"
    axes = (2, 4) if layer.kind == "linear" else (4,)
    if x.ndim not in axes:
        return f"input of shape {x.shape}"
    channels = layer.in_channels
    if channels is not None and x.shape[1] != channels:
        return f"input of {x.shape[1]} channels, not {channels}"
    if y_hat.ndim not in (2, 4) or len(y_hat) != len(x):
        return f"shape {y_hat.shape}"
    return None


def _concluded(
    network: IntegerNetwork,
    rows: list[IntegerLayerReport],
    kept: Mapping[str, Asked],
    reference: str,
    candidate: str,
    notes: list[str],
) -> IntegerReport:
    """The verdict: by the network's scheme, or by the one that explains most."""
    everywhere = tuple(s for s in SCHEMES if all(s in row.schemes for row in rows))
    best = network.rounding
    if best == ANY:
        best = everywhere[0] if everywhere else _commonest(rows)
        rows = [_judged_by(best, row, kept.get(row.name)) for row in rows]
    bad = [row for row in rows if not row.ok]
    findings = _findings(best, bad, rows, everywhere, kept, notes)
    if bad:
        reason = (
            f"{bad[0].name} gives other numbers than its input must"
            if bad[0].mismatches
            else f"{bad[0].name}: {bad[0].note}"
        )
    else:
        reason = f"all numbers of {len(rows)} layers are those of {_named(everywhere, best)}"
    notes += _averaging(rows, kept, best)
    if not bad and len(everywhere) > 1:
        notes.append(
            f"these numbers cannot tell {', '.join(everywhere)} apart: `golden` makes some that can"
        )
    return IntegerReport(
        "disagree" if bad else "agree",
        reason,
        reference,
        candidate,
        PRECISION,
        tuple(rows),
        tuple(findings),
        bad[0].name if bad else None,
        tuple(notes),
        schemes=everywhere,
    )


def _averaging(
    rows: Sequence[IntegerLayerReport], kept: Mapping[str, Asked], scheme: str
) -> Iterator[str]:
    """How right layers average that do it in another way than their own."""
    for row in rows:
        asked = kept.get(row.name)
        if asked is None or not row.ok or scheme not in row.schemes:
            continue
        own = Sheet(asked.x).numbers(asked.program.with_rounding(scheme))
        if not np.array_equal(own, asked.y_hat):
            how = other_mean(asked.program.layer, asked.x, asked.y_hat, scheme)
            yield f"{row.name} {how}"


def _named(everywhere: tuple[str, ...], best: str) -> str:
    return best if best in everywhere else everywhere[0]


def _commonest(rows: Sequence[IntegerLayerReport]) -> str:
    """The scheme that explains most layers; of equals the first of the table."""
    counts = Counter(scheme for row in rows for scheme in row.schemes)
    return max(SCHEMES, key=lambda name: counts[name])


def _judged_by(scheme: str, row: IntegerLayerReport, asked: Asked | None) -> IntegerLayerReport:
    """A row of a network that leaves its rounding open, judged by `scheme`."""
    if asked is None or scheme in row.schemes:
        return row
    asked.program = asked.program.with_rounding(scheme)
    y = Sheet(asked.x).numbers(asked.program)
    if y.shape != asked.y_hat.shape:
        return row
    return _row(row.name, y, asked.y_hat, row.schemes, ok=False)


def _findings(
    best: str,
    bad: Sequence[IntegerLayerReport],
    rows: Sequence[IntegerLayerReport],
    everywhere: tuple[str, ...],
    kept: Mapping[str, Asked],
    notes: list[str],
) -> list[Finding]:
    if bad and everywhere:
        ties = all(_only_ties(kept[row.name]) for row in bad)
        count = sum(row.mismatches for row in bad)
        return [_other_scheme(best, everywhere, bad, ties=ties, is_shown=count > FEW)]
    found: list[Finding] = []
    for row in bad:
        if (asked := kept.get(row.name)) is None:
            continue
        if row.mismatches and _only_ties(asked):
            notes.append(f"{row.name} differs at exact halves alone")
        found += explained(asked)
    return _gathered(found, bad, rows)


def _other_scheme(
    best: str,
    everywhere: tuple[str, ...],
    bad: Sequence[IntegerLayerReport],
    *,
    ties: bool,
    is_shown: bool,
) -> Finding:
    """Another scheme explains all numbers; that a wrong one or two look so is no evidence."""
    if not is_shown:
        count = sum(row.mismatches for row in bad)
        where = ", at exact halves alone" if ties else ""
        return Finding(
            "unknown",
            bad[0].name,
            None,
            0.0,
            0.0,
            says=f"{count} of {sum(row.numbers for row in bad)} numbers "
            f"{'differs' if count == 1 else 'differ'}{where}: consistent with "
            f"{listed([*everywhere])}, but so few may fit by chance",
            advice="run the port on the vectors that `golden` writes: they tell schemes apart",
            equivalents=("other-rounding", *everywhere),
        )
    where = ", which differs from it at exact halves alone" if ties else ""
    return Finding(
        "other-rounding",
        EVERYWHERE,
        None,
        1.0 / len(everywhere),
        1.0,
        says=f"accumulators are requantised as {everywhere[0]}, not as {best}{where}",
        advice=f"round {best}, or say that the network's rounding is {everywhere[0]}",
        equivalents=everywhere[1:],
    )


def _gathered(
    found: list[Finding], bad: Sequence[IntegerLayerReport], rows: Sequence[IntegerLayerReport]
) -> list[Finding]:
    """One finding for a cause that stands in every layer."""
    if len(bad) < 2 or len(bad) < len(rows):
        return found
    names = {finding.bug for finding in found}
    if len(names) != 1 or names == {"unknown"} or len(found) != len(bad):
        return found
    return [replace(found[0], layer=EVERYWHERE)]


def _only_ties(asked: Asked) -> bool:
    """Whether all that differs are sums that M brings onto an exact half."""
    program: IntegerProgram = asked.program
    sheet = Sheet(asked.x)
    y = sheet.numbers(program)
    if y.shape != asked.y_hat.shape:
        return False
    sums = sheet.sums(program.sums)
    scale = program.finish.scaling.across(sums.ndim)
    half = np.int64(1) << (scale.right_shift - 1)
    is_half = ((sums * scale.multiplier) & (2 * half - 1)) == half
    wrong = y != asked.y_hat
    return bool(wrong.any() and (is_half | ~wrong).all())


def _cannot(reference: str, candidate: str, reason: str) -> IntegerReport:
    return IntegerReport("cannot-judge", reason, reference, candidate, PRECISION)
