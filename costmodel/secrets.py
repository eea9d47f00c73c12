"""Passwords of databases: out of all that is shown or stored.

A location is shown by what is known to be harmless (scheme, user, host, port, database), not by leaving out what is
known to be secret. Texts of other programs, such as a driver's errors, are searched for the secrets themselves.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote_plus

HIDDEN = "***"
# Source: libpq's environment variables (PostgreSQL manual, 34.15); the password file's name is no secret.
_VARIABLES = ("PGPASSWORD",)
# Parameters of a connection that may be shown (PostgreSQL manual, 34.1.2).
_HARMLESS = {"host", "hostaddr", "port", "dbname", "user", "service", "sslmode", "mode", "uri"}
# A scheme begins where a word does: tried from every letter of a long text, it would take the square of its length.
_SCHEME = re.compile(r"(?<![A-Za-z0-9+.-])[A-Za-z][A-Za-z0-9+.-]*://")
_URL = re.compile(rf"{_SCHEME.pattern}[^\s'\"`<>]*")
# The last @ ends a password, and the first colon begins it: an unescaped @ or / in it is none of the host's.
_PARTS = re.compile(r"(?P<scheme>[^:]*)://(?:(?P<user>[^:@?]*)(?::(?P<password>.*))?@)?(?P<rest>[^@]*)", re.DOTALL)
_ASSIGNED = re.compile(r"(?i)\b((?:ssl|pg)?pass(?:word|wd)?|pwd|secret|token)(\s*[=:]\s*)([^\s&;,'\"]+)")


class _Location(NamedTuple):
    """The parts of a URL. query: the names and values behind the question mark, as they were written."""

    scheme: str
    user: str
    password: str | None
    rest: str
    query: list[tuple[str, str]]


def shown(location: str) -> str:
    """Return a database's name for people and records: a file by its path, a URL without what may be secret."""
    if "://" not in location:
        return location
    parts = _split(location)
    if parts.scheme.partition("+")[0] == "sqlite":
        return parts.rest.removeprefix("/") or location
    password = "" if parts.password is None else f":{HIDDEN}"
    user = f"{parts.user}{password}@" if parts.user or password else ""
    given = [f"{name}={value if name in _HARMLESS else HIDDEN}" for name, value in parts.query]
    return f"{parts.scheme}://{user}{parts.rest}" + (f"?{'&'.join(given)}" if given else "")


def shown_in(text: str) -> str:
    """Return a text, such as a word of a command, with every URL in it as `shown` has it."""
    start = _SCHEME.search(text)
    return text if start is None else text[: start.start()] + shown(text[start.start() :])


def hidden(text: str, locations: Iterable[str] = ()) -> str:
    """Return a text without passwords: those of locations, of this program's arguments and of its environment."""
    found = {os.environ[name] for name in _VARIABLES if os.environ.get(name)}
    for given in (*locations, *sys.argv[1:]):
        found |= _secrets(given)
    for secret in sorted(found, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", HIDDEN, text)
    text = _URL.sub(lambda match: _shown_if_secret(match[0]), text)
    return _ASSIGNED.sub(rf"\1\2{HIDDEN}", text)


def _shown_if_secret(url: str) -> str:
    return url if _split(url).password is None else shown(url)


def _split(location: str) -> _Location:
    front, question, behind = location.partition("?")
    if question and "@" in behind and "=" not in behind.partition("@")[0]:  # the password has a question mark
        front, behind = location, ""
    match = _PARTS.fullmatch(front)
    if match is None:
        return _Location(location.partition("://")[0], "", "", "", [])
    query = [(name, value) for name, _, value in (each.partition("=") for each in behind.split("&") if each)]
    return _Location(match["scheme"], match["user"] or "", match["password"], match["rest"], query)


def _secrets(word: str) -> set[str]:
    """Return what is secret in a word with a URL in it, as it is written and as it is meant."""
    start = _SCHEME.search(word)
    if start is None:
        return set()
    location = word[start.start() :]
    parts = _split(location)
    written = {value for name, value in parts.query if name not in _HARMLESS}
    meant = {value for name, value in parse_qsl("&".join(f"{n}={v}" for n, v in parts.query)) if name not in _HARMLESS}
    written |= {parts.password} if parts.password else set()
    return {each for each in (*written, *meant, *map(unquote_plus, written)) if each}
