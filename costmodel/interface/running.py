"""What both command lines share: the terminal, how errors are shown and which exit code they leave.

Exit codes: 0 done; 1 a check that failed (`verify`, `reproduce`, `evidence check`), or an error that nobody foresaw;
2 an input that cannot be used; 3 well formed, but nothing satisfies it; 130 interrupted. An error is one line on
standard error; `--debug` anywhere on the line shows its traceback.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, redirect_stdout, suppress
from io import TextIOWrapper
from typing import IO, TYPE_CHECKING, Annotated, cast

import typer

from ..errors import CostModelError, missing_package, one_line
from ..secrets import hidden
from ..traces.versions import installed

if TYPE_CHECKING:
    from rich.console import Console

INTERRUPTED = 130
_MOST_CHARACTERS = 2000  # of an error's line

# An option that is missing, unknown or no number: click's UsageError. Typer has no name for it, and its later versions
# bring a click of their own, so that it cannot be imported from click.
_UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__base__)


class _WithoutTrailingBlanks:
    """Standard output or standard error as a pipe or file gets it: rich fills lines up with blanks."""

    def __init__(self, stream: Callable[[], IO[str]]):
        self._stream = stream

    def __getattr__(self, name: str):
        return getattr(self._stream(), name)

    def write(self, text: str) -> int:
        self._stream().write(re.sub(r" +$", "", text, flags=re.MULTILINE))
        return len(text)


def terminal(width: int | None = None, stderr: bool = False) -> Console:
    """Return the terminal, which shows every text as it is: a name may look like rich's markup.

    width: columns of a pipe or file, which has none of its own, unless COLUMNS says how many.
    """
    from rich.console import Console

    found = Console(markup=False, emoji=False, highlight=False, stderr=stderr)
    if not found.is_terminal:
        stream = (lambda: sys.stderr) if stderr else (lambda: sys.stdout)
        found.file = cast("IO[str]", _WithoutTrailingBlanks(stream))
    if width and not found.is_terminal and "COLUMNS" not in os.environ:
        found.width = width
    return found


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


def _plain_help() -> AbstractContextManager:
    """Take the blanks at the ends of lines from a help that is no terminal's."""
    stream = sys.stdout
    if stream.isatty():
        return nullcontext()
    return redirect_stdout(cast("IO[str]", _WithoutTrailingBlanks(lambda: stream)))


def run(app: typer.Typer) -> None:
    """Run a command line and leave with its exit code; whatever goes wrong is one line on standard error."""
    arguments = sys.argv[1:] or ["--help"]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be text
    try:
        with _plain_help() if "--help" in arguments else nullcontext():
            code = app(args=[argument for argument in arguments if argument != "--debug"], standalone_mode=False)
        sys.stdout.flush()
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except BrokenPipeError:  # the reader, such as head, has seen enough
        sys.stderr.close()
        code = 0
    except Exception as error:
        text, code = told(error)
        if "--debug" in arguments:
            print(hidden(traceback.format_exc()), end="", file=sys.stderr)
        else:
            print(f"error: {one_line(hidden(text))[:_MOST_CHARACTERS]}", file=sys.stderr)
        if isinstance(error, OSError) and sys.stdout is sys.__stdout__:
            with suppress(OSError):  # what the disk did not take must not be tried again at the end
                sys.stdout.close()
    if code == INTERRUPTED:
        print("interrupted", file=sys.stderr)
    sys.exit(code)


def told(error: Exception) -> tuple[str, int]:
    """Return what to say of an error, and the exit code that it leaves."""
    if isinstance(error, _UsageError):
        return f"{error.format_message().rstrip('.')}; see --help", error.exit_code
    if isinstance(error, ModuleNotFoundError):
        error = missing_package(error, "this command") or error
    if isinstance(error, CostModelError):
        return str(error), error.exit_code
    if isinstance(error, OSError) and error.strerror:
        return f"cannot use {error.filename or 'the output'}: {error.strerror}", 2
    if isinstance(error, MemoryError):
        return f"not enough memory on this machine ({error}); ask for less", 2
    if isinstance(error, RecursionError):
        return "the input is nested too deeply; give something simpler", 2
    return (
        f"{type(error).__name__}, an unexpected error: {str(error) or 'without a message'}; please report it with "
        "the command, and what the command shows with --debug added",
        1,
    )
