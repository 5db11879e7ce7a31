"""``python -m repvgg_ref ARGS`` is ``repvgg-ref ARGS``."""

import sys

from repvgg_ref_cli.main import main

sys.exit(main())
