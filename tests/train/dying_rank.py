"""A trainer whose rank 1 dies in its third step: by an exception, killed, or frozen."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from repvgg_ref_cli.main import main

from repvgg_ref.train.comm import connect
from repvgg_ref.train.update import Updater

way, *arguments = sys.argv[1:]
step = Updater.step


def dying_step(self: Updater, state: Any, *rest: Any, **settings: Any) -> Any:
    if connect().rank == 1 and state.step == 2:
        if way == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if way == "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)
        raise RuntimeError("planted")
    return step(self, state, *rest, **settings)


Updater.step = dying_step  # type: ignore[method-assign]  # that is the plant
sys.exit(main(["train", *arguments]))
