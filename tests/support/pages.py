"""The examples on the pages for people: found, run and, as a program, written anew.

    python tests/support/pages.py    # every output on every page, as it is today

On a page (README.md, and every page in mkdocs.yml):

- ```` ```console ````: lines after `$ ` are commands, the lines below what they print, at 80 columns. A line `...`
  stands for any number of lines.
- ```` ```bash ````: commands that are run, too, but print what nobody compares.
- ```` ```python ````: the blocks of a page run one after another; a ```` ```text ```` block right below is what one
  prints.
- ```` ```KIND title="NAME" ````: a file of that name, for what comes after.
- `<!-- output of COMMAND, compared in PATH -->`, up to `<!-- end -->`: what a command prints, as part of the page; that
  test compares it.
- `<!-- runs in PATH -->` above a block: it takes too long, and runs in that test, benchmark or notebook instead.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import yaml
from registering import as_before
from repository import ROOT

from costmodel import METHODS, RULES
from costmodel.accounting.eager import KEEPS

WIDTH = 80
# The commands of a page that run; others (pip, ssh ...) are for the reader's machine.
PROGRAMS = ("costmodel", "planner", "python")
_BLOCK = re.compile(
    r"(?P<elsewhere><!-- runs in (?P<place>\S+) -->\n)?"
    r"```(?P<kind>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<body>.*?)^```$(?:\n\n```text\n(?P<printed>.*?)^```$)?"
    r"|<!-- output of (?P<command>[^\n]*), compared in (?P<test>\S+) -->\n\n(?P<output>.*?)\n<!-- end -->",
    re.DOTALL | re.MULTILINE,
)


# On docs/what_you_can_ask.md: a link to the line that answers a question, and words of that line.
_ANSWER = re.compile(
    r"\[(?P<page>[^\]]*), line (?P<line>\d+)\]\((?P<file>[^)#]+)(?P<place>[^)]*)\) <!-- (?P<words>.*?) -->"
)


@dataclass(frozen=True)
class Said:
    """What a page says that something prints. start, end: where on the page."""

    start: int
    end: int
    text: str


def pages() -> list[Path]:
    """Return README.md and the pages of the site's navigation that are written by hand."""

    class Loader(yaml.SafeLoader):
        """Reads mkdocs.yml, in which tags name Python objects."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
    settings = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)

    def names(entry) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        else:
            for part in entry.values() if isinstance(entry, dict) else entry:
                yield from names(part)

    found = [ROOT / "docs" / name for name in names(settings["nav"])]
    return [ROOT / "README.md", *(path for path in found if path.exists())]


def run_command(line: str) -> str:
    """Return what a command prints, standard error with it, without blanks at the ends of lines."""
    words = shlex.split(line, comments=True)
    if words[0] not in PROGRAMS:
        return ""
    if words[0] == "python" or {"|", ">", "&&"} & set(words):
        done = subprocess.run(line, shell=True, text=True, stdout=-1, stderr=subprocess.STDOUT, timeout=300, check=True)
        return done.stdout
    from importlib import import_module

    main = import_module(f"{words[0]}.interface.cli").main
    before, sys.argv = sys.argv, words
    printed = io.StringIO()
    try:
        with redirect_stdout(printed), redirect_stderr(printed):
            main()
    except SystemExit as left:
        if left.code and not printed.getvalue().startswith("error: "):
            raise AssertionError(f"{line} leaves with {left.code}:\n{printed.getvalue()}") from None
    finally:
        sys.argv = before
    return printed.getvalue()


@contextmanager
def _importing_from_here() -> Iterator[None]:
    """Let code import the files of its page."""
    sys.path.insert(0, os.getcwd())
    try:
        yield
    finally:
        sys.path.pop(0)


def _commands(body: str) -> list[str]:
    """Return the commands of a block, one for lines that end in a backslash."""
    return [line for line in body.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]


def _console(body: str, offset: int) -> Iterator[tuple[str, Said]]:
    """Yield each command of a console block with what stands below it."""
    parts = list(re.finditer(r"^\$ ((?:[^\n]*\\\n)*[^\n]*)\n", body, re.MULTILINE))
    assert parts and not parts[0].start(), f"a console block must begin with $:\n{body}"
    for part, following in zip(parts, [*(each.start() for each in parts[1:]), len(body)], strict=True):
        said = Said(offset + part.end(), offset + following, body[part.end() : following])
        yield part[1].replace("\\\n", " "), said


def run_page(text: str, everything: bool = False) -> Iterator[tuple[Said, str]]:
    """Run a page's examples in the present folder; yield what the page says that each prints, and what it prints.

    everything: also the outputs that other tests compare.
    """
    with as_before(RULES, KEEPS, METHODS):
        yield from _run_blocks(text, everything)


def output_on(page: str) -> str:
    """Return the output on a page of docs/ that a test compares by itself."""
    found = [block["output"] for block in _BLOCK.finditer((ROOT / "docs" / page).read_text(encoding="utf-8"))]
    return next(filter(None, found))


def _run_blocks(text: str, everything: bool) -> Iterator[tuple[Said, str]]:
    names: dict = {"__name__": "__page__"}
    for block in _BLOCK.finditer(text):
        if place := block["place"] or block["test"]:
            assert (ROOT / place).is_file(), f"{place} does not exist"
        if block["place"]:
            continue
        if block["title"]:
            Path(block["title"]).write_text(block["body"], encoding="utf-8")
        elif block["command"] and everything:
            yield Said(block.start("output"), block.end("output"), block["output"]), run_command(block["command"])
        elif block["kind"] == "console":
            for command, said in _console(block["body"], block.start("body")):
                yield said, run_command(command)
        elif block["kind"] == "bash":
            for command in _commands(block["body"]):
                run_command(command)
        elif block["kind"] == "python":
            printed = io.StringIO()
            with redirect_stdout(printed), _importing_from_here():
                exec(compile(block["body"], "page", "exec"), names)
            if block["printed"] is not None:
                yield Said(block.start("printed"), block.end("printed"), block["printed"]), printed.getvalue()


def same(said: str, printed: str) -> bool:
    """Return whether a page says what is printed, up to blanks at the ends of lines, and to `...`."""
    lines = [line.rstrip() for line in said.rstrip().splitlines()]
    pattern = "".join(r"(?:.*\n)*?" if line == "..." else re.escape(line) + r"\n" for line in lines)
    text = "".join(f"{line.rstrip()}\n" for line in printed.rstrip().splitlines())
    return re.fullmatch(pattern, text) is not None


def with_lines(text: str) -> tuple[str, int]:
    """Return a page with each answer's line as it is today, and how many answers there are."""

    def link(match: re.Match) -> str:
        lines = (ROOT / "docs" / match["file"]).read_text(encoding="utf-8").splitlines()
        found = [number for number, line in enumerate(lines, 1) if match["words"] in line]
        assert len(found) == 1, f"{match['file']} has {len(found)} lines with {match['words']!r}"
        return f"[{match['page']}, line {found[0]}]({match['file']}{match['place']}) <!-- {match['words']} -->"

    return _ANSWER.subn(link, text)


def _write(path: Path) -> None:
    """Write a page's outputs anew."""
    text = path.read_text(encoding="utf-8")
    found = list(run_page(text, everything=True))
    for said, printed in reversed(found):
        if same(said.text, printed):
            continue
        lines = [f"{line.rstrip()}\n" for line in printed.rstrip().splitlines()]
        if said.text.endswith("...\n"):  # as many lines as there were
            lines = [*lines[: said.text.count("\n") - 1], "...\n"]
        text = text[: said.start] + "".join(lines) + text[said.end :]
        print(f"{path}: written anew")
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    os.environ["COLUMNS"] = str(WIDTH)
    for page in [path.resolve() for path in map(Path, sys.argv[1:])] or pages():
        with tempfile.TemporaryDirectory() as folder, chdir(folder):
            _write(page)
    questions = ROOT / "docs" / "what_you_can_ask.md"
    questions.write_text(with_lines(questions.read_text(encoding="utf-8"))[0], encoding="utf-8")
