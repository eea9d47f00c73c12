"""A short run of benchmarks/fuzz.py, and that it finds what it looks for."""

from __future__ import annotations

import random

import fuzz
import pytest
from fuzz import READERS, chunk, damaged, judge_file, judge_line

from costmodel import InputError


@pytest.mark.parametrize("kind", ["line", *READERS])
def test_no_findings(kind, monkeypatch):
    monkeypatch.setattr("sys.argv", ["fuzz"])
    found, _ = chunk(kind, 1_000_000, 40)
    assert len(found) == 40 and {one.verdict for one in found} - {"exit 0"}
    assert [(one.number, one.finding) for one in found if one.finding] == []


def test_cases_are_those_of_their_numbers():
    known = list(fuzz.commands())
    assert fuzz.line(7, known) == fuzz.line(7, known) != fuzz.line(8, known)
    assert {words[0] for _, words, _ in known} >= {"footprint", "recommend", "measure", "plot"}
    assert damaged(b"abc 12", random.Random(1)) == damaged(b"abc 12", random.Random(1))


def fails(error):
    def read(_):
        raise error

    return read


@pytest.mark.parametrize(
    ("reader", "verdict", "said"),
    [
        (fails(InputError("one line")), "refused", ""),
        (fails(InputError("two\nlines")), "refused", "not one line"),
        (fails(KeyError("x")), "leaked", "KeyError"),
        (fails(AssertionError("101 %")), "accepted", "nonsense was accepted: 101 %"),
        (lambda _: None, "read", ""),
    ],
)
def test_a_file_is_judged_by_what_comes_of_it(monkeypatch, reader, verdict, said):
    monkeypatch.setitem(READERS, "csv", reader)
    found, finding = judge_file("csv", b"")
    assert found == verdict and (said in finding if said else not finding)


@pytest.mark.parametrize(
    ("main", "said"),
    [
        ("print('nan'); sys.exit(0)", "'nan' in the answer"),
        ("sys.stderr.write('error: a\\nerror: b\\n'); sys.exit(2)", "2 lines of error"),
        ("sys.exit(5)", "exit code 5"),
        ("sys.stderr.write('error: s3cret\\n'); sys.exit(3)", "a password"),
        ("1 / 0", "ZeroDivisionError"),
        ("print('banana, 1 %'); sys.exit(0)", ""),
        ("sys.stderr.write('error: a\\n'); sys.exit(2)", ""),
    ],
)
def test_a_line_is_judged_by_what_comes_of_it(monkeypatch, main, said):
    class Program:
        @staticmethod
        def main():
            exec(f"import sys; {main}")

    monkeypatch.setitem(fuzz.PROGRAMS, "planner", Program)
    monkeypatch.setattr("sys.argv", ["fuzz"])
    _, finding = judge_line(["planner", "x"])
    assert said in finding if said else finding == ""
