"""Sums put in another order, so that terms which are read from one tensor stand together.

In ``(conv(x) + z) + conv(x)`` no addition has two terms of one source. Sums of three and more terms
are taken apart here and put together by source; an order is kept only if convolutions go for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any, NamedTuple

from repvgg_ref.files.onnx_graph.packages import require
from repvgg_ref.files.onnx_graph.plan import Plan, planned
from repvgg_ref.files.onnx_graph.reader import LinearReader, Rule
from repvgg_ref.files.onnx_graph.view import View

_MOST_TERMS = 64


class Read(NamedTuple):
    """A graph, how it is read, and what becomes of it."""

    view: View
    reader: LinearReader
    plan: Plan


class _Tree(NamedTuple):
    """A sum: its last node, all its nodes, and its terms in groups."""

    root: int
    nodes: frozenset[int]
    groups: list[list[str]]


def read_graph(model: Any, rules: dict[str, Rule]) -> Read:
    """Read a graph and plan, with sums in the order that saves convolutions."""
    first = _read(View(model), rules)
    trees = _trees(first)
    while trees:
        nodes, made = _reordered(first.view, trees)
        then = _read(View(model, nodes), rules)
        ends = {part.output for part in then.plan.parts}
        gone = {name for i in then.plan.gone for name in then.view.nodes[i].output}
        useful = [tree for tree in trees if made[tree.root] & (ends | gone)]
        if len(useful) == len(trees):
            return then
        trees = useful
    return first


def _read(view: View, rules: dict[str, Rule]) -> Read:
    reader = LinearReader(view, rules)
    return Read(view, reader, planned(reader))


def _trees(read: Read) -> list[_Tree]:
    """Sums that another order may serve."""
    view = read.view
    sums = {i for i, node in enumerate(view.nodes) if _is_sum(view, node)}
    inner = {i for i in sums if _goes_into(view, view.nodes[i].output[0], sums)}
    found = []
    for root in sorted(sums - inner - read.plan.gone):
        nodes, terms = _terms(view, root, inner)
        if not 2 < len(terms) <= _MOST_TERMS:
            continue
        groups = _groups(read.reader, terms)
        if any(1 < len(group) < len(terms) for group in groups):
            together = {frozenset(_terms(view, i, inner)[1]) for i in nodes}
            if any(len(g) > 1 and frozenset(g) not in together for g in groups):
                found.append(_Tree(root, frozenset(nodes), groups))
    return found


def _goes_into(view: View, name: str, nodes: Collection[int]) -> bool:
    """Whether a tensor is read once, by one of `nodes`."""
    readers = view.readers[name]
    if name in view.outputs or len(readers) != 1 or readers[0] not in nodes:
        return False
    return list(view.nodes[readers[0]].input).count(name) == 1


def _is_sum(view: View, node: Any) -> bool:
    return view.operator(node) in ("Add", "Sum") and all(
        view.constant(name) is None for name in node.input
    )


def _terms(view: View, root: int, inner: Collection[int]) -> tuple[list[int], list[str]]:
    """The nodes of a sum, and what it adds, in order."""
    nodes, terms, waiting = [root], list[str](), list(reversed(view.nodes[root].input))
    while waiting:
        name = waiting.pop()
        maker = view.makers.get(name)
        if maker is None or maker not in inner:
            terms.append(name)
        else:
            nodes.append(maker)
            waiting += reversed(view.nodes[maker].input)
    return nodes, terms


def _groups(reader: LinearReader, terms: list[str]) -> list[list[str]]:
    """The terms by the source that most of them have in common, and so on with the others."""
    sources = {name: [r.source for r in reader.from_everywhere(name)] for name in terms}
    groups, left = list[list[str]](), list(terms)
    while left:
        counts = Counter(source for name in left for source in sources[name])
        source, count = counts.most_common(1)[0]
        if count < 2:
            return [*groups, *([name] for name in left)]
        groups.append([name for name in left if source in sources[name]])
        left = [name for name in left if source not in sources[name]]
    return groups


def _reordered(view: View, trees: list[_Tree]) -> tuple[list[Any], dict[int, set[str]]]:
    """The nodes with sums in another order, and the outputs of what was put together."""
    instead: dict[int, list[Any]] = {}
    made: dict[int, set[str]] = {}
    for tree in trees:
        instead[tree.root], made[tree.root] = _added(view, tree)
    gone = {i for tree in trees for i in tree.nodes}
    nodes = []
    for i, node in enumerate(view.nodes):
        nodes += instead.get(i, [] if i in gone else [node])
    return nodes, made


def _added(view: View, tree: _Tree) -> tuple[list[Any], set[str]]:
    """A sum, group by group; the last node keeps the output's name."""
    helper = require("onnx.helper")
    nodes: list[Any] = []
    last = view.nodes[tree.root].output[0]

    def add(left: str, right: str) -> str:
        name = view.fresh(f"{last}.sum")
        nodes.append(helper.make_node("Add", [left, right], [name], name))
        return name

    def total(names: list[str]) -> str:
        whole, *others = names
        for name in others:
            whole = add(whole, name)
        return whole

    sums = [total(group) for group in tree.groups]
    made = {name for name, group in zip(sums, tree.groups, strict=True) if len(group) > 1}
    total(sums)
    nodes[-1].output[0], nodes[-1].name = last, view.nodes[tree.root].name
    return nodes, made
