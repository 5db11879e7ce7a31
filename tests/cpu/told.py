"""What an interpreter is like, told by itself (see `test_interpreter`)."""

from __future__ import annotations

import sys


def tell() -> None:
    """Print flags and path as JSON."""
    import json

    sys.stdout.write(json.dumps([list(sys.flags), sys.path]))
