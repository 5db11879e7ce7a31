# mypy: allow-subclassing-any, allow-untyped-calls, disable-error-code="no-any-return"
"""Wrong ports of a training step, in torch's own terms: what the oracle should say of each.

`Wrong.bugs` are the names it may give (none: an unknown bug), `Wrong.first` how the name of the
first wrong array starts, `Wrong.values` the numbers that should be estimated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.peers.torch_training import (
    BUGS,
    Port,
    _bn,
    _detached,
    _norm_with,
    _optimizer,
    _set,
    _sgd,
)
from tests.studies.peers.training_plants import (
    Plant,
    _adam,
    _backward,
    _before_step,
    _chopped,
    _decay_times,
    _decaying,
    _dropped,
    _eps_outside,
    _first_image,
    _forget,
    _frozen_norms,
    _ghost,
    _gradients,
    _half_mean_term,
    _half_velocity,
    _half_weights,
    _is_gamma,
    _kernels,
    _leaking,
    _noisy,
    _one_tap,
    _only,
    _padded,
    _rates,
    _scaled_block,
    _smoothing,
    _then,
    _weighed,
)


@dataclass(frozen=True)
class Wrong:
    """A wrong port and what should be said of it."""

    plant: Plant
    first: tuple[str, ...]
    bugs: tuple[frozenset[str], ...] = ()
    values: Mapping[str, float] = field(default_factory=dict)


def _named(plant: Plant, first: str, *names: str, **values: float) -> Wrong:
    """One bug, which may have several names; its value under ``value``."""
    found = {names[0]: values["value"]} if "value" in values else {}
    return Wrong(plant, tuple(first.split()), (frozenset(names),), found)


def _both(*each: Wrong) -> Wrong:
    """Two bugs at once: the earlier one is first."""

    def plant(port: Port) -> None:
        for wrong in each:
            wrong.plant(port)

    values = {name: value for wrong in each for name, value in wrong.values.items()}
    return Wrong(plant, each[0].first, tuple(bugs for wrong in each for bugs in wrong.bugs), values)


_FIRST = {  # how the first wrong name of each bug of `tests.peers.torch_training` starts
    **dict.fromkeys(("unbiased variance", "eps 1e-3"), "batch_"),
    "evaluation mode": "batch_ stat/",
    **dict.fromkeys(("momentum reversed", "momentum 0.01", "biased running_var"), "stat/"),
    **dict.fromkeys(("loss summed", "no smoothing", "softmax twice"), "loss"),
    **dict.fromkeys(
        ("decay everywhere", "no decay", "decoupled decay", "nesterov", "no momentum", "dampening",
         "lr in the velocity", "no zero_grad", "constant lr", "clipped"),
        "after/",
    ),
}  # fmt: skip

LIBRARY = {
    name: _named(plant, _FIRST.get(name, "grad/"), bug) for name, (bug, plant) in BUGS.items()
}

M, D, R, S = "momentum-value", "weight-decay-factor", "learning-rate-factor", "label-smoothing"
RM, V = "running-momentum-value", "learning-rate-schedule"

NUMBERS = {
    **{f"momentum {m}": _named(_optimizer(momentum=m), "after/", M, value=m)
       for m in (0.89, 0.899, 0.85, 0.95, 0.3)},
    **{f"decay x {f}": _named(_decay_times(f), "after/", D, value=f)
       for f in (1.1, 0.9, 1.01, 1.5, 3.0)},
    **{f"rates x {f}": _named(_rates(f), "after/", R, value=f)
       for f in (1.03, 0.97, 1.3, 1.001, 0.5)},
    **{f"rates fall by {f}": _named(_rates(1, f), "after/", V, value=f) for f in (0.9, 1.02)},
    **{f"eps {e}": _named(_bn(eps=e), "batch_", "bn-eps", value=e)
       for e in (3e-3, 2e-5, 5e-4, 1.1e-5, 0.02)},
    **{f"running momentum {m}": _named(_bn(momentum=m), "stat/", RM, value=m)
       for m in (0.11, 0.12, 0.3, 0.0999)},
    **{f"smoothing {s}": _named(_smoothing(s), "loss", S, value=s)
       for s in (0.12, 0.08, 0.17, 0.1001)},
    **{f"loss x {f}": _named(_weighed(f), "loss", "loss-scaled", value=f) for f in (1.01, 3.0)},
    **{f"gradients x {f}": _named(_backward(f), "grad/", "gradients-scaled", value=f)
       for f in (1024.0, 0.98, 1.0001)},
    **{f"dampening {t}": _named(_optimizer(dampening=t), "after/", "momentum-dampened", value=t)
       for t in (0.1, 0.3)},
    "decay of gamma x 0.5": _named(
        _decaying(lambda n, r: 0.5 * r.weight_decay if _is_gamma(n) else _kernels(n, r)),
        "after/", "weight-decay-on-batch-norm", value=0.5,
    ),
    "biases x 1.1": _named(
        _decaying(_kernels, lambda n: 1.1 if n.endswith("bias") else 1.0),
        "after/", "learning-rate-of-biases", value=1.1,
    ),
}  # fmt: skip

STEM, INNER = "stage0.rbr_dense.conv.weight", "stage1.1.rbr_dense.conv.weight"
UNKNOWN = {
    "a kernel's gradient x 1.00001": Wrong(
        _gradients(_only(INNER, lambda g: g * (1 + 1e-5))), (f"grad/{INNER}",)
    ),
    "a kernel's gradient x 1.001": Wrong(
        _gradients(_only(INNER, lambda g: g * 1.001)), (f"grad/{INNER}",)
    ),
    "one tap's gradient": Wrong(_gradients(_only(INNER, _one_tap)), (f"grad/{INNER}",)),
    "noise on a gradient": Wrong(_gradients(_only(STEM, _noisy(1e-4))), (f"grad/{STEM}",)),
    "half a mean term": Wrong(_norm_with(_half_mean_term), ("grad/",)),
    "gradients in bfloat16": Wrong(_gradients(lambda n, g: g.bfloat16().float()), ("grad/",)),
    "gradients clamped": Wrong(_before_step(lambda n, g: g.clamp(-0.1, 0.1)), ("after/",)),
    "norms not trained": Wrong(_before_step(_frozen_norms), ("after/",)),
    "one gradient lost": Wrong(_before_step(_only(INNER, lambda g: 0 * g)), (f"after/{INNER}",)),
    "Adam": Wrong(_set(optimizer=_adam), ("after/",)),
    "velocities in float16": Wrong(_then(_half_velocity), ("after/",)),
    "weights in float16": Wrong(_then(_half_weights), ("after/",)),
    "velocity forgotten": Wrong(_then(_forget), ("after/",)),
    "reflected border": Wrong(_padded("reflect"), ("batch_mean/stage0.rbr_dense",)),
    "convolutions of bfloat16": Wrong(_chopped, ("batch_mean/stage0",)),
    "norms image by image": Wrong(_norm_with(_ghost), ("batch_",)),
    "eps outside the root": Wrong(_norm_with(_eps_outside), ("batch_",)),
    "a ReLU that leaks a little": Wrong(_leaking, ("grad/",)),
    "dropout": Wrong(_dropped, ("logits",)),
    "one block a little too large": Wrong(_scaled_block, ("batch_mean/stage1.1", "batch_")),
    "the first image's loss": Wrong(_set(loss=_first_image), ("loss",)),
}

PAIRS = {
    "momentum and decay": _named(
        _decaying(lambda n, r: 1.1 * _kernels(n, r)), "after/", D, value=1.1
    ),
    "eps and rates": _both(NUMBERS["eps 0.003"], NUMBERS["rates x 1.03"]),
    "smoothing and momentum": _both(NUMBERS["smoothing 0.12"], NUMBERS["momentum 0.85"]),
    "eps and running momentum": _both(NUMBERS["eps 0.0005"], NUMBERS["running momentum 0.12"]),
    "gamma and beta swapped, decay": _both(
        LIBRARY["gamma and beta swapped"], NUMBERS["decay x 1.5"]
    ),
    "identity detached, momentum": _both(LIBRARY["identity detached"], NUMBERS["momentum 0.85"]),
    "biased variance, rates": _both(LIBRARY["biased running_var"], NUMBERS["rates x 1.03"]),
    "running momentum, nesterov": _both(
        NUMBERS["running momentum 0.12"], LIBRARY["nesterov"]
    ),
    "no mean term, decay everywhere": _both(
        LIBRARY["no mean term"], LIBRARY["decay everywhere"]
    ),
    "1x1 detached, no smoothing": _both(LIBRARY["no smoothing"], LIBRARY["1x1 detached"]),
    "loss and running momentum": _both(NUMBERS["loss x 1.01"], NUMBERS["running momentum 0.3"]),
}  # fmt: skip


def _momentum_and_decay(port: Port) -> None:
    def optimizer(network: Any, recipe: Any) -> Any:
        return _sgd(network, recipe, momentum=0.89, weight_decay=1.1 * recipe.weight_decay)

    port.optimizer = optimizer


PAIRS["momentum and decay"] = Wrong(
    _momentum_and_decay, ("after/",), (frozenset({M}), frozenset({D})), {M: 0.89, D: 1.1}
)


def _one_layer(branch: str, layer: str) -> Plant:
    return _detached(branch, only=layer)


LAYERS = {
    "identity detached in stage1.1": _named(
        _one_layer("rbr_identity", "stage1.1"), "grad/stage1.0", "identity-gradient-missing"
    ),
    "1x1 detached in stage2.1": _named(
        _one_layer("rbr_1x1", "stage2.1"), "grad/stage2.0", "branch-1x1-gradient-missing"
    ),
}

WRONG: dict[str, Wrong] = {**LIBRARY, **NUMBERS, **UNKNOWN, **PAIRS, **LAYERS}
assert len(WRONG) >= 60
