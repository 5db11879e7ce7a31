"""``python -m repvgg_ref ARGS`` is ``repvgg-ref ARGS``."""

import sys
from collections.abc import Sequence


def run(arguments: Sequence[str]) -> int:
    """Run the command line, which is a package of its own beside this one; its exit code."""
    try:
        from repvgg_ref_cli.main import main
    except ModuleNotFoundError as error:
        if error.name != "repvgg_ref_cli":
            raise
        advice = "python -m pip install -e . in the clone"
        sys.stderr.write(f"error: the command is not installed ({advice})\n")
        return 2
    return main(arguments)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
