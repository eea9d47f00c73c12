"""The README's first answer is what the command prints."""

from __future__ import annotations

import re
import sys

import pytest
from repository import ROOT

from planner.interface import cli

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_shows_what_the_first_command_prints(monkeypatch, capsys):
    command = re.search(r"pip install \. && (planner recommend [^\n]*)", README)[1]
    shown = re.search(r"## The answer\n\n```text\n(.*?)```", README, re.DOTALL)[1]
    monkeypatch.setattr(sys, "argv", command.split())
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert not left.value.code

    def lines(text: str) -> list[str]:
        return [line.rstrip() for line in text.splitlines()]

    assert lines(capsys.readouterr().out) == lines(shown)
