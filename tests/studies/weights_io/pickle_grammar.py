"""Pickles as trees of a grammar that knows sharing: what is grown, changed, and written as opcodes.

Each node says how often it stands in its group (`times`) and whether it is `shared`: then it is
written once, remembered, and recalled by an opcode of two bytes wherever it stands again. So a
dear pickle, a long part looked at by many short opcodes, is a few changes away from a harmless one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from struct import pack
from typing import Any

from tests.weights_io import forge
from weights_io.pickles.globals import GLOBALS

MOST_BYTES = 1 << 18
MOST_TIMES = 50_000
_MERSENNE = (1 << 61) - 1
_NAMES = list(GLOBALS)
_LETTERS = ("a", "\x1b", "ü", "\U0001f600")
_LEAVES = ("none", "true", "float", "integer", "text", "bytes", "storage", "link", "name")
_GROUPS = ("tuple", "list", "dict", "set", "frozen set")
VALUES = (0, 1, 2, 3, 4, 8, 60, 100, 255, 1024, 1025, 4096, 65_000, 70_000, 1 << 20, 1 << 31)


class TooLongError(Exception):
    """The pickle would be longer than a study's file."""


@dataclass
class Node:
    """One object of a pickle; `value` is a length, a number or a choice, as the kind takes it."""

    kind: str
    children: list[Node] = field(default_factory=list)
    value: int = 0
    times: int = 1
    shared: bool = False

    def to_json(self) -> list[Any]:
        """As plain lists, for a file."""
        children = [child.to_json() for child in self.children]
        return [self.kind, self.value, self.times, self.shared, children]

    @classmethod
    def from_json(cls, stored: list[Any]) -> Node:
        """From the lists of `to_json`."""
        kind, value, times, shared, children = stored
        return cls(kind, [cls.from_json(child) for child in children], value, times, shared)

    def copy(self) -> Node:
        """A tree of its own."""
        return Node.from_json(self.to_json())

    def walk(self) -> Iterator[Node]:
        """This node and all below it."""
        yield self
        for child in self.children:
            yield from child.walk()


# Growing and changing ----------------------------------------------------------------------------


def _named(module: str, name: str) -> Node:
    return Node("name", value=_NAMES.index((module, name)), shared=True)


def _text(value: str) -> Node:
    return Node("text", value=-1 - _TEXTS.index(value))


_TEXTS = ("latin1", "f4", ">", "<", "O8", "U9", "f8", "neg", "_metadata", "C", "cpu")


def _call(module: str, name: str, *args: Node) -> Node:
    return Node("reduce", [_named(module, name), Node("tuple", list(args))])


def _dtype(code: str) -> Node:
    return _call("numpy", "dtype", _text(code), Node("true", value=1), Node("true"))


def _view(chance: random.Random) -> list[Node]:
    shape, strides = (
        Node("tuple", [Node("integer", value=chance.choice(VALUES[:5]))]) for _ in "12"
    )
    hooks = _call("collections", "OrderedDict")
    return [Node("storage"), Node("integer"), shape, strides, Node("true", value=1), hooks]


def _template(chance: random.Random) -> Node:
    """A call as writers of weights make it."""
    leaf = grow(chance, 0)
    makers: list[Callable[[], Node]] = [
        lambda: _call("torch", "Size", Node("tuple", [Node("integer", value=2)])),
        lambda: _call("torch._utils", "_rebuild_tensor_v2", *_view(chance)),
        lambda: _call("torch._utils", "_rebuild_tensor", *_view(chance)[:4]),
        lambda: _call("_codecs", "encode", Node("text", value=8), _text("latin1")),
        lambda: _dtype(chance.choice(["f4", "f8", "U9"])),
        lambda: _call("numpy.core.multiarray", "scalar", _dtype("f4"), Node("bytes", value=4)),
        lambda: _call(
            *("numpy.core.numeric", "_frombuffer"),
            *(Node("bytes", value=8), _dtype("f4")),
            *(Node("tuple", [Node("integer", value=2)]), _text("C")),
        ),
        lambda: _call("builtins", "set", Node("list", [leaf])),
        lambda: _call("torch", "device", _text("cpu")),
        lambda: _call("collections", "OrderedDict"),
        lambda: Node(
            "build", [Node("new", [_named("argparse", "Namespace")]), Node("dict", [leaf])]
        ),
        lambda: Node("new", [_named("yacs.config", "CfgNode")]),
        lambda: Node("build", [_call("uuid", "UUID"), leaf]),
        lambda: Node("append", [Node("list"), leaf]),
    ]
    return chance.choice(makers)()


def grow(chance: random.Random, depth: int = 3) -> Node:
    """A random tree of at most `depth` groups above one another."""
    if depth == 0 or chance.random() < 0.2:
        return Node(chance.choice(_LEAVES), value=chance.choice(VALUES))
    if chance.random() < 0.5:
        return _template(chance)
    children = [grow(chance, depth - 1) for _ in range(chance.randint(0, 3))]
    return Node(chance.choice(_GROUPS), children, value=chance.randrange(4))


def change(root: Node, other: Node, chance: random.Random) -> Node:
    """A copy of `root` with one to four changes; parts may come from `other`."""
    root = root.copy()
    for _ in range(chance.randint(1, 4)):
        node = chance.choice(list(root.walk()))
        _CHANGES[chance.randrange(len(_CHANGES))](node, other, chance)
    return root


def _repeat(node: Node, _other: Node, chance: random.Random) -> None:
    node.times = min(
        MOST_TIMES, chance.choice([1, node.times * 2, node.times * 10, node.times * 99])
    )


def _share(node: Node, _other: Node, _chance: random.Random) -> None:
    node.shared = not node.shared


def _revalue(node: Node, _other: Node, chance: random.Random) -> None:
    node.value = chance.choice([*VALUES, node.value + 1, node.value * 2])


def _replace(node: Node, other: Node, chance: random.Random) -> None:
    new = grow(chance, 2) if chance.random() < 0.5 else chance.choice(list(other.walk())).copy()
    node.__dict__.update(new.__dict__)


def _wrap(node: Node, _other: Node, chance: random.Random) -> None:
    inner = node.copy()
    node.__dict__.update(Node(chance.choice(_GROUPS), [inner], chance.randrange(4)).__dict__)


def _add(node: Node, other: Node, chance: random.Random) -> None:
    if node.kind in _GROUPS:
        node.children.append(
            chance.choice([grow(chance, 1), chance.choice(list(other.walk())).copy()])
        )


def _drop(node: Node, _other: Node, chance: random.Random) -> None:
    if node.kind in _GROUPS and node.children:
        node.children.pop(chance.randrange(len(node.children)))


def _multiply(node: Node, _other: Node, chance: random.Random) -> None:
    """Make a part below long, share what is above it, and repeat the whole: a product of work."""
    below = list(node.walk())[1:]
    for child in node.children:
        child.shared = chance.random() < 0.7
    if below:
        chance.choice(below).times = chance.choice([100, 1000, 10_000])
        node.times = chance.choice([100, 1000, 10_000])


_CHANGES = (
    _multiply,
    _multiply,
    _repeat,
    _repeat,
    _share,
    _share,
    _revalue,
    _replace,
    _wrap,
    _add,
    _drop,
)

# Writing -----------------------------------------------------------------------------------------


def write(root: Node, *, count: int, legacy: bool) -> bytes:
    """The pickle of a tree; its one storage holds `count` float32."""
    writer = _Writer(forge.storage(count, legacy=legacy))
    writer.write(root)
    return forge.proto(bytes(writer.out), 4)


class _Writer:
    """Opcodes so far, and what they remember."""

    def __init__(self, storage: bytes) -> None:
        self.out = bytearray()
        self._storage = storage
        self._memo: dict[int, int] = {}  # by id of a shared node
        self._keys = 0

    def write(self, node: Node) -> None:
        """Append the opcodes that leave the node's object on the stack."""
        if len(self.out) > MOST_BYTES:
            raise TooLongError
        place = self._memo.get(id(node))
        if place is not None:
            self._recall(place)
            return
        _WRITE[node.kind](self, node)
        if node.shared:
            place = self._memo[id(node)] = len(self._memo)
            self.out += b"q" + bytes([place]) if place < 256 else b"r" + pack("<I", place)

    def _recall(self, place: int) -> None:
        self.out += b"h" + bytes([place]) if place < 256 else b"j" + pack("<I", place)

    def _none(self, _node: Node) -> None:
        self.out += b"N"

    def _true(self, node: Node) -> None:
        self.out += b"\x89" if node.value == 1 else b"\x88"

    def _float(self, node: Node) -> None:
        self.out += b"G" + pack(">d", node.value)

    def _integer(self, node: Node) -> None:
        self.out += (
            b"K" + bytes([node.value]) if 0 <= node.value < 256 else forge.integer(node.value)
        )

    def _text(self, node: Node) -> None:
        letter = _LETTERS[node.value % len(_LETTERS)]
        known = node.value < 0 and _TEXTS[(-1 - node.value) % len(_TEXTS)]
        self.out += forge.text(known or letter * min(node.value, MOST_BYTES))

    def _bytes(self, node: Node) -> None:
        length = min(max(node.value, 0), MOST_BYTES)
        self.out += (b"C" + bytes([length]) if length < 256 else b"B" + pack("<I", length)) + bytes(
            length
        )

    def _storage_(self, _node: Node) -> None:
        self.out += self._storage

    def _link(self, node: Node) -> None:
        """Any object that is remembered."""
        if self._memo:
            self._recall(node.value % len(self._memo))
        else:
            self.out += b"N"

    def _name(self, node: Node) -> None:
        module, name = _NAMES[node.value % len(_NAMES)]
        self.out += f"c{module}\n{name}\n".encode()

    def _each(self, nodes: list[Node], key: int | None = None) -> None:
        for node in nodes:
            for _ in range(node.times):
                if key is not None:
                    self._key(key)
                self.write(node)

    def _key(self, style: int) -> None:
        self._keys += 1
        if style % 4 == 3:
            self.out += b"N"
        else:
            number = self._keys * (_MERSENNE if style % 4 == 2 else 1)
            self.out += forge.integer(number) if style % 4 else forge.text(f"{number:x}")

    def _tuple(self, node: Node) -> None:
        self.out += b"("
        self._each(node.children)
        self.out += b"t"

    def _list(self, node: Node) -> None:
        self.out += b"]("
        self._each(node.children)
        self.out += b"e"

    def _dict(self, node: Node) -> None:
        self.out += b"}("
        self._each(node.children, node.value)
        self.out += b"u"

    def _set(self, node: Node) -> None:
        self.out += b"\x8f("
        self._each(node.children)
        self.out += b"\x90"

    def applied(self, node: Node, opcode: bytes) -> None:
        """Append an opcode behind the objects that it takes, each of them once."""
        for child in node.children:
            self.write(child)
        self.out += opcode

    def _frozen_set(self, node: Node) -> None:
        self.out += b"("
        self._each(node.children)
        self.out += b"\x91"


_WRITE: dict[str, Callable[[_Writer, Node], None]] = {
    "none": _Writer._none,
    "true": _Writer._true,
    "float": _Writer._float,
    "integer": _Writer._integer,
    "text": _Writer._text,
    "bytes": _Writer._bytes,
    "storage": _Writer._storage_,
    "link": _Writer._link,
    "name": _Writer._name,
    "tuple": _Writer._tuple,
    "list": _Writer._list,
    "dict": _Writer._dict,
    "set": _Writer._set,
    "frozen set": _Writer._frozen_set,
    "reduce": lambda writer, node: writer.applied(node, b"R"),
    "new": lambda writer, node: writer.applied(node, b")\x81"),
    "build": lambda writer, node: writer.applied(node, b"b"),
    "append": lambda writer, node: writer.applied(node, b"a"),
}
