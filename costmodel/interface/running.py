"""What both command lines share: how errors are shown and which exit code they leave."""

from __future__ import annotations

import sys

import typer

from ..errors import CostModelError

_UsageError = typer.BadParameter.__base__  # an option that is missing, unknown or no number


def run(app: typer.Typer) -> None:
    """Run a command line; a user's error is one line on standard error and its exit code.

    `--debug` anywhere on the line shows the traceback instead.
    """
    arguments = sys.argv[1:] or ["--help"]
    debug = "--debug" in arguments
    try:
        sys.exit(app(args=[argument for argument in arguments if argument != "--debug"], standalone_mode=False))
    except _UsageError as error:
        print(f"error: {error.format_message().rstrip('.')}; see --help", file=sys.stderr)
        sys.exit(error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except CostModelError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        sys.stderr.close()
        sys.exit(0)
