"""A plain pickle of NumPy arrays, as MegEngine saves its weights."""

from __future__ import annotations

from weights_io.budget import Budget
from weights_io.pickles.inert import malformed
from weights_io.pickles.opcodes import run_pickle
from weights_io.pickles.tree import TreeBuilder
from weights_io.readers.contents import Contents
from weights_io.source import Source


def read_plain_pickle(source: Source, budget: Budget) -> Contents:
    """Read the tree of a pickle; large arrays stay in the file."""
    raw, end = run_pickle(source, 0, budget)
    if end != source.size:
        raise malformed(f"{source.size - end} bytes follow its end")
    return Contents("pickle", TreeBuilder(budget).build(raw), {})
