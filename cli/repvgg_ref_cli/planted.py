"""The demo's bug: one that no accuracy shows, planted in one layer, found and named."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from repvgg_ref.models.network import Model

_LAYER = "stage2.1"
_IMAGES = 8  # verified; all test images are read


def show_verification(console: Console, train: Model, deploy: Model) -> None:
    """Verify the fused model, then a port with a bug, and print what the oracle says."""
    from repvgg_ref.data.digits import load_digits, to_input
    from repvgg_ref.oracle.render.words import LOOKS, estimate, used
    from repvgg_ref.oracle.verification import verify

    console.print("\n[bold]2. verify[/bold] every layer against a bound no right port can exceed")
    test = load_digits().test
    images = to_input(test.images)
    good = verify(train, partial(deploy.forward, layers=True), inputs=images[:_IMAGES])
    closest = max(good.layers, key=lambda layer: layer.ratio)
    console.print(
        f"   the fused model  {LOOKS[good.verdict].title.lower()}; closest to its bound is "
        f"{closest.name}, {used(closest)} of it"
    )
    port = plant(train)
    logits = port.forward(images)
    right = int((logits.argmax(1) == test.labels).sum())
    changed = float(abs(logits - deploy.forward(images)).max())
    console.print(
        f"   a planted bug    {_LAYER} divides by sqrt(var) + eps, not by sqrt(var + eps):\n"
        f"                    {right} of {len(images)} digits still read right, "
        f"logits off by {changed:.0e}"
    )
    found = verify(train, partial(port.forward, layers=True), inputs=images[:_IMAGES])
    assert found.diagnosis, "the planted bug is in the oracle's library"
    named, verdict = found.diagnosis[0], LOOKS[found.verdict].title.lower()
    console.print(
        f"   the oracle       {verdict}; first bad layer {found.first_bad_layer}; the bug\n"
        f"                    is {named.bug}, measured {estimate(named)} of it"
    )


def plant(train: Model) -> Model:
    """The fused model as a port computes it that has ``gamma / (sqrt(var) + eps)`` in one layer.

    Fusion knows ``gamma / sqrt(var + eps)`` only, so gamma makes up for the difference.
    """
    import numpy as np

    from repvgg_ref.models.network import fuse

    params = dict(train.params)
    for name in [n for n in params if n.startswith(f"{_LAYER}.") and n.endswith(".gamma")]:
        var = params[name.removesuffix("gamma") + "running_var"].astype(np.float64)
        params[name] = params[name] * np.sqrt(var + train.eps) / (np.sqrt(var) + train.eps)
    return fuse(replace(train, params=params))
