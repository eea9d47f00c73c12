"""What both command lines share: how errors are shown and which exit code they leave."""

from __future__ import annotations

import sys

import typer

from .errors import CostModelError


def run(app: typer.Typer) -> None:
    """Run a command line; a user's error is one line on standard error and its exit code.

    `--debug` anywhere on the line shows the traceback instead.
    """
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    try:
        app(args=[argument for argument in arguments if argument != "--debug"])
    except CostModelError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        sys.stderr.close()
        sys.exit(0)
