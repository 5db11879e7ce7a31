"""The order of cause: what of a training step follows from what.

Statistics come before the logits and the logits before the loss; the forward pass from the stem on
comes before the backward pass from the head on, and that before the weights after the steps. What
comes first among the wrong numbers is where a port goes wrong; the rest may only follow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def phase(name: str) -> str:
    """Which part of training gives it: forward, backward, after, statistics (running, after)."""
    kind, _, array = name.partition("/")
    if kind == "grad":
        return "backward"
    if kind == "after":
        return "statistics" if _is_running(array) else "after"
    return "forward"


def in_order_of_cause(names: Iterable[str]) -> list[str]:
    """Sort the names of a step's numbers, which `run` gives in order within their kinds."""
    given = list(names)
    norms = dict.fromkeys(name.partition("/")[2] for name in given if name.startswith("batch_"))
    place = {norm: at for at, norm in enumerate(norms)}
    return sorted(given, key=lambda name: _key(name, place))


def _key(name: str, place: Mapping[str, int]) -> tuple[int, int]:
    kind, _, array = name.partition("/")
    if kind in ("batch_mean", "batch_var"):
        return 0, place[array]
    if kind == "after":
        return 5 + int(_is_running(array)), 0
    return _LATER.get(kind, len(_LATER)), 0


# Nothing of the first step follows from its running statistics; `losses` are of all steps.
_LATER = {"logits": 1, "loss": 2, "stat": 3, "grad": 4, "losses": 7}


def _is_running(array: str) -> bool:
    return array.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked")
