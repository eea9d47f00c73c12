"""Numbers to text and back: the only conversions there are."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from costmodel import InputError
from costmodel.units import BYTES_PER_ELEMENT, bytes_of_bits, format_bytes, format_count, parse_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("64MB", 64_000_000),
        ("64 mb", 64_000_000),
        ("64MiB", 64 * 2**20),
        ("1.5 GiB", 3 * 2**29),
        ("0.5kB", 500),
        ("300000", 300_000),
        ("1e6", 1_000_000),
        ("2e3 kB", 2_000_000),
        (".5 MB", 500_000),
        (512, 512),
        ("7B", 7),
        (" 8 GB ", 8 * 10**9),
    ],
)
def test_sizes_that_can_be_read(text, expected):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize(
    "text",
    ["64 bananas", "", "MB", "-64MB", "0", "0MB", "0.4 B", "64 M B", "6_4MB", "64MBit", "nan", "inf", "1e999 GB",
     "1e400", "9e999999999", "64,5MB", "½ MB", "٣MB", "0x10", "--", "64\nMB\nMB"],
)  # fmt: skip
def test_sizes_that_cannot_be_read(text):
    with pytest.raises(InputError) as error:
        parse_bytes(text)
    message = str(error.value)
    assert "\n" not in message and "MB" in message and repr(text) in message


@given(st.integers(1, 10**12))
@example(201)
def test_bytes_read_back_exactly(count):
    assert parse_bytes(str(count)) == count
    assert parse_bytes(f"{count} KiB") == 1024 * count
    assert parse_bytes(f"{count}kb") == 1000 * count
    # Not through a float: 2.01 x 1e6 would be 2009999.9999999998.
    assert parse_bytes(f"{count // 100}.{count % 100:02} MB") == 10_000 * count


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_an_input_error(text):
    try:
        assert parse_bytes(text) >= 1
    except InputError as error:
        assert "\n" not in str(error)


@given(st.integers(0, 10**16))
def test_text_of_bytes_is_within_half_a_percent(count):
    text = format_bytes(count)
    if count:
        number, unit = text.replace(",", "").split()
        factor, unit = (1000, "GB") if unit == "TB" else (1, unit)
        assert factor * parse_bytes(f"{number} {unit}") == pytest.approx(count, rel=5.1e-3)
    assert len(text.split()[0].replace(",", "").replace(".", "")) >= min(3, len(str(count)))


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (12_345, "12.3 kB"), (64_000_000, "64.0 MB"),
        (999_499, "999 kB"), (999_500, "1.00 MB"), (9_995, "10.0 kB"), (99_950, "100 kB"), (10**15, "1,000 TB"),
    ],
)  # fmt: skip
def test_text_of_bytes(count, text):
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (999, "999"), (3_504_872, "3.50 M"), (601_548_544, "602 M"), (4.81e9, "4.81 G")]
)
def test_text_of_counts(count, text):
    assert format_count(count) == text


@given(st.integers(0, 10**9))
def test_bits_are_packed_into_whole_bytes(bits):
    size = bytes_of_bits(bits)
    assert 8 * (size - 1) < bits <= 8 * size or bits == size == 0


def test_element_sizes_are_torchs():
    import torch

    for name, size in BYTES_PER_ELEMENT.items():
        assert torch.empty((), dtype=getattr(torch, name)).element_size() == size
