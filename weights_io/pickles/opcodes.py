"""Reading a pickle: the opcodes that are understood, and what each of them costs.

Each is charged at least what it takes, in units of a sixth of a microsecond, so that no mixture of
them takes longer than the budget says.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import unpack

from weights_io.budget import Budget
from weights_io.pickles.inert import PickledSet
from weights_io.pickles.machine import FREE, Machine, Persistent, Step
from weights_io.pickles.tape import Tape
from weights_io.source import Source


def _number(operand: bytes) -> int:
    return int.from_bytes(operand, "little")


# These touch the stack alone, and have an operand of so many bytes.
_OF_STACK: dict[int, Step] = {
    0x4E: (lambda m: m.stack.append(None), 0, 1, 10),  # NONE
    0x88: (lambda m: m.stack.append(True), 0, 1, 10),  # NEWTRUE
    0x89: (lambda m: m.stack.append(False), 0, 1, 10),  # NEWFALSE
    0x28: (Machine.mark, 0, 2, 0),  # MARK
    0x5D: (lambda m: m.stack.append([]), 0, 2, 66),  # EMPTY_LIST
    0x29: (lambda m: m.stack.append(()), 0, 1, 10),  # EMPTY_TUPLE
    0x74: (lambda m: m.push(tuple(m.pop_mark())), 0, 3, 60),  # TUPLE
    0x85: (Machine.tuple_of_one, 0, 2, 56),  # TUPLE1
    0x86: (lambda m: m.tuple_of(2), 0, 2, 64),  # TUPLE2
    0x87: (lambda m: m.tuple_of(3), 0, 3, 72),  # TUPLE3
    0x7D: (lambda m: m.stack.append({}), 0, 2, 74),  # EMPTY_DICT
    0x8F: (lambda m: m.stack.append(PickledSet([])), 0, 5, 130),  # EMPTY_SET
    0x91: (lambda m: m.push(PickledSet(m.pop_mark())), 0, 6, 130),  # FROZENSET
    0x61: (Machine.append, 0, 3, 24),  # APPEND
    0x4A: (lambda m, operand: m.stack.append(unpack("<i", operand)[0]), 4, 3, 42),  # BININT
    0x4B: (lambda m, operand: m.stack.append(operand[0]), 1, 2, 10),  # BININT1
    0x4D: (lambda m, operand: m.stack.append(_number(operand)), 2, 3, 42),  # BININT2
    0x47: (lambda m, operand: m.stack.append(unpack(">d", operand)[0]), 8, 3, 42),  # BINFLOAT
    0x68: (lambda m, operand: m.get(operand[0]), 1, 3, 10),  # BINGET
    0x6A: (lambda m, operand: m.get(_number(operand)), 4, 3, 10),  # LONG_BINGET
}
# These read more, or charge themselves what depends on what they find.
_OTHERS: dict[int, tuple[Callable[[Machine], None], int, int]] = {
    0x8A: (Machine.long, 5, 74),  # LONG1
    # text and bytes
    0x58: (lambda m: m.text(4), 6, 72),  # BINUNICODE
    0x8C: (Machine.short_text, 5, 72),  # SHORT_BINUNICODE
    0x8D: (lambda m: m.text(8), 6, 72),  # BINUNICODE8
    0x42: (lambda m: m.bytes(4), 5, 80),  # BINBYTES
    0x43: (lambda m: m.bytes(1), 5, 80),  # SHORT_BINBYTES
    0x8E: (lambda m: m.bytes(8), 5, 80),  # BINBYTES8
    0x96: (lambda m: m.bytes(8), 5, 80),  # BYTEARRAY8
    0x95: (Machine.frame, 4, 0),  # FRAME
    # containers
    0x65: (Machine.append_all, 3, 0),  # APPENDS
    0x73: (Machine.set_item, 8, 0),  # SETITEM
    0x75: (Machine.set_items, 7, 0),  # SETITEMS
    0x90: (Machine.add_items, 2, 0),  # ADDITEMS
    # memo
    0x71: (lambda m: m.put(m.tape.byte()), 2, 10),  # BINPUT
    0x72: (lambda m: m.put(m.tape.number(4)), 2, 10),  # LONG_BINPUT
    0x94: (Machine.memoize, 2, 10),  # MEMOIZE
    # names
    0x63: (Machine.global_, 6, 10),  # GLOBAL
    0x93: (Machine.stack_global, 5, 10),  # STACK_GLOBAL
    0x52: (Machine.reduce, 14, 120),  # REDUCE
    0x81: (Machine.new, 5, 200),  # NEWOBJ
    0x62: (Machine.build, 7, 80),  # BUILD
    0x51: (Machine.persistent_id, 16, 300),  # BINPERSID
}
_TABLE: list[Step] = [(Machine.refuse_opcode, FREE, 0, 0)] * 256
for _opcode, _row in _OF_STACK.items():
    _TABLE[_opcode] = _row
for _opcode, (_step, _work, _size) in _OTHERS.items():
    _TABLE[_opcode] = (_step, FREE, _work, _size)


def run_pickle(
    source: Source, start: int, budget: Budget, persistent: Persistent | None = None
) -> tuple[object, int]:
    """Interpret one pickle and return its raw object and the position after it.

    Parameters
    ----------
    source : Source
        The file, or a part of it in memory.
    start : int
        Where the pickle begins.
    budget : Budget
        Of the file, which may hold several pickles.
    persistent : callable, optional
        Turns a persistent id into an inert object; without it such an id is refused.

    Raises
    ------
    RefusedGlobalError
        When the pickle names anything outside the table, wherever it stands.
    WeightsFileError
        When the pickle is broken, uses an opcode that weights do not need, or asks too much.
    """
    machine = Machine(Tape(source, start, budget.limits), budget, persistent)
    return machine.run(_TABLE), machine.tape.position
