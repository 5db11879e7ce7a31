"""Logits of all pixels and nothing else: what can be said, and which bug would give exactly these.

Nothing certifies logits through a whole network, so a port that shows no more is never said to
agree. But a bug that reproduces them to rounding, where the right network does not, is named: each
way to get wrong what stands between blocks, in each place, and what a port gets wrong as a whole
(dilations, eps, colours).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.models.layers import Block
from repvgg_ref.models.network import Model
from repvgg_ref.oracle.bounds.precision import Precision
from repvgg_ref.oracle.candidates import Outputs
from repvgg_ref.oracle.graphs.hidden import seen_through
from repvgg_ref.oracle.graphs.port import GraphPort
from repvgg_ref.oracle.graphs.walk import Known
from repvgg_ref.oracle.graphs.wrong_blocks import wrong_blocks
from repvgg_ref.oracle.programs.layers import Programs
from repvgg_ref.oracle.report import EVERYWHERE, Finding, LayerReport, Report

_ROUNDING = 1e-4  # of the logits' size: no float32 port comes near, and few of 16 bits
_STRANGE = 1e-2  # what no float32 arithmetic does
_LEFT = 0.02  # of the difference, by the bug that explains it
_OTHER_EPS = 1e-3  # YOLO's and Keras's
_ASK = "give its layers, too: nothing certifies logits alone"

Alternative = tuple[Finding, Array]


def judge_dense_logits(
    model: Model, outputs: Outputs, x: Array, precision: Precision, candidate: str
) -> Report:
    """The verdict on a candidate of which the logits alone are known, for the images `x`."""
    head = model.arch.head.name
    y_hat = np.asarray(outputs.layers[head], np.float64)
    port = GraphPort(Programs(model), {}, x, precision)
    for node in model.arch.evaluated:
        y = port.forward(node, [port.known[name].y for name in node.inputs])
        port.known[node.name] = Known(y)
    right = port.known[head].y
    away = _apart(y_hat, right)
    layer = LayerReport(
        head, float("nan"), 0.0, float("nan"), ok=False, note="logits of another shape"
    )
    if np.isfinite(away):
        error = float(np.abs(y_hat - right).max())
        note = "end to end: no certified bound"
        layer = LayerReport(head, error, float("nan"), float("nan"), ok=away < _ROUNDING, note=note)
    names, notes = (model.arch.name, candidate, precision.name), outputs.notes
    if away >= _ROUNDING:
        for found, y in _alternatives(port):
            left = _apart(y_hat, y)
            if left < _ROUNDING and left < _LEFT * away:
                why = f"{found.says}: the logits are reproduced"
                return Report(
                    "disagree", why, *names, (layer,), (found,), _first(port, found), notes=notes
                )
    said = f"the logits differ by {away:.2g} of their size" if np.isfinite(away) else layer.note
    strange = away > _STRANGE and precision.name == "fp32"
    if strange or not np.isfinite(away):
        unknown = Finding("unknown", None, None, 0.0, 0.0, "no known bug gives these logits", _ASK)
        return Report("disagree", said, *names, (layer,), (unknown,), None, notes=notes)
    return Report("cannot-judge", f"{said}: {_ASK}", *names, (layer,), notes=notes)


def _apart(y_hat: Array, y: Array) -> float:
    """Root mean square of the difference over that of `y`; infinite where shapes differ."""
    if y_hat.shape != y.shape or not np.isfinite(y_hat).all():
        return float("inf")
    size = float(np.sqrt((y**2).mean()))
    return float(np.sqrt(((y_hat - y) ** 2).mean())) / max(size, 1e-300)


def _first(port: GraphPort, found: Finding) -> str:
    """The first layer that can have it."""
    if found.layer not in (None, EVERYWHERE):
        return str(found.layer)
    return port.model.arch.blocks[0].name


def _alternatives(port: GraphPort) -> Iterator[Alternative]:
    """Logits with a bug, the quickest first."""
    places = [n for n in reversed(port.model.arch.evaluated) if not isinstance(n.op, Block)]
    for mutant, y in seen_through(port, places, port.model.arch.head):
        bug, estimate = mutant.bug, mutant.variant.parameter
        yield Finding(bug.name, mutant.layer, estimate, 1.0, 1.0, mutant.says, bug.advice), y
    yield from ((_whole(*said), y) for said, y in _networks(port))
    yield from wrong_blocks(port)


def _whole(bug: str, says: str, advice: str) -> Finding:
    return Finding(bug, EVERYWHERE, None, 1.0, 1.0, says, advice)


def _networks(port: GraphPort) -> Iterator[tuple[tuple[str, str, str], Array]]:
    """Logits of networks that are wrong as a whole."""
    model, x = port.model, np.asarray(port.x, np.float64)
    wide = replace(model, params={n: np.asarray(a, np.float64) for n, a in model.params.items()})

    def logits(other: Model, images: Array) -> Array:
        return np.asarray(other.forward(images, backend="reference"), np.float64)

    if x.shape[1] == 3:
        advice = "the network was trained on RGB"
        said = "input-bgr", "the channels come as B, G, R", advice
        yield said, logits(wide, x[:, ::-1])
    if model.form == "train" and model.eps != _OTHER_EPS:
        said = "eps-value", f"batch norm adds eps = {_OTHER_EPS:g}", "no checkpoint holds it"
        yield said, logits(replace(wide, eps=_OTHER_EPS), x)
