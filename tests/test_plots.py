"""The data of plots, without drawing; and that each kind of file is written."""

from __future__ import annotations

import pytest

from costmodel import InputError
from planner.candidates import candidates
from planner.plots import draw_pareto, pareto_data


@pytest.fixture(scope="module")
def priced():
    return candidates("torchvision:mobilenet_v3_small", resolution=96)


def test_the_frontier_is_what_nothing_beats(priced):
    data = pareto_data(priced)
    assert len(data) == sum(candidate.recovery.value is not None for candidate in priced)
    for row in data.itertuples():
        beaten = (
            (data["peak_bytes"] <= row.peak_bytes)
            & (data["recovery"] >= row.recovery)
            & ((data["peak_bytes"] < row.peak_bytes) | (data["recovery"] > row.recovery))
        ).any()
        assert row.frontier == (not beaten)
    assert data["peak_bytes"].is_monotonic_increasing


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_every_kind_of_file_is_written(priced, tmp_path, suffix, start):
    path = tmp_path / f"pareto{suffix}"
    draw_pareto(priced, path, ram_bytes=20_000_000)
    assert path.read_bytes().startswith(start)


def test_another_kind_of_file_is_refused(priced, tmp_path):
    with pytest.raises(InputError, match=r"must end in \.png, \.svg, \.pdf"):
        draw_pareto(priced, tmp_path / "pareto.txt")
