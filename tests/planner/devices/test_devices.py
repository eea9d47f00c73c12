"""Devices: every number has a source, the arithmetic, the roofline, and one clear line for what is not a device."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from repository import ROOT

from costmodel import InputError
from planner.devices.device import FOLDER, Device, device, device_names

ASKED_FOR = {
    "raspberry-pi-zero-2w", "raspberry-pi-3b-plus", "raspberry-pi-4-1gb", "raspberry-pi-4-2gb", "raspberry-pi-4-4gb",
    "raspberry-pi-4-8gb", "raspberry-pi-5-8gb", "jetson-nano", "jetson-orin-nano", "google-pixel-8", "stm32f746",
    "stm32h743", "esp32-s3",
}  # fmt: skip
MICROCONTROLLERS = {"stm32f746", "stm32h743", "esp32-s3"}
TEMPLATE = Path(str(files("planner.devices"))) / "template.toml"


def numbers(table: dict, where: str = "") -> list[tuple[str, dict]]:
    """Return every number or amount of a device file, with the table that it stands in."""
    found = []
    for key, value in table.items():
        if isinstance(value, dict):
            found += numbers(value, f"{where}{key}.")
        elif not isinstance(value, str) or key == "bytes":
            found.append((f"{where}{key}", table))
    return found


# --- the files --------------------------------------------------------------------------------------------------------


def test_the_devices_asked_for_are_there():
    assert set(device_names()) >= ASKED_FOR
    assert "template" not in device_names()


@pytest.mark.parametrize("name", [*device_names(), "template"])
def test_every_number_has_a_source(name):
    table = tomllib.loads((FOLDER / f"{name}.toml").read_text())
    found = numbers(table)
    assert len(found) >= 4
    for where, holder in found:
        assert holder.get("source", "").startswith(("Source: ", "Assumption: ")), where
    assert len(device(TEMPLATE if name == "template" else name).quantities()) == len(found)


@pytest.mark.parametrize("name", device_names())
def test_devices_are_plausible(name):
    """Within what one can check without a source: units that are off by a thousand show."""
    board = device(name)
    small = name in MICROCONTROLLERS
    assert (board.runtime == "bare metal") == small == (board.process is None) == (board.flash is not None)
    assert 0 < board.training_ram_bytes < board.ram.bytes
    low, high = (2**18, 2**21) if small else (2**29, 2**35)
    assert low <= board.ram.bytes <= high
    low, high = (1e8, 1e9) if small else (1e10, 1e13)
    assert low <= board.peak.flops_per_second <= high
    # Between 1 and 100 FLOPs per byte from memory: less for RAM on the chip.
    assert 0.1 <= board.peak.flops_per_second / board.bandwidth.bytes_per_second <= 100
    assert "\n" not in board.explain()
    assert all("\n" not in text and "  " not in text for row in board.quantities() for text in row)


def test_more_ram_leaves_more():
    for family in ("raspberry-pi-4", "raspberry-pi-5"):
        boards = sorted(
            (device(name) for name in device_names() if name.startswith(family)), key=lambda board: board.ram.bytes
        )
        left = [board.training_ram_bytes for board in boards]
        assert len(left) == 4 and left == sorted(set(left))
        assert len({board.peak for board in boards}) == len({board.bandwidth for board in boards}) == 1


def test_process_is_what_was_measured():
    """The device files and the template repeat the figure of the benchmark's table, which varies a bit."""
    table = ROOT / "benchmarks" / "results" / "process_memory.md"
    line = next(line for line in table.read_text().splitlines() if "`process` of the device files" in line)
    measured = pytest.approx(1e6 * float(line.split("**")[-2]), rel=0.01)
    for name in device_names():
        board = device(name)
        if board.process and board.processor.startswith("CPU"):
            assert board.process.bytes == measured, name
    assert device(TEMPLATE).process.bytes == measured


# --- arithmetic -------------------------------------------------------------------------------------------------------


def test_what_is_left_for_training():
    """512 MiB = 536,870,912; 220.4 MiB = 231,106,150 (rounded down); the process 275,000,000."""
    board = device("raspberry-pi-zero-2w")
    assert board.training_ram_bytes == 536_870_912 - 231_106_150 - 275_000_000 == 30_764_762
    assert board.explain() == (
        "Raspberry Pi Zero 2 W: 537 MB RAM - 231 MB system - 275 MB Python with torch = 30.8 MB for training"
    )
    chip = device("stm32f746")
    assert chip.training_ram_bytes == (320 - 32) * 1024
    assert chip.explain() == (
        "ST STM32F746: 328 kB RAM - 32.8 kB firmware (bare metal, no Python) = 295 kB for training"
    )


def test_roofline_by_hand():
    """32 GFLOP/s and 3.6 GB/s: 64 GFLOPs take 2 s, 36 GB 10 s; the ridge is at 32 / 3.6 = 8.9 FLOPs per byte."""
    board = device("raspberry-pi-zero-2w")
    assert board.step_seconds(64e9, 3.6e9) == 2.0
    assert board.step_seconds(64e9, 36e9) == pytest.approx(10)
    assert board.step_seconds(0, 0) == 0
    assert isinstance(board.step_seconds(10**9, 10**9), float)
    times = board.step_seconds(np.array([64e9, 64e9]), np.array([3.6e9, 36e9]))
    assert times.tolist() == pytest.approx([2, 10])


def test_device_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        device("jetson-nano").ram = None


# --- names and files of one's own -------------------------------------------------------------------------------------


def test_unknown_name_is_one_line_with_the_near_ones():
    with pytest.raises(InputError, match=r"^unknown device 'jetson-nanno'; did you mean 'jetson-nano'") as error:
        device("jetson-nanno")
    assert error.value.exit_code == 2 and "\n" not in str(error.value)
    with pytest.raises(InputError, match="unknown device 'template'"):
        device("template")


def test_device_of_ones_own(tmp_path):
    path = tmp_path / "board.toml"
    path.write_text(TEMPLATE.read_text().replace("2 GiB", "3 GiB"))
    for given_as in (path, str(path)):
        # 3 GiB - 300 MiB - 275 MB
        assert device(given_as).training_ram_bytes == 3 * 2**30 - 300 * 2**20 - 275_000_000


BAD = {
    "unit": ('bytes = "2 GiB"', 'bytes = "2 gigs"', ["ram.bytes = '2 gigs'", "B, KB, MB, GB"]),
    "negative": ('bytes = "2 GiB"', "bytes = -5", ["ram.bytes = -5", "positive"]),
    "truth": ('bytes = "2 GiB"', "bytes = true", ["ram.bytes = True"]),
    "runtime": ('runtime = "python"', 'runtime = "docker"', ["runtime = 'docker'", "'executorch' or 'bare metal'"]),
    "bare metal": ('runtime = "python"', 'runtime = "bare metal"', ["'bare metal' has no [process]"]),
    "too small": ('bytes = "2 GiB"', 'bytes = "400 MiB"', ["nothing is left", "419 MB RAM - 315 MB system"]),
    "missing": ('name = "My board"\n', "", ["lacks 'name'"]),
    "missing source": ('source = "Source: the board\'s data sheet"', "", ["lacks 'ram.source'"]),
    "no source": ('source = "Source: the', 'source = "the', ["ram.source = ", "'Source: ...' or 'Assumption: ...'"]),
    "zero": ("flops_per_second = 57.6e9", "flops_per_second = 0", ["peak.flops_per_second = 0", "greater than 0"]),
    "text": ("flops_per_second = 57.6e9", 'flops_per_second = "1e9"', ["peak.flops_per_second = '1e9'", "number"]),
    "infinite": ("bytes_per_second = 12.8e9", "bytes_per_second = inf", ["bandwidth.bytes_per_second", "finite"]),
    "unknown key": ("[system]", "swap = 1\n[system]", ["unknown key 'ram.swap'", "allowed: source, bytes"]),
    "unknown table": ("[system]", "[gpu]\nx = 1\n[system]", ["unknown key 'gpu'", "allowed: name, processor, runtime"]),
    "no TOML": ("[system]", "[system", ["not a TOML file", "line 13"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_file_is_one_line(case, tmp_path):
    old, new, expected = BAD[case]
    text = TEMPLATE.read_text()
    assert old in text
    path = tmp_path / "board.toml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(InputError) as error:
        device(path)
    message = str(error.value)
    assert "\n" not in message
    for part in ("board.toml", *expected):
        assert part in message


@pytest.mark.parametrize("given_as", ["no/such/board.toml", "board.toml", "planner/", "nul\0.toml"])
def test_file_that_cannot_be_read(given_as):
    with pytest.raises(InputError, match="cannot read the device file") as error:
        device(given_as)
    assert "\n" not in str(error.value)


def test_file_that_is_no_text(tmp_path):
    path = tmp_path / "board.toml"
    path.write_bytes(b"name = \xff")
    with pytest.raises(InputError, match=r"device file .*utf-8"):
        device(path)


def test_a_number_of_thousands_of_digits_is_one_line(tmp_path):
    path = tmp_path / "board.toml"
    path.write_text(f"name = 1{'0' * 5000}")
    with pytest.raises(InputError, match=r"device file .*: not a TOML file: Exceeds the limit"):
        device(path)


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(["1 GiB", "Source: x"])
)
TABLES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=2),
        st.dictionaries(
            st.one_of(st.sampled_from([*Device.model_fields, "bytes", "source", "flops_per_second"]), st.text()), inner
        ),
    ),
    max_leaves=12,
)


@settings(max_examples=50)
@given(key=st.sampled_from([*Device.model_fields, "more\nlines"]), value=TABLES)
def test_any_value_in_any_place_is_a_device_or_one_line(tmp_path_factory, key, value):
    """What TOML can say is put into the template's place; the answer is a sound device or a refusal."""
    from planner.devices import device as module

    table = {**tomllib.loads(TEMPLATE.read_text()), key: value}
    try:
        board = Device.model_validate(table)
    except ValidationError as error:
        message = module._problem(error)
        assert message and "\n" not in message
        return
    assert 0 < board.training_ram_bytes <= board.ram.bytes
    assert all(text for row in board.quantities() for text in row)


@given(st.text(max_size=30))
def test_any_name_is_a_device_or_one_line(name):
    try:
        assert device(name).name
    except InputError as error:
        assert "\n" not in str(error)
