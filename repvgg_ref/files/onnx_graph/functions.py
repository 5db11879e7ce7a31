"""The functions of an ONNX model: what it would become if they were put in their callers' place.

A function may call others, and each of those others again: thirty of two calls each are a thousand
million nodes in a file of a few kilobytes. So they are counted first, each once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from repvgg_ref.errors import CheckpointError

Key = tuple[str, str, str]


class Size(NamedTuple):
    """Of a graph or function: nodes, those of branches and loop bodies too, and bytes."""

    nodes: int
    bytes: int


class _Body(NamedTuple):
    own: Size
    calls: Counter[Key]


def subgraphs(node: Any) -> Iterator[Any]:
    """The graphs in a node's attributes: branches and loop bodies."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def nodes_in(nodes: Iterable[Any]) -> Iterator[Any]:
    """`nodes` and all in their branches and loop bodies."""
    for node in nodes:
        yield node
        for inner in subgraphs(node):
            yield from nodes_in(inner.node)


def require_moderate(model: Any, name: str, most: Size) -> None:
    """Raise `CheckpointError` if `model` has more than `most` once its functions are inlined.

    Also if a function calls itself, through others or not.
    """
    bodies = {_key(each.domain, each.name, each): _body(each.node) for each in model.functions}
    whole = _whole(_body(model.graph.node), _sizes(bodies, name, most), most)
    if whole.nodes > most.nodes:
        more = f"more than {most.nodes}"
        raise CheckpointError(f"{name}: has too many nodes, its functions in place", got=more)
    if whole.bytes > most.bytes:
        more = f"more than {most.bytes} bytes"
        raise CheckpointError(f"{name}: is too large, its functions in place", got=more)


def _sizes(bodies: dict[Key, _Body], name: str, most: Size) -> dict[Key, Size]:
    """How large each function is when those it calls are in place."""
    sizes: dict[Key, Size] = {}
    waiting, begun = list(bodies), set[Key]()
    while waiting:
        key = waiting[-1]
        missing = [each for each in bodies[key].calls if each in bodies and each not in sizes]
        if key in sizes or not missing:
            sizes.setdefault(key, _whole(bodies[key], sizes, most))
            waiting.pop()
        elif key in begun:  # what it waits for came back to it
            raise CheckpointError(f"{name}: a function of the model calls itself")
        else:
            begun.add(key)
            waiting += missing
    return sizes


def _whole(body: _Body, sizes: dict[Key, Size], most: Size) -> Size:
    """With what it calls; hardly above `most`, or the numbers themselves would fill memory."""
    nodes, size = body.own
    for key, times in body.calls.items():
        if key in sizes:
            nodes += times * sizes[key].nodes
            size += times * sizes[key].bytes
    return Size(min(nodes, most.nodes + 1), min(size, most.bytes + 1))


def _body(nodes: Iterable[Any]) -> _Body:
    top = list(nodes)
    everything = list(nodes_in(top))
    calls = Counter(_key(each.domain, each.op_type, each) for each in everything)
    return _Body(Size(len(everything), sum(each.ByteSize() for each in top)), calls)


def _key(domain: str, name: str, either: Any) -> Key:
    """Of a function, or of a node that calls it; ONNX before 1.16 had no overloads."""
    return "" if domain == "ai.onnx" else domain, name, getattr(either, "overload", "")
