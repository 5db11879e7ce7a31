"""One training step: forward with batch statistics, loss, backward. Pure: nothing is modified.

Source: section 4.1 of arXiv 2101.03697; for RepVGGplus the official trainer's
``loss = CE(main) + 0.1 * sum CE(aux)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from repvgg_ref.arrays import Array, one_line
from repvgg_ref.blocks.run import BatchStats
from repvgg_ref.errors import ReportedError
from repvgg_ref.models.dense import IGNORED
from repvgg_ref.models.graph import Network, Node, walk, walk_back
from repvgg_ref.models.layers import Pass
from repvgg_ref.ops import Ops


class StepResult(NamedTuple):
    """Loss (mean over the batch), logits, gradients, and running statistics after the step."""

    loss: Any
    logits: Array
    grads: dict[str, Array]
    stats: dict[str, Array]

    def __repr__(self) -> str:
        """One line, without the numbers."""
        return one_line(self)


class Step(NamedTuple):
    """A `StepResult` under canonical names, and the statistics that each norm saw."""

    result: StepResult
    batch: dict[str, BatchStats]


def training_step(
    network: Network,
    params: Mapping[str, Array],
    x: Array,
    labels: Array,
    *,
    ops: Ops,
    eps: Any,
    momentum: Any,
    label_smoothing: float,
    draws: tuple[int, ...] | None = None,
    dropout: float | None = None,
) -> StepResult:
    """Compute loss and gradients of `network`; names are canonical.

    Parameters
    ----------
    x : array, shape (N, C, H, W)
    labels : int array (N,), or float array (N, num_classes); (N, H, W) of a dense network
    draws : tuple of int, optional
        Seeds what the network leaves out at random; without it nothing is.
    dropout : float, optional
        The rate of dropout nodes; default each one's own.
    """
    run = Pass(params, ops, eps, training=True, draws=draws, momentum=momentum, dropout=dropout)
    return take_step(
        network, x, labels, run, momentum=momentum, label_smoothing=label_smoothing
    ).result


def take_step(
    network: Network,
    x: Array,
    labels: Array,
    run: Pass,
    *,
    momentum: Any,
    label_smoothing: float,
    at: Callable[[Node], Pass] | None = None,
) -> Step:
    """`training_step` by `run`; nodes compute by what `at` gives for them, where it is given.

    All passes of `at` share the `stats` and `grads` of `run`.
    """
    of = at or (lambda node: run)
    visited: list[tuple[Node, Any]] = []
    losses: dict[str, Any] = {}
    starts: dict[str, Array] = {}
    logits: Array | None = None
    for node, _, y, cache in walk(network.nodes, x, of):
        visited.append((node, cache))
        if not node.loss_weight:
            continue
        ops, weight = of(node).ops, node.loss_weight
        loss, grad = _loss(ops, y, labels, label_smoothing)
        losses[node.name] = loss if weight == 1 else weight * loss
        starts[node.name] = grad if weight == 1 else weight * grad
        if node.name == network.head.name:
            logits = ops.leave(y)
    assert logits is not None, "the head has a loss"
    others = [loss for name, loss in losses.items() if name != network.head.name]
    total = losses[network.head.name] + sum(others)
    for _ in walk_back(visited, starts, of):
        pass
    after = {
        name: array
        for node in network.nodes
        for name, array in _running(node, of(node), momentum).items()
    }
    return Step(StepResult(total, logits, run.grads, after), run.stats)


def _loss(ops: Ops, y: Array, labels: Array, label_smoothing: float) -> tuple[Any, Array]:
    """The loss of logits, (N, classes) or of every pixel, and its gradient."""
    if y.ndim == 4:
        if label_smoothing:
            raise ReportedError(
                "the loss of pixels has no label smoothing", got=label_smoothing, wanted=0
            )
        loss, kept = ops.pixel_cross_entropy_forward(y, labels, ignored=IGNORED)
        return loss, ops.pixel_cross_entropy_backward(kept)
    loss, kept = ops.softmax_cross_entropy_forward(y, labels, label_smoothing=label_smoothing)
    return loss, ops.softmax_cross_entropy_backward(kept)


def _running(node: Node, run: Pass, momentum: Any) -> dict[str, Array]:
    """A node's running statistics after this step, one pure update a batch norm."""
    after: dict[str, Array] = {}
    for bn, batch in run.stats.items():
        if not bn.startswith(f"{node.name}."):
            continue
        running = run.ops.update_running_stats(
            run.params[f"{bn}.running_mean"],
            run.params[f"{bn}.running_var"],
            batch.mean,
            batch.var,
            momentum=momentum,
            count=batch.pixels,
        )
        after[f"{bn}.running_mean"], after[f"{bn}.running_var"] = running
        after[f"{bn}.num_batches_tracked"] = run.params[f"{bn}.num_batches_tracked"] + 1
    return after
