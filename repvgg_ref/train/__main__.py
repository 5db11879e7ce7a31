"""``python -m repvgg_ref.train ARGS`` is ``repvgg-ref train ARGS``."""

import sys

from repvgg_ref_cli.main import main

sys.exit(main(["train", *sys.argv[1:]]))
