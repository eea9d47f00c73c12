"""What the site has beside the pages in this folder: the commands, every benchmark's table, the project's own pages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import griffe
import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.md"))
# A page of the site by its file in the repository.
ELSEWHERE = {
    **{f"benchmarks/results/{path.name}": f"evidence/{path.name}" for path in RESULTS},
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
    "SECURITY.md": "project/security.md",
}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put every benchmark's table into the navigation, below the page that says what each proves."""
    for section in config.nav or ():
        if "Evidence" in section:
            section["Evidence"] += [f"evidence/{path.name}" for path in RESULTS]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made of something else."""
    for source, page in ELSEWHERE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=_with_links(text, source)))
    files.append(File.generated(config, "reference/commands.md", content=_commands()))
    return files


def _with_links(text: str, source: str) -> str:
    """Return a file's text with links to other pages of the site; of links to other files only the words stay."""

    def link(match: re.Match) -> str:
        target = (ROOT / source).parent.joinpath(match[2]).resolve().relative_to(ROOT).as_posix()
        if target in ELSEWHERE:
            return f"[{match[1]}](../{ELSEWHERE[target]})"
        return f"[{match[1]}](../{target.removeprefix('docs/')})" if target.startswith("docs/") else match[1]

    return re.sub(r"\[([^\]]*)\]\((?!https?:|#)([^)]+)\)", link, text)


def _commands() -> str:
    """Return the page of both command lines: every command with its options, from typer."""
    parts = [
        "# Commands\n\nExit codes: 0 done; 1 a check failed, or an error nobody foresaw; 2 an input that cannot be "
        "used; 3 nothing satisfies what was asked; 130 interrupted. `--debug` shows the traceback of an error.\n"
    ]
    for name in ("costmodel", "planner"):
        group = typer.main.get_command(import_module(f"{name}.interface.cli").app)
        parts.append(_command(group, typer.Context(group, info_name=name), name, 2))
    return "\n".join(parts)


def _command(command, context: typer.Context, name: str, level: int) -> str:
    """Return a command's part of the page, and below it those of its own commands."""
    lines = [f"{'#' * level} `{name}`", "", _escaped(command.help or ""), ""]
    if not hasattr(command, "commands"):
        usage = re.sub(r"[{}]", "", " ".join(command.collect_usage_pieces(context)))
        lines += ["```text", f"{name} {usage}", "```", "", "| option | |", "|---|---|"]
        lines += _options(command, context)
    for each in getattr(command, "commands", {}).values():
        if not each.hidden:
            own = typer.Context(each, parent=context, info_name=each.name)
            lines += ["", _command(each, own, f"{name} {each.name}", level + 1)]
    return "\n".join(lines)


def _options(command, context: typer.Context) -> Iterator[str]:
    """Yield the rows of a command's options, under the headings that its help has."""
    rows: dict[str, list[str]] = {}
    for each in command.get_params(context):
        what, text = each.get_help_record(context) or ("--help", "")
        if what != "--help":
            row = "| `{}` | {} |".format(what.replace("|", "\\|"), _escaped(text))
            rows.setdefault(getattr(each, "rich_help_panel", None) or "", []).append(row)
    for heading, own in rows.items():
        yield from [f"| **{heading}** | |"] if heading else []
        yield from own


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[")


class Parameters(griffe.Extension):
    """Shows the lines `name, name: text` of a docstring as a list."""

    def on_instance(self, *, obj: griffe.Object, **_) -> None:
        """Write the docstring anew."""
        if obj.docstring:
            obj.docstring.value = _listed(obj.docstring.value)


def _listed(text: str) -> str:
    lines: list[str] = []
    for line in text.splitlines():
        match = re.match(r"([a-z_]+(?:, [a-z_]+)*): (?=\S)", line)
        if match:
            if lines and lines[-1] and not lines[-1].startswith(("- ", "  ")):
                lines.append("")
            lines.append(f"- `{match[1]}`: {line[match.end() :]}")
        elif lines and lines[-1].startswith(("- ", "  ")) and line.strip() and not line.startswith("    "):
            lines.append(f"  {line}")
        else:
            lines.append(line)
    return "\n".join(lines)
