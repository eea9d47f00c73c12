"""The process: its sum, the floor and who says it, allocators' policies; what is kept of a machine."""

from __future__ import annotations

import json

import pytest
from networks import traced

from costmodel import POLICIES, Floor, InputError, Kernels, Step, footprint, process_of, way
from costmodel.checking.floor import measure_floors, parse
from costmodel.machine import calibration
from costmodel.machine.process import ASSUMED, library_of

STEP = Step(traced("torchvision:mobilenet_v3_small"), way("mobiletl", 5))
FLOOR = Floor(200_000_000, "measured", "here")


@pytest.mark.parametrize("allocator", POLICIES)
def test_the_sum(allocator):
    found = process_of(STEP, FLOOR, allocator)
    step = footprint(Step(STEP.graph, STEP.way, kernels=Kernels("layers", 2))).peak_bytes
    assert found.step_bytes == step > footprint(STEP).peak_bytes  # kernels need memory beside the layers' own
    assert found.bytes == 200_000_000 + step + round(POLICIES[allocator].most_kept * step)
    assert found.typical_bytes <= found.bytes
    said = found.to_dict()
    assert (said["bytes"], said["allocator"], said["floor"]["kind"]) == (found.bytes, allocator, "measured")
    assert json.loads(json.dumps(said)) == said and allocator in found.text and "measured" in found.text


@pytest.mark.parametrize("allocator", POLICIES)
def test_what_is_left_for_a_step_fits(allocator):
    policy, step = POLICIES[allocator], process_of(STEP, FLOOR, allocator).step_bytes
    budget = process_of(STEP, FLOOR, allocator).bytes
    assert step - 2 <= policy.step_bytes(budget, FLOOR) <= step + 1
    assert policy.step_bytes(FLOOR.bytes, FLOOR) == 0


def test_an_unknown_allocator_is_refused():
    with pytest.raises(InputError, match="unknown allocator 'areno'; did you mean 'arena'"):
        process_of(STEP, FLOOR, "areno")


def test_pages_are_counted_by_kind():
    # two mappings: 8 KiB of a library, 4 of them written; 16 KiB of heap
    text = (
        "7f00-7f10 r-xp 0 00:00 1 /lib/a.so\nRss: 8 kB\nPss: 6 kB\nAnonymous: 4 kB\nReferenced: 2 kB\n"
        "Private_Clean: 1 kB\nPrivate_Dirty: 4 kB\n"
        "7f20-7f30 rw-p 0 00:00 0 [heap]\nRss: 16 kB\nPss: 16 kB\nAnonymous: 16 kB\nReferenced: 16 kB\n"
        "Private_Clean: 0 kB\nPrivate_Dirty: 16 kB\n"
    ).replace(": ", ":   ")
    assert parse(text) == {"anonymous": 20480, "files": 4096, "files_in_use": 2048, "uss": 21504, "pss": 22528}


def test_a_process_here_is_measured():
    found = measure_floors(runs=1, libraries=("torchvision",))
    assert found.keys() == {"torchvision"}
    for floor in found.values():  # a process with torch takes more than an interpreter, and less than a machine has
        assert floor.kind == "measured" and 60e6 < floor.bytes < 3e9 and "torch" in floor.source


# --- what is kept -----------------------------------------------------------------------------------------------------


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COSTMODEL_CACHE", str(tmp_path))
    return tmp_path


def test_nothing_measured_is_assumed(own_cache):
    found = calibration.calibration()
    assert found.floor("torchvision:resnet18") == ASSUMED and found.step_time() is None


def test_what_was_measured_is_found_again(own_cache):
    floors = {"timm": calibration.KeptFloor(bytes=5, kind="measured", source="s")}
    kept = calibration.Calibration(machine=calibration.machine_name(), floors=floors)
    path = calibration.keep(kept)
    assert path.is_relative_to(own_cache) and calibration.calibration() == kept
    assert calibration.calibration().floor("timm:tinynet_e") == Floor(5, "measured", "s")
    assert calibration.calibration().floor("torchvision:resnet18") == ASSUMED


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 2, "machine": "a"}', '{"machine": 1}', "\0"])
def test_a_damaged_file_is_treated_as_missing(own_cache, text):
    path = calibration.path()
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert calibration.calibration().floor("torchvision:resnet18") == ASSUMED


def test_timm_has_a_floor_of_its_own():
    assert [library_of(name) for name in ("timm:tinynet_e", "torchvision:resnet18", "zoo:mcunet_5fps", "a.py:f")] == [
        "timm", "torchvision", "torchvision", "torchvision",
    ]  # fmt: skip
