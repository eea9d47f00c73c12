"""Files from outside: only regular ones, within their kind's limit, and one line for all others."""

from __future__ import annotations

import os
import socket

import pytest

from costmodel import InputError, LayerGraph
from costmodel.reading import MOST_BYTES, check_file, read_file
from planner.choosing.plan import Plan
from planner.devices.device import device
from planner.evidence import load


def test_a_file_is_read_up_to_its_limit(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"12345678")
    monkeypatch.setitem(MOST_BYTES, "plan", 8)
    assert read_file(path, "plan") == b"12345678" and check_file(path, "plan") is None
    monkeypatch.setitem(MOST_BYTES, "plan", 7)
    for look in (read_file, check_file):
        with pytest.raises(InputError, match="it is larger than 7 bytes"):
            look(path, "plan")


def test_a_file_that_hides_its_size_ends_too(monkeypatch):
    monkeypatch.setitem(MOST_BYTES, "plan", 16)
    assert os.stat("/proc/self/status").st_size == 0
    with pytest.raises(InputError, match="it is larger than 16 bytes"):
        read_file("/proc/self/status", "plan")


def make(folder, kind):
    """Return a path at which there is no file that can be read."""
    path = folder / f"{kind}.toml"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "broken":
        path.symlink_to(folder / "nowhere")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "socket":
        os.chdir(folder)  # a socket's path is short
        socket.socket(socket.AF_UNIX).bind(path.name)
    return {"device": "/dev/zero", "nul": f"{folder}/a\0b.toml"}.get(kind, str(path))


BAD = {
    "folder": "it is a folder", "fifo": "it is not a regular file", "device": "it is not a regular file",
    "broken": "No such file", "loop": "Too many levels", "nul": "null byte", "none": "No such file",
    "socket": "No such device",
}  # fmt: skip
READERS = {
    "plan": Plan.load, "device": lambda path: device(f"{os.path.dirname(path)}/{os.path.basename(path)}"),
    "evidence": load, "trace": LayerGraph.load,
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, monkeypatch, kind, reader):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=BAD[kind]) as error:
        READERS[reader](make(tmp_path, kind))
    assert "\n" not in str(error.value)
