"""Answers as JSON or CSV, for programs."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any


def for_programs(answer: Any, rows: Sequence[Mapping[str, Any]], as_json: bool, as_csv: bool) -> bool:
    """Print an answer as JSON, or its rows as CSV, where one of them is asked for; return whether it is.

    Values of a row that are not plain numbers or texts, such as lists, are written as JSON.
    """
    if as_json:
        print(json.dumps(answer, indent=2))
    elif as_csv:
        names = dict.fromkeys(name for row in rows for name in row)
        writer = csv.DictWriter(sys.stdout, list(names), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({name: json.dumps(v) if isinstance(v, (dict, list)) else v for name, v in row.items()})
    return as_json or as_csv


def flat(answer: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return an answer in one row: what is nested gets names such as `memory_bytes.peak`."""
    row: dict[str, Any] = {}
    for name, value in answer.items():
        row |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return row
