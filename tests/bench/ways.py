"""Contenders for tests: right, wrong, slow, and broken in every way."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from repvgg_ref.bench.contenders.base import CannotTakePartError, Contender, Entry
from repvgg_ref.bench.task import Task

LOGITS = np.arange(6.0).reshape(2, 3)
WRONG = {
    "wrong": LOGITS + 0.01 * LOGITS.max(),
    "nan": np.where(LOGITS > 4, np.nan, LOGITS),
    "infinite": np.where(LOGITS > 4, np.inf, LOGITS),
    "other shape": LOGITS[:1],
}
SECONDS = {"slow": 0.02, "slower": 0.1}


@dataclass(frozen=True)
class Ways(Entry):
    """Its name says the ways in which it can be run: ``"slow or crashes"``."""

    def variants(self, task: Task) -> tuple[str, ...]:
        return tuple(self.name.split(" or "))


def ways(name: str) -> Entry:
    return Ways(name, __name__)


def prepare(task: Task, variant: str) -> Contender:
    """In the contender's process."""
    calls = 0

    def run() -> Any:
        nonlocal calls
        calls += 1
        if variant == "dies later" and calls > 4:
            sys.stderr.write("Fatal: \x1b[31mout of luck\n")
            sys.stderr.flush()
            os._exit(3)
        time.sleep(SECONDS.get(variant, 0.001))
        return WRONG.get(variant, LOGITS)

    if variant == "refuses":
        raise CannotTakePartError("not today", got="rain")
    if variant == "dies":
        os._exit(139)
    if variant == "raises":
        raise KeyError("what nobody expected")
    if variant == "talks":
        print("a framework that talks on stdout", flush=True)
    return Contender(run, lambda found: {"logits": found})
