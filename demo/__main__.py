"""The command line: `python -m demo models` makes the demo model repository where it is missing."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from demo.repository import WRITERS, make


def main() -> int:
    """Read the arguments, make what is missing and say so, one line per model made or one that all are there."""
    parser = argparse.ArgumentParser(prog="python -m demo", description="Make the demo model repository where it is missing.")
    parser.add_argument("target", type=Path, help="the folder of the model repository, for example models")
    parser.add_argument("--only", choices=sorted(WRITERS), help="make this model alone")
    parser.add_argument("--force", action="store_true", help="make it again where it is there")
    arguments = parser.parse_args()
    names = [arguments.only] if arguments.only else list(WRITERS)
    # The runtime reads it when it is imported; a thread of its own has no place in a command that makes files.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        made = make(arguments.target, names, force=arguments.force)
    except ModuleNotFoundError as error:
        parser.exit(1, f"{error.name} is missing: pip install '.[demo]'\n")
    for model in made:
        sys.stdout.write(f"{arguments.target / model.name}: made, {model.size / 1e6:.1f} MB in {model.seconds:.1f} s\n")
    if not made:
        sys.stdout.write(f"{arguments.target}: {', '.join(names)} already there\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
