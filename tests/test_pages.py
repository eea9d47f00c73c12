"""README and the pages of the site: every command runs, and prints what stands below it."""

from __future__ import annotations

import re

import pytest
from pages import WIDTH, pages, run_page, same, with_lines
from repository import ROOT

PAGES = {path.relative_to(ROOT).as_posix(): path for path in pages()}


@pytest.mark.parametrize("page", PAGES)
def test_examples_run_and_print_what_the_page_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    for said, printed in run_page(PAGES[page].read_text(encoding="utf-8")):
        assert same(said.text, printed), f"{page}; write it anew with python tests/support/pages.py:\n{printed}"


def test_a_page_that_says_something_else_is_found():
    """The reader should trust `same`: one digit, a line too few or too many are seen; `...` stands for any lines."""
    printed = "peak 12 MB   \nkept 3 MB\nnote\n"
    assert same("peak 12 MB\nkept 3 MB\nnote", printed) and same("peak 12 MB\n...\n", printed) and same("...", printed)
    for wrong in ("peak 13 MB\nkept 3 MB\nnote", "peak 12 MB\nkept 3 MB", f"{printed}more", "kept 3 MB\n...", ""):
        assert not same(wrong, printed)


def test_readme_is_a_first_screen():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    for path in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (ROOT / path).exists(), path


def test_every_question_names_the_line_that_answers_it():
    text = (ROOT / "docs" / "what_you_can_ask.md").read_text(encoding="utf-8")
    again, answers = with_lines(text)
    questions = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| question")]
    assert answers == len(questions) > 20
    assert again == text, "write the lines anew with python tests/support/pages.py"
