"""``python -m repvgg_ref.train ARGS`` is ``repvgg-ref train ARGS``."""

import sys

from repvgg_ref.__main__ import run

sys.exit(run(["train", *sys.argv[1:]]))
