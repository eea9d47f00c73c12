"""Passwords: in nothing that is shown, however they are given."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodel.secrets import hidden, shown, shown_in

SHOWN = {
    "runs.db": "runs.db",
    "sqlite:///runs.db": "runs.db",
    "sqlite:////var/runs.db": "/var/runs.db",
    "postgresql://me:s3cret@host/runs": "postgresql://me:***@host/runs",
    "postgresql+psycopg://me:s3cret@host:5432/runs": "postgresql+psycopg://me:***@host:5432/runs",
    "postgresql://me@host/runs": "postgresql://me@host/runs",
    "postgresql://host/runs": "postgresql://host/runs",
    "postgresql://me@/runs?host=/tmp": "postgresql://me@/runs?host=/tmp",
    "postgresql://host/runs?user=me&password=s3cret": "postgresql://host/runs?user=me&password=***",
    "postgresql://host/runs?sslpassword=s3cret&sslkey=s3cret": "postgresql://host/runs?sslpassword=***&sslkey=***",
    "postgresql://me:s3cret@h@st/runs": "postgresql://me:***@st/runs",
    "postgresql://me:s3cret/s3cret@host/runs": "postgresql://me:***@host/runs",
    "postgresql://me:s3cret?s3cret@host/runs": "postgresql://me:***@host/runs",
    "postgresql://me:s3cret@host:port/runs": "postgresql://me:***@host:port/runs",
}


@pytest.mark.parametrize("location", SHOWN)
def test_a_location_is_shown_without_what_may_be_secret(location):
    assert shown(location) == SHOWN[location]
    assert shown_in(f"--storage={location}") == f"--storage={SHOWN[location]}" or "://" not in location


@pytest.mark.parametrize("location", [each for each in SHOWN if "s3cret" in each])
def test_texts_of_others_are_searched_for_the_secrets(location, monkeypatch):
    for text in (f"cannot reach {location}.", "password=s3cret host=h", location):
        assert "s3cret" not in hidden(text, [location])
        monkeypatch.setattr(sys, "argv", ["planner", f"--storage={location}"])
        assert "s3cret" not in hidden(text)
        monkeypatch.setattr(sys, "argv", ["planner"])


def test_a_password_that_a_driver_repeats_is_hidden():
    for location in ("postgresql://me:s3cret@host/runs", "postgresql://host/runs?password=s3cret"):
        assert hidden("authentication by 's3cret' failed", [location]) == "authentication by '***' failed"
    assert "p@ss" not in hidden("'p@ss' and 'p%40ss'", ["postgresql://me:p%40ss@host/runs"])


def test_a_password_of_the_environment_is_hidden(monkeypatch):
    monkeypatch.setenv("PGPASSWORD", "s3cret")
    assert hidden("the server said: s3cret is wrong") == "the server said: *** is wrong"
    assert hidden("no_s3crets here") == "no_s3crets here"


def test_other_texts_stay_as_they_are():
    for text in ("see https://example.org/a?b=c", "torchvision:mobilenet_v2", "64 % of 3 x 3", "path/file.py:make"):
        assert hidden(text) == text


PASSWORD = st.text(st.characters(codec="ascii", categories=("L", "N", "P", "S")), min_size=1, max_size=12)


@given(PASSWORD.filter(lambda text: not set(text) & set("@#%?&+'\"`<>/\\")))
def test_no_password_is_shown(password):
    """Any password that a URL can hold as it is: none of its text is left where it stood."""
    assert shown(f"postgresql://me:{password}@host/runs") == "postgresql://me:***@host/runs"
    assert shown(f"postgresql://host/runs?password={password}") == "postgresql://host/runs?password=***"
    location = f"postgresql://me:{password}@host/runs"
    assert hidden(f"error: {location}", [location]).endswith("host/runs")
    assert f":{password}@" not in hidden(f"error: {location}", [location]).replace(":***@", "")
