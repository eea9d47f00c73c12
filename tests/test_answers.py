"""Answers stay what they were: 500 questions drawn at random, every number of each answer, moment by moment."""

from __future__ import annotations

import pytest
from answers import COUNT, answer, ask, question, read

CASES = read()


def test_the_cases_are_all_there():
    assert len(CASES) == COUNT
    assert len({case["model"] for case in CASES}) > 20
    assert len({case["method"] for case in CASES}) == 13


@pytest.mark.parametrize("row", CASES, ids=lambda row: f"{row['model']}-{row['method']}-{row['accounting']}")
def test_the_answer_is_what_it_was(row):
    found = {name: str(value) for name, value in answer(ask(question(row))).items()}
    assert found == {name: row[name] for name in found}
