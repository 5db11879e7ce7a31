"""The small training on the ranks of ``mpiexec``, with synchronised batch norm."""

from __future__ import annotations

import sys
from pathlib import Path

from repvgg_ref.train.comm import connect
from tests.train.small_training import changed, run, small_job

comm = connect()
assert comm.size > 1
recipe = changed(batch=12, epochs=3)
run(small_job(Path(sys.argv[1]), recipe=recipe, comm=comm, sync_bn=True))
