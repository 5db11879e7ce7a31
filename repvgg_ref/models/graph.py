"""One description of a network, and one walk over it, forward and backward.

A network is a list of nodes in an order in which they can be computed. Evaluation, a training step,
the search for where a training diverged, agreement of two forms, cost and export all go along it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.catalogue import fused_conv, is_fusible
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.errors import NotFusibleError
from repvgg_ref.models.layers import Block, Extent, GlobalAvgPool, Linear, Operation, Pass

INPUT = "input"
OUTPUT = "output"
_SOME_SIZE = (224, 224)  # channels do not hang on it
QUIET = ("pool", "flatten", "dropout")  # what no report lists


@dataclass(frozen=True, slots=True)
class Node:
    """One operation and where it is wired to.

    Attributes
    ----------
    inputs : tuple of str
        Names of earlier nodes, or `INPUT`.
    loss_weight : float
        Of the cross-entropy of this node's output, 0 for none.
    training_only : bool
        Whether the node exists in training only.
    keys : pairs of str
        Our leaf and what published code calls it: ``("bn", "layer1.0.bn1")``; "" is the node's own.
        Without an entry "fused" a fused convolution is called as "conv" is. "deploy" is the
        node's own in the deploy form, where it is another; `OUTPUT` names the module whose output
        the node's is, where that holds none of its arrays.
    """

    name: str
    op: Operation
    inputs: tuple[str, ...]
    loss_weight: float = 0.0
    training_only: bool = False
    keys: tuple[tuple[str, str], ...] = ()


class Network:
    """What follows from a network's nodes. Its subclasses are `Graph` and `Architecture`."""

    if TYPE_CHECKING:  # a property here would stand in the way of a dataclass's fields

        @property
        def name(self) -> str:
            """What it is called."""

        @property
        def nodes(self) -> tuple[Node, ...]:
            """All operations, in an order in which they can be computed."""

        @property
        def blocks(self) -> tuple[BlockSpec, ...]:
            """The blocks that evaluation goes through, in order."""

        @property
        def num_classes(self) -> int:
            """How many logits there are."""

        @property
        def aux_heads(self) -> tuple[Any, ...]:
            """Heads that exist in training only."""

    @property
    def evaluated(self) -> tuple[Node, ...]:
        """The nodes that are there outside training too."""
        return tuple(node for node in self.nodes if not node.training_only)

    @property
    def head(self) -> Node:
        """The node whose output are the logits."""
        return self.evaluated[-1]

    @property
    def in_channels(self) -> int:
        """Channels of the input image."""
        return self.blocks[0].in_channels

    @property
    def features(self) -> int:
        """Channels that reach the last linear layer, or that a backbone gives."""
        op = self.head.op
        return op.features if isinstance(op, Linear) else self.blocks[-1].out_channels

    @property
    def channels(self) -> dict[str, int]:
        """Of the output of every node that evaluation goes through, and of `INPUT`."""
        found: dict[str, Extent] = {INPUT: (self.in_channels, *_SOME_SIZE)}
        for node in self.evaluated:
            found[node.name] = node.op.extent([found[name] for name in node.inputs])
        return {name: extent[0] for name, extent in found.items()}

    @property
    def modules(self) -> dict[str, str]:
        """Layer -> the published module that gives its output, where its node says that.

        A fused convolution gives it where no activation follows.
        """
        found: dict[str, str] = {}
        for node in self.evaluated:
            keys = dict(node.keys)
            bare = isinstance(node.op, Block) and node.op.spec.activation == "none"
            if module := keys.get(OUTPUT) or (keys.get("fused") if bare else None):
                found[node.name] = module
        return found

    @property
    def is_dense(self) -> bool:
        """Whether it says a class for every pixel."""
        return isinstance(self, Graph) and self.reduction > 0

    @property
    def layer_names(self) -> tuple[str, ...]:
        """``stage0, stage1.0, ..., linear``: the names every report uses."""
        return tuple(node.name for node in self.evaluated if node.name not in QUIET)

    @property
    def kinds(self) -> tuple[str, ...]:
        """What its blocks are called, each once."""
        return tuple(dict.fromkeys(spec.kind for spec in self.blocks))

    @property
    def is_fusible(self) -> bool:
        """Whether each of its blocks is linear up to its activation: it has a deploy form."""
        return all(is_fusible(spec) for spec in self.blocks)

    def require_fusible(self) -> None:
        """Raise `NotFusibleError` that says where and why, if it has no deploy form."""
        for spec in self.blocks:
            fused_conv(spec)

    @property
    def is_chain(self) -> bool:
        """Whether it is blocks, each fed by the one before, then the mean and a linear layer."""
        *body, pool, head = self.evaluated
        names = [INPUT, *(node.name for node in body)]
        wired = [node.inputs for node in body] == [(name,) for name in names[:-1]]
        ends = (pool.name, head.name, pool.inputs, head.inputs)
        return (
            wired
            and all(isinstance(node.op, Block) for node in body)
            and isinstance(pool.op, GlobalAvgPool)
            and isinstance(head.op, Linear)
            and not head.op.relu
            and ends == ("pool", "linear", (names[-1],), ("pool",))
        )

    def called(self, name: str) -> Network:
        """The same under another name."""
        return replace(self, name=name)  # type: ignore[type-var]

    def with_classes(self, num_classes: int) -> Network:
        """The same with another number of logits."""
        raise NotImplementedError

    def block(self, name: str) -> BlockSpec:
        """The block called `name`."""
        return next(block for block in self.blocks if block.name == name)


@dataclass(frozen=True)
class Graph(Network):
    """A network given by its nodes.

    Attributes
    ----------
    of_kind : str
        What its blocks are called together, where that is not what they are called one by one.
    refusal : str
        Why it has no deploy form, where its blocks alone do not say so; the place comes first.
    reduction : int
        Images must be so many times some number, and 1, pixels high and wide; 0: of any size. The
        network then says a class for every pixel.
    """

    name: str
    nodes: tuple[Node, ...]
    aux_heads: tuple[Any, ...] = ()
    of_kind: str = ""
    refusal: str = ""
    reduction: int = 0

    @property
    def kinds(self) -> tuple[str, ...]:
        """What its blocks are called, each once."""
        return (self.of_kind,) if self.of_kind else super().kinds

    @property
    def is_fusible(self) -> bool:
        """Whether it has a deploy form."""
        return not self.refusal and super().is_fusible

    def require_fusible(self) -> None:
        """Raise `NotFusibleError` that says where and why, if it has no deploy form."""
        if self.refusal:
            raise NotFusibleError(
                self.refusal,
                got=f"{self.kinds[0]} blocks",
                wanted="nothing but linear operations between the ends of a shortcut",
                advice="evaluate and train it as it is; fold_norms folds its batch norms",
            )
        super().require_fusible()

    @property
    def blocks(self) -> tuple[BlockSpec, ...]:
        """The blocks that evaluation goes through, in order."""
        return tuple(n.op.spec for n in self.evaluated if isinstance(n.op, Block))

    @property
    def num_classes(self) -> int:
        """How many logits there are."""
        op = self._classifier(self.head).op
        return op.spec.out_channels if isinstance(op, Block) else _linear(op).outputs

    def with_classes(self, num_classes: int) -> Graph:
        """The same with another number of logits, auxiliary ones too."""
        ends = {self._classifier(node).name for node in self.nodes if node.loss_weight}
        nodes = (_to_classes(n, num_classes) if n.name in ends else n for n in self.nodes)
        return replace(self, nodes=tuple(nodes))

    def _classifier(self, node: Node) -> Node:
        """Where the channels of logits come from: the node, or what it only resizes."""
        while not isinstance(node.op, Block | Linear):
            node = next(each for each in self.nodes if each.name == node.inputs[0])
        return node


def _linear(op: Operation) -> Linear:
    assert isinstance(op, Linear)
    return op


def _to_classes(node: Node, num_classes: int) -> Node:
    if isinstance(node.op, Block):
        return replace(node, op=Block(replace(node.op.spec, out_channels=num_classes)))
    return replace(node, op=replace(_linear(node.op), outputs=num_classes))


class Visit(NamedTuple):
    """A node that was computed: its input, its output and its cache."""

    node: Node
    inputs: list[Array]
    y: Array
    cache: Any


def walk(nodes: Iterable[Node], x: Array, at: Callable[[Node], Pass]) -> Iterator[Visit]:
    """Compute the nodes in order, each by the pass that `at` gives; x is (N, C, H, W).

    Outputs are in the layout of the passes' tables, one for all, and let go after their last use.
    """
    order = list(nodes)
    last_use = {name: place for place, node in enumerate(order) for name in node.inputs}
    alive = {INPUT: at(order[0]).ops.enter(x)}
    for place, node in enumerate(order):
        inputs = [alive[name] for name in node.inputs]
        y, cache = node.op.forward(node.name, inputs, at(node))
        for name in set(node.inputs):
            if last_use[name] == place:
                del alive[name]
        if node.name in last_use:
            alive[node.name] = y
        yield Visit(node, inputs, y, cache)


def walk_back(
    visited: list[tuple[Node, Any]], grads: Mapping[str, Array], at: Callable[[Node], Pass]
) -> Iterator[tuple[Node, Array]]:
    """Send gradients of outputs (by node) back through nodes and their caches, last first.

    `visited` is emptied on the way, so that memory is; gradients of arrays go to the passes'
    ``grads``. Yields each node and the gradient of its output, before its own backward pass.
    """
    waiting = dict(grads)
    while visited:
        node, cache = visited.pop()
        if node.name not in waiting:
            continue
        grad_y = waiting.pop(node.name)
        yield node, grad_y
        wants_x = node.inputs != (INPUT,)
        found = node.op.backward(node.name, grad_y, cache, at(node), wants_x=wants_x)
        for name, grad in zip(node.inputs, found, strict=True):
            if grad is not None and name != INPUT:
                waiting[name] = waiting[name] + grad if name in waiting else grad


def extents(network: Network, height: int, width: int) -> dict[str, Extent]:
    """Channels, height and width of every node's output, and of `INPUT`."""
    found: dict[str, Extent] = {INPUT: (network.in_channels, height, width)}
    for node in network.nodes:
        found[node.name] = node.op.extent([found[name] for name in node.inputs])
    return found
