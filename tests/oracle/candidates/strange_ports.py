"""Ports that do what ports should not; imported by name in child processes."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from typing import Any, NoReturn

import numpy as np

from tests.oracle.candidates.ports import network

not_callable = 3


def logits(x: Any) -> Any:
    return network().forward(x)


def layers(x: Any) -> Any:
    print("a port that talks on stdout")
    return network().forward(x, layers=True)


def sequence(x: Any) -> Any:
    return tuple(layers(x).values())


class Namespace:
    @staticmethod
    def inner(x: Any) -> Any:
        return logits(x)


def raises(x: Any) -> NoReturn:
    raise ValueError("the first line\nthe shapes do not fit\n")


def exits(x: Any) -> NoReturn:
    sys.exit(3)


def exits_quietly(x: Any) -> NoReturn:
    os._exit(0)


def exits_loudly(x: Any) -> NoReturn:
    sys.stderr.write("CUDA error: \x1b[31mno device\n\n")
    sys.stderr.flush()
    os._exit(7)


def crashes(x: Any) -> Any:
    return ctypes.string_at(0)


def hangs(x: Any) -> NoReturn:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with open(os.environ["REPVGG_TEST_PIDS"], "w") as file:  # noqa: PTH123 - short
        file.write(f"{os.getpid()} {child.pid}")
    while True:
        time.sleep(1)


def floods(x: Any) -> Any:
    for _ in range(200):
        sys.stdout.write("x" * 10_000)
        sys.stderr.write("x" * 10_000)
    return logits(x)


def not_a_number(x: Any) -> Any:
    return np.full((len(x), 7), np.nan, np.float32)


def loses_an_image(x: Any) -> Any:
    return logits(x)[1:]


def returns_nothing(x: Any) -> None:
    return None


def returns_text(x: Any) -> str:
    return "cat"


def returns_objects(x: Any) -> Any:
    return np.array([{}], object)


def unknown_layers(x: Any) -> Any:
    return {"conv_1": np.zeros((len(x), 3))}


def three_arrays(x: Any) -> Any:
    return [np.zeros((len(x), 3), np.float32)] * 3


def writes_into_its_input(x: Any) -> Any:
    y = logits(x)
    x *= 0
    return y
