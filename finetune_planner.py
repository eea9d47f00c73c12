"""Where the installed commands start: Ctrl-C while the packages are still being imported leaves in one line, too."""

import sys
from importlib import import_module


def costmodel() -> None:
    """Run the command `costmodel`."""
    _start("costmodel")


def planner() -> None:
    """Run the command `planner`."""
    _start("planner")


def _start(package: str) -> None:
    try:
        main = import_module(f"{package}.interface.cli").main
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    main()
