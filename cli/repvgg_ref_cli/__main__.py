"""``python -m repvgg_ref_cli`` is the command, too."""

import sys

from repvgg_ref_cli.main import main

sys.exit(main())
