"""What both command lines share: how errors are shown and which exit code they leave."""

from __future__ import annotations

import sys
from typing import Annotated, cast

import typer

from ..errors import CostModelError, missing_package
from ..traces.versions import installed

# An option that is missing, unknown or no number: click's UsageError. Typer has no name for it, and its later versions
# bring a click of their own, so that it cannot be imported from click.
_UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__base__)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"finetune-planner {installed('finetune-planner')}")
        raise typer.Exit


def with_version(app: typer.Typer) -> None:
    """Give a command line the option --version."""

    @app.callback()
    def common(
        version: Annotated[
            bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
        ] = False,
    ) -> None:
        pass


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
    except ModuleNotFoundError as error:
        missing = missing_package(error, "this command")
        if missing is None or debug:
            raise
        print(f"error: {missing}", file=sys.stderr)
        sys.exit(missing.exit_code)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        sys.stderr.close()
        sys.exit(0)
