"""The pickle machine: a small interpreter that can build data and nothing else.

Python's own unpickler imports and calls whatever a pickle names. This one has no way to do
either: a name is looked up in `globals.GLOBALS`, where it stands for an inert value or for one
of our own functions from plain arguments to plain data. What is not there is refused, but for a
class, which makes dead records (`strangers`). Opcodes outside the table below, which no writer of
weights emits, are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice, pairwise
from typing import Any, NoReturn

from weights_io.budget import Budget
from weights_io.errors import WeightsFileError
from weights_io.pickles.foreign import Foreign, ForeignType, OddKey
from weights_io.pickles.globals import GLOBALS, Global, refuse
from weights_io.pickles.inert import (
    CfgNode,
    Inert,
    Namespace,
    NumpyArray,
    NumpyDtype,
    OrderedDict,
    PickledSet,
    Span,
    TensorView,
    decode_text,
    malformed,
)
from weights_io.pickles.records import Record
from weights_io.pickles.stack import Stack
from weights_io.pickles.strangers import Stranger, Strangers
from weights_io.pickles.tape import Tape
from weights_io.text import sanitize

PROTOCOLS = range(2, 6)
_STOP = 0x2E
_INLINE_BYTES = 1024  # longer payloads, most of them array data, stay in the file
_WIDE = 1 << 63
_BUILDABLE = (OrderedDict, CfgNode, Namespace, NumpyDtype, NumpyArray, Foreign)
# An optimiser's state has parameters for keys; a cache what it was asked for.
_ODD_KEYS = (
    *(ForeignType, Foreign, Inert, NumpyDtype, PickledSet, Span, TensorView),
    *(bool, bytes, float, tuple, type(None)),
)

Persistent = Callable[[object], object]
# What an opcode does; the bytes of its operand, or `FREE` if it reads and charges by itself; its
# work; and the bytes, at most, of what it makes and of its place on the stack.
Step = tuple[Callable[..., None], int, int, int]
FREE = -1


class Machine(Stack):
    """One pickle being read."""

    def __init__(self, tape: Tape, budget: Budget, persistent: Persistent | None) -> None:
        super().__init__(budget.limits)
        self.tape, self.budget = tape, budget
        self.persistent, self.strangers = persistent, Strangers(self._spend)
        self.work, self.room = budget.left("work"), budget.room  # what is left

    def run(self, steps: Sequence[Step]) -> object:
        """Do what the opcodes say, each charged before it is done.

        The loop is the reader's dearest: what a step that only touches the stack does not need is
        held in variables, and put where the others look for it before they are called.
        """
        self._check_protocol()
        tape = self.tape
        buffer, at = tape.buffer, tape.at
        work, room = self.work, self.room
        while True:
            if at == len(buffer):
                tape.at = at
                tape.fill(1)
                buffer, at = tape.buffer, tape.at
            opcode = buffer[at]
            at += 1
            if opcode == _STOP:
                break
            step, width, cost, size = steps[opcode]
            work -= cost
            room -= size
            if work >= 0 <= room:
                if width == 0:
                    step(self)
                    continue
                if width > 0 and at + width <= len(buffer):
                    step(self, buffer[at : at + width])
                    at += width
                    continue
            tape.at, self.work, self.room = at, work, room
            if work < 0 or room < 0:
                self._settle()
            if width > 0:  # where the buffer ends
                step(self, tape.take(width))
            else:
                step(self)
            buffer, at, work, room = tape.buffer, tape.at, self.work, self.room
        tape.at, self.work, self.room = at, work, room
        self._settle()
        return self._finish()

    def _spend(self, work: int, size: int) -> None:
        """Charge what the items of an opcode take beside itself."""
        self.work -= work
        self.room -= size
        if self.work < 0 or self.room < 0:
            self._settle()

    def _settle(self) -> None:
        """Charge the budget at once: a call for every opcode would take as long as the opcode."""
        budget = self.budget
        budget.charge("work", budget.left("work") - self.work, "the pickle has too many opcodes")
        budget.charge_objects(budget.room - self.room, "the pickle")

    def _check_protocol(self) -> None:
        head = self.tape.take(2)
        if head[0] != 0x80 or head[1] not in PROTOCOLS:
            raise WeightsFileError(
                "not a pickle of a protocol that is read here",
                got=head.hex(" "),
                wanted="protocol 2 to 5",
                advice="re-save the weights alone: torch.save(model.state_dict(), path)",
            )

    def _finish(self) -> object:
        if self.marks or len(self.stack) != 1:
            raise malformed("it ends with other than one object")
        return self.stack[0]

    def refuse_opcode(self) -> NoReturn:
        """Raise: no writer of weights emits it."""
        opcode = self.tape.buffer[self.tape.at - 1]
        if opcode == 0x69:  # INST imports and calls in one: say what it would have called
            refuse(*self._two_lines(), self._entry())
        import pickletools  # only to say the opcode's name

        names = {ord(known.code): known.name for known in pickletools.opcodes}
        raise WeightsFileError(
            f"refused pickle opcode {names.get(opcode, f'0x{opcode:02x}')}",
            got=f"at byte {self.tape.position - 1}",
            wanted="only opcodes that weights need",
            advice="the file is damaged or was made to do something else than hold weights",
        )

    # Scalars, text and bytes ----------------------------------------------------------------

    def long(self) -> None:
        """LONG1."""
        length = self.tape.byte()
        self.limits.enforce("integer_bytes", length, "the pickle holds too large an integer")
        self.push(int.from_bytes(self.tape.take(length), "little", signed=True))

    def short_text(self) -> None:
        """Text of at most 255 bytes."""
        self.push(self.budget.keep_text(decode_text(self.tape.take(self.tape.byte()))))

    def text(self, width: int) -> None:
        """Text, whose length takes `width` bytes; a long one stays in the file."""
        length = self.tape.number(width)
        if length > _INLINE_BYTES:
            self.push(Span(self.tape.source, self.tape.skip(length), length, "text"))
        else:
            self.push(self.budget.keep_text(decode_text(self.tape.take(length))))

    def bytes(self, width: int) -> None:
        """Bytes, whose length takes `width` bytes; many of them stay in the file."""
        length = self.tape.number(width)
        if length > _INLINE_BYTES:
            self.push(Span(self.tape.source, self.tape.skip(length), length, "bytes"))
        else:
            self.push(self.tape.take(length))

    def frame(self) -> None:
        """FRAME: a promise that so much follows."""
        self.tape.require(self.tape.number(8))

    # Containers -----------------------------------------------------------------------------

    def append(self) -> None:
        """APPEND."""
        item, target = self.pop(), self.top()
        if type(target) is list:
            target.append(item)  # which takes the place that the item had on the stack
        else:
            self._take([item])

    def append_all(self) -> None:
        """APPENDS."""
        items = self.pop_mark()
        target = self.top()
        if type(target) is not list:
            self._take(items)
            return
        before = target.__sizeof__()
        target.extend(items)  # no more places than the items had on the stack
        self.room -= target.__sizeof__() - before

    def _take(self, items: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, Foreign):
            raise malformed("it appends to something that is no list")
        target.take_items()

    def add_items(self) -> None:
        """ADDITEMS."""
        items = self.pop_mark()
        target = self.top()
        if not isinstance(target, PickledSet):
            raise malformed("it adds items to something that is no set")
        target.add(items)

    def set_item(self) -> None:
        """SETITEM."""
        value, key = self.pop(), self.pop()
        self._set((key,), (value,))

    def set_items(self) -> None:
        """SETITEMS."""
        items = self.pop_mark()
        self._set(items[::2], items[1::2])

    def _set(self, keys: Sequence[Any], values: Sequence[Any]) -> None:
        target = self.top()
        if isinstance(target, Foreign):
            target.take_items()
            return
        pairs = len(values)
        if not isinstance(target, dict) or len(keys) != pairs:
            raise malformed("it sets items on something that is no dict")
        self._spend(pairs * _PAIR_WORK, pairs * _PAIR_BYTES)
        before = target.__sizeof__()
        for key, value in zip(keys, values, strict=True):
            if type(key) is not str:
                key = self._number_or_odd(key, len(target))
            if key in target:
                raise malformed(f"the key {sanitize(key)} comes twice")
            target[key] = value
        # A dict takes what it takes: at its worst, when it grows, it holds its old self, too.
        self.room += pairs * _PAIR_BYTES - (target.__sizeof__() - before)

    def _number_or_odd(self, key: object, others: int) -> int | OddKey:
        """A key that is no text: an integer as it is, of most others that there was one."""
        if type(key) is int:
            # Of wider integers any number have one hash, and each is compared to all others.
            if not -_WIDE <= key < _WIDE:
                raise malformed("a dict has an integer of more than 64 bits for a key")
            # Integers are their own hashes: others than those that are counted up can be made to
            # meet, each of them, as many as are there.
            if not 0 <= key <= others + _AHEAD:
                self._spend(others // _MEETINGS, 0)
            return key
        if isinstance(key, _ODD_KEYS):
            self._spend(_ODD_WORK, _ODD_BYTES)
            return OddKey(key)
        raise malformed("a dict has a key that is neither text nor an integer")

    def take_sparse(self) -> None:
        """Charge a place of the memo that is not counted up to."""
        self._spend(_SPARSE_WORK, _SPARSE_BYTES)

    # Names and what is made of them ---------------------------------------------------------

    def _two_lines(self) -> tuple[str, str]:
        return decode_text(self.tape.line()), decode_text(self.tape.line())

    def global_(self) -> None:
        """GLOBAL."""
        self._look_up(*self._two_lines())

    def stack_global(self) -> None:
        """STACK_GLOBAL."""
        name, module = self.pop(), self.pop()
        if type(name) is not str or type(module) is not str:
            raise malformed("a global whose name is no text")
        self._look_up(module, name)

    def _look_up(self, module: str, name: str) -> None:
        """Push the inert stand-in for a global, or refuse it by its exact name."""
        found = GLOBALS.get((module, name))
        if found is None:
            found = self.strangers.find(module, name)
        if found is None:
            refuse(module, name, self._entry())
        self.push(found)

    def _entry(self) -> str:
        """Say under which keys the object being read will stand, as far as that is sure."""
        keys: list[str] = []
        for below, items in pairwise([*self.marks, self.stack]):
            if below and isinstance(below[-1], dict):
                named = (str(key) for key in reversed(items[::2]) if type(key) in (str, int))
                keys += islice(named, 1)
        return ".".join(keys)

    def reduce(self) -> None:
        """REDUCE."""
        args, function = self.pop(), self.pop()
        if isinstance(function, ForeignType) and type(args) is tuple:
            self.push(Foreign(function))
            return
        if not isinstance(function, Global) or function.reduce is None or type(args) is not tuple:
            raise malformed("it calls something that is no function")
        made = function.reduce(args)
        if isinstance(made, bytes):
            self.budget.charge("copied_bytes", len(made), "the pickle copies too many bytes")
        elif isinstance(made, NumpyDtype | TensorView | Inert):
            self._spend(_MADE_WORK, _MADE_BYTES)
        self.push(made)

    def new(self) -> None:
        """NEWOBJ."""
        args, cls = self.pop(), self.pop()
        if isinstance(cls, ForeignType) and type(args) is tuple:
            self.push(Record(cls) if isinstance(cls, Stranger) and not args else Foreign(cls))
            return
        if not isinstance(cls, Global) or cls.new is None or args != ():
            raise malformed("it makes an instance of something that is no class")
        self.push(cls.new())

    def build(self) -> None:
        """BUILD."""
        state = self.pop()
        target = self.top()
        if not isinstance(target, _BUILDABLE):
            raise malformed("it sets attributes on something that has none")
        if isinstance(state, dict) and not isinstance(target, Foreign):
            self.budget.charge("comparisons", len(state), "the pickle sets too many attributes")
        target.build(state)

    def persistent_id(self) -> None:
        """BINPERSID."""
        identity = self.pop()
        if self.persistent is None:
            raise malformed("it refers to storages outside it, which a plain pickle has not")
        self.push(self.persistent(identity))


_PAIR_WORK, _PAIR_BYTES = 3, 180  # of a dict's items; memory at most
_AHEAD, _MEETINGS = 64, 32  # of an integer key: so far before its turn; met for a unit of work
_ODD_WORK, _ODD_BYTES = 7, 80  # of a key that is neither text nor an integer
_MADE_WORK, _MADE_BYTES = 12, 200  # of what is looked at before it is made
_SPARSE_WORK, _SPARSE_BYTES = 2, 160  # of a place of the memo that is not counted up to
