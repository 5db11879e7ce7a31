"""What a pickle works on: a stack with marks in it, and a memo of what may be recalled."""

from __future__ import annotations

from typing import Any

from weights_io.limits import Limits
from weights_io.pickles.inert import malformed


class Stack:
    """Stack, marks and memo of one pickle.

    The memo is a list as far as its places are counted up, as picklers do: that takes a tenth of a
    dict's memory. Any other place is in a dict, where a huge number costs nothing (CPython's own
    array is gh-115952), under its digits: integers are their own hashes, and could be made to
    collide.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []  # the stacks below each open mark
        self._memo: list[Any] = []
        self._sparse: dict[str, Any] = {}

    def push(self, value: object) -> None:
        """Put a value on the stack."""
        self.stack.append(value)

    def pop(self) -> Any:
        """Take the topmost value."""
        if not self.stack:
            raise malformed("it takes more objects than it has made")
        return self.stack.pop()

    def top(self) -> Any:
        """Look at the topmost value."""
        if not self.stack:
            raise malformed("it takes more objects than it has made")
        return self.stack[-1]

    def mark(self) -> None:
        """Begin a group."""
        if len(self.marks) >= self.limits.depth:
            self.limits.enforce("depth", len(self.marks) + 1, "the pickle is nested too deeply")
        self.marks.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        """End a group, and take what is in it."""
        if not self.marks:
            raise malformed("it closes a group that it has not opened")
        items, self.stack = self.stack, self.marks.pop()
        return items

    def tuple_of_one(self) -> None:
        """Put the topmost value into a tuple; a hostile file may ask for nothing else."""
        if not self.stack:
            raise malformed("it takes more objects than it has made")
        self.stack[-1] = (self.stack[-1],)

    def tuple_of(self, count: int) -> None:
        """Put the topmost values into one tuple."""
        stack = self.stack
        if len(stack) < count:
            raise malformed("it takes more objects than it has made")
        items = tuple(stack[-count:])
        del stack[-count:]
        stack.append(items)

    def memoize(self) -> None:
        """Remember the topmost value at the next place."""
        self.put(len(self._memo) + len(self._sparse))

    def put(self, index: int) -> None:
        """Remember the topmost value."""
        memo, stack = self._memo, self.stack
        if not stack:
            raise malformed("it takes more objects than it has made")
        if index == len(memo):
            memo.append(stack[-1])
            if self._sparse:
                self._sparse.pop(str(index), None)
        elif index < len(memo):
            memo[index] = stack[-1]
        else:
            self.take_sparse()
            self._sparse[str(index)] = stack[-1]

    def take_sparse(self) -> None:
        """Charge a place that is not counted up to, which takes more."""
        raise NotImplementedError

    def get(self, index: int) -> None:
        """Recall a value."""
        if index < len(self._memo):
            self.stack.append(self._memo[index])
        elif self._sparse and str(index) in self._sparse:
            self.stack.append(self._sparse[str(index)])
        else:
            raise malformed("it recalls an object that it has not remembered")
