"""Reports made by hand: every verdict, every state of a layer, and hostile names everywhere."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.models.architectures import architecture
from repvgg_ref.oracle.report import Finding, LayerReport, Report

NAN, INFINITY = float("nan"), float("inf")
MARKER = "pwned"
HOSTILE = (
    f"<script>document.title='{MARKER}'</script>"
    f'"><img src=x onerror="document.title=\'{MARKER}\'">'
    "</style></title>]]>--><svg onload=alert(1)>{{ 7 * 7 }}{% raw %}"
    "\x00\x1b[31m\u202e\x85\ud800\ufffe"
)


def layer(name: str, ratio: float = 0.1, *, ok: bool = True, note: str = "") -> LayerReport:
    bound = 1e-5
    return LayerReport(name, ratio * bound, bound, ratio, ok, 2 * ratio, 1e-7, note)


def agreeing(model: str = "RepVGG-A0") -> Report:
    layers = tuple(
        layer(name, 0.01 * (1 + i % 9)) for i, name in enumerate(architecture(model).layer_names)
    )
    return Report("agree", "all layers are within", model, "port.onnx", "fp32", layers)


def residual() -> Array:
    """Waves in every channel, a bad border in channel 5, NaN in channel 7."""
    rng = np.random.default_rng(0)
    r = rng.normal(size=(2, 12, 20, 24)) * 1e-3
    r[:, ::2] += 0.03 * np.sin(np.linspace(0, 6, 24))
    r[:, 5, 0] += 0.08
    r[1, 7, 10:13, 4:9] = NAN
    r[0, 7, 2, 2] = INFINITY
    return r


def disagreeing() -> Report:
    """Every state a layer can be in."""
    good = agreeing()
    bad = {
        "stage2.1": layer("stage2.1", 42.0, ok=False),
        "stage2.2": layer("stage2.2", 3.6e36, ok=False),
        "stage3.1": layer("stage3.1", 3.0, note="winograd4 arithmetic: within that bound"),
        "stage3.3": layer("stage3.3", 0.03, ok=False, note="within its bound, but eps shows"),
        "stage3.5": layer("stage3.5", NAN, ok=False, note="12 outputs are NaN or infinite"),
        "stage3.7": layer("stage3.7", INFINITY, ok=False),
        "stage3.9": layer("stage3.9", 0.0),
        "linear": replace(layer("linear", NAN, ok=False, note="shape 2x5 instead of 2x9")),
    }
    findings = (
        Finding(
            "eps-value",
            "stage2.1",
            0.0009999851315730677,
            1.0,
            0.9999999836,
            "batch norm adds eps = 0.001 where the reference adds another",
            "set eps of every batch norm to the reference's",
            7.7e-9,
            ("eps-everywhere", "eps-of-keras"),
        ),
        Finding("identity-missing", "all", None, 0.5, 0.98, "no identity", "add it"),
        Finding("unknown", "stage3.7", None, 0.0, 0.0, "57% of the outputs", "see the pattern"),
    )
    return replace(
        good,
        verdict="disagree",
        reason="stage2.1: error 0.00042, 42 times its bound",
        layers=tuple(bad.get(known.name, known) for known in good.layers),
        diagnosis=findings,
        first_bad_layer="stage2.1",
        notes=("matched by position",),
        residual=residual(),
    )


def unjudged() -> Report:
    reason = "port:run: the candidate failed (got ImportError)"
    return Report("cannot-judge", reason, "RepVGG-A0", "port:run", "auto")


def hostile() -> Report:
    """Nothing in it but what a hostile file could make of it."""
    finding = Finding(HOSTILE, HOSTILE, 1.0, 1.0, 1.0, HOSTILE, HOSTILE, 0.1, (HOSTILE,))
    return Report(
        "disagree",
        HOSTILE,
        HOSTILE,
        HOSTILE,
        HOSTILE,
        (layer(HOSTILE, 3.0, ok=False, note=HOSTILE),),
        (finding,),
        HOSTILE,
        (HOSTILE,),
        residual(),
    )


REPORTS = {
    "agree": agreeing(),
    "disagree": disagreeing(),
    "cannot-judge": unjudged(),
    "hostile": hostile(),
}
