"""The data of plots, without drawing; and that each kind of file is written."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
from candidates import renamed
from hypothesis import given
from hypothesis import strategies as st
from networks import traced

import costmodel.interface.cli as costmodel_cli
import planner.interface.cli as planner_cli
from costmodel import METHODS, InputError, block_count, footprint
from costmodel.interface.drawing import plot_path
from costmodel.interface.moments import phase_spans, timeline_data
from costmodel.interface.plots import breakdown_data, merged
from costmodel.step.simulation import CATEGORIES
from planner.choosing.candidates import candidates
from planner.estimates.estimated import Kind
from planner.interface.plots import FILLS, draw_pareto, label_offsets, pareto_data, style

MODEL = "torchvision:mobilenet_v3_small"
STARTS = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


@pytest.fixture(scope="module")
def priced():
    return candidates(MODEL, resolution=96)


# --- memory over a step -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "k"), [("full", None), ("mobiletl", 3), ("bias", None)])
def test_a_timeline_is_the_footprints_moments(method, k):
    answer = footprint(traced(MODEL), method, k, optimizer="adam")
    data = timeline_data(answer)
    assert list(data["moment"]) == list(range(len(answer.moments)))
    assert list(zip(data["phase"], data["layer"], strict=True)) == [(m.phase, m.layer) for m in answer.moments]
    parts = data[[f"{category}_bytes" for category in CATEGORIES]]
    assert list(parts.itertuples(index=False, name=None)) == [moment.by_category for moment in answer.moments]
    assert (parts.sum(axis=1) == data["total_bytes"]).all()
    (peak,) = data[data["peak"]].to_dict("records")
    assert peak["total_bytes"] == data["total_bytes"].max() == answer.peak_bytes
    assert (peak["phase"], peak["layer"]) == (answer.peak.phase, answer.peak.layer)


def test_the_phases_of_a_step_follow_one_another():
    once = ["forward", "loss", "backward"]
    for micro_batch, passes in ((8, once), (4, once * 2)):
        data = timeline_data(footprint(traced(MODEL), "full", micro_batch=micro_batch))
        spans = phase_spans(data)
        assert [phase for phase, _, _ in spans] == ["start", *passes, "update", "end"]
        assert [first for _, first, _ in spans] == [0, *(last + 1 for _, _, last in spans[:-1])]
        assert spans[-1][2] == len(data) - 1
        assert all(set(data["phase"][first : last + 1]) == {phase} for phase, first, last in spans)


def test_a_timeline_needs_the_books_of_a_whole_step():
    with pytest.raises(InputError, match=r"'tinytl' leaves parts of a training step out.*; allowed: lean, eager"):
        timeline_data(footprint(traced(MODEL), "full", accounting="tinytl"))


def test_a_breakdown_is_the_memory_at_the_peak():
    answers = [footprint(traced(MODEL), "last"), footprint(traced(MODEL), "mobiletl", 5)]
    data = breakdown_data(answers)
    assert list(data["label"]) == ["last", "mobiletl, k = 5"]
    assert data["blocks"].isna().tolist() == [True, False]
    for row, answer in zip(data.to_dict("records"), answers, strict=True):
        assert {name: row[f"{name}_bytes"] for name in (*CATEGORIES, "peak")} == answer.memory_bytes
        assert (row["phase"], row["layer"]) == (answer.peak.phase, answer.peak.layer)


def test_a_timeline_lasts_as_long_as_its_rooflines():
    """A layer's moments take its FLOPs or 9 times its bytes, whichever is more; a frozen prefix has no backward."""
    answer = footprint(traced(MODEL), "full")
    data = timeline_data(answer)
    assert (data["duration"] >= 0).all() and data["duration"].sum() >= answer.total_flops
    first = answer.graph.layers[0]
    moved = sum(tensor.bytes(8) for tensor in (*first.inputs.values(), *first.outputs))
    flops = answer.to_frame("layer")["forward_flops"][0]
    assert data[data["layer"] == first.name]["duration"].iloc[0] == max(flops, 9 * moved)
    few = timeline_data(footprint(traced(MODEL), "mobiletl", 2))
    times = few.groupby("phase")["duration"].sum()
    assert times["backward"] < times["forward"] and few["duration"].sum() < data["duration"].sum()
    assert times["forward"] == pytest.approx(data.groupby("phase")["duration"].sum()["forward"])


def test_equal_bars_of_a_breakdown_are_one():
    answers = [footprint(traced(MODEL), name) for name in ("last", "full", "last-convs")]
    rows = merged(breakdown_data(answers))
    assert list(rows["label"]) == ["full", "last\nlast-convs, convolutions 2"]
    assert list(rows["peak_bytes"]) == [answers[1].peak_bytes, answers[0].peak_bytes]


@pytest.mark.parametrize("suffix", STARTS)
@pytest.mark.parametrize(
    ("kind", "drawn"),
    [("timeline", ["full", "mobiletl, k = 2", "mobiletl, k = 4"]), ("breakdown", ["full", "mobiletl, k = 2"])],
)
def test_plot_commands_write_every_kind_of_file(command, tmp_path, kind, drawn, suffix):
    path = tmp_path / f"plot{suffix}"
    depths = [text.partition(" = ")[2] for text in drawn if "=" in text]
    given = ["--method", "full", "--method", "mobiletl", *(word for k in depths for word in ("--blocks", k))]
    code, out, err = command("plot", kind, MODEL, *given, "--resolution", "96", "--out", str(path))
    assert (code, out, err) == (0, f"wrote {path}\n", "")
    assert path.read_bytes().startswith(STARTS[suffix])


@pytest.mark.parametrize("model", [MODEL, "timm:test_resnet"])
def test_without_a_method_a_breakdown_has_all_that_apply(command, tmp_path, monkeypatch, model):
    seen = []
    monkeypatch.setattr("costmodel.interface.plots.draw_breakdown", lambda answers, path: seen.extend(answers))
    code, _, err = command("plot", "breakdown", model, "--out", str(tmp_path / "all.svg"))
    assert (code, err) == (0, "")
    names, depth = [answer.method for answer in seen], min(5, block_count(traced(model)))
    assert names == [name for name in METHODS if name in names] and {"full", "last", "blocks"} <= set(names)
    assert model != MODEL or names == list(METHODS)
    assert all(answer.blocks == (depth if METHODS[answer.method].takes_blocks else None) for answer in seen)


# --- memory against accuracy or FLOPs ---------------------------------------------------------------------------------


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


def test_against_flops_the_frontier_counts_recovery_too(priced):
    data = pareto_data(priced, "flops")
    assert len(data) == len(priced)
    for row in data.itertuples():
        as_good = (
            (data["peak_bytes"] <= row.peak_bytes)
            & (data["total_flops"] <= row.total_flops)
            & (data["recovery"] >= row.recovery)
        )
        better = (
            (data["peak_bytes"] < row.peak_bytes)
            | (data["total_flops"] < row.total_flops)
            | (data["recovery"] > row.recovery)
        )
        known = row.recovery == row.recovery
        assert row.frontier == (known and not (as_good & better).any())
    # Promising more for more FLOPs is on it, which memory and FLOPs alone would not show.
    assert data["frontier"].sum() > 2


def test_every_model_keeps_its_place_and_its_own_frontier(priced):
    other = [replace(renamed(candidate, "a:copy"), peak_bytes=candidate.peak_bytes // 2) for candidate in priced]
    data = pareto_data([*priced, *other])
    assert list(dict.fromkeys(data["model"])) == [MODEL, "a:copy"]
    first, second = (data[data["model"] == model].reset_index(drop=True) for model in (MODEL, "a:copy"))
    assert first["frontier"].equals(second["frontier"])


def test_fills_tell_kinds_apart(priced):
    kinds = {"definition": "full", "measured": "full", "interpolated": "dot", "prior": "hollow"}
    assert set(get_args(Kind)) == {*kinds, "unknown"} and set(kinds.values()) == set(FILLS)
    known = [candidate for candidate in priced if candidate.recovery.value is not None]
    made = [replace(known[0], recovery=replace(known[0].recovery, kind=kind)) for kind in kinds]
    assert list(pareto_data(made)["fill"]) == list(kinds.values())
    assert set(pareto_data(priced)["fill"]) == {"full", "hollow"}  # nothing of one's own was given


def test_every_method_has_its_own_look():
    assert len({style(method) for method in METHODS}) == len(METHODS)
    assert len({style(method)[1] for method in METHODS}) == len(METHODS)  # in print without colour, too


coordinates = st.tuples(st.floats(0, 200), st.floats(0, 200))


@given(st.lists(coordinates, max_size=25))
def test_labels_hide_no_mark_and_no_label(points):
    gap, size = 4, (9, 7)
    marks = [(x - gap, y - gap, x + gap, y + gap) for x, y in points]
    offsets = label_offsets(points, [size] * len(points), marks, gap)
    boxes = [
        (x + place[0], y + place[1], x + place[0] + size[0], y + place[1] + size[1])
        for (x, y), place in zip(points, offsets, strict=True)
        if place is not None
    ]
    for number, (left, bottom, right, top) in enumerate(boxes):
        for a, b, c, d in (*marks, *boxes[:number]):
            assert min(right, c) - max(left, a) < 1e-9 or min(top, d) - max(bottom, b) < 1e-9
    if len(points) == 1:
        assert boxes


@pytest.mark.parametrize("against", ["recovery", "flops"])
@pytest.mark.parametrize("suffix", STARTS)
def test_every_kind_of_file_is_written(priced, tmp_path, suffix, against, recwarn):
    path = tmp_path / f"pareto{suffix}"
    draw_pareto(priced, path, ram_bytes=20_000_000, against=against)
    assert path.read_bytes().startswith(STARTS[suffix])
    assert not list(recwarn)


def test_a_plot_shows_models_methods_depths_and_the_budget(priced, tmp_path):
    other = [renamed(candidate, "a:copy") for candidate in priced]
    path = tmp_path / "pareto.svg"
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none"}):  # text as text, not as outlines
        draw_pareto([*priced, *other], path, ram_bytes=20_000_000)
    text = path.read_text()
    for shown in (
        MODEL,
        "a:copy",
        "mobiletl",
        "frontier",
        "interval",
        FILLS["full"],
        FILLS["hollow"],
        "budget, 20.0 MB",
    ):
        assert f">{shown}<" in text, shown
    assert "unknown: tinytl-b, tinytl-l, tinytl-lb<" in text
    assert all(text.count(f">{k}</text>") >= 2 for k in ("1", "5", "11"))  # one in each panel, or more


def test_another_axis_is_refused(priced, tmp_path):
    with pytest.raises(InputError, match="unknown axis 'energy'"):
        draw_pareto(priced, tmp_path / "pareto.png", against="energy")


def test_without_a_known_accuracy_there_is_nothing_to_plot(priced, tmp_path):
    with pytest.raises(InputError, match="no candidate has a known accuracy"):
        draw_pareto([c for c in priced if c.recovery.value is None], tmp_path / "pareto.png")


# --- files ------------------------------------------------------------------------------------------------------------


@given(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), max_size=20))
def test_another_kind_of_file_is_refused(name):
    if name.lower().endswith((".png", ".svg", ".pdf")):
        return
    with pytest.raises(InputError, match=r"must end in \.png, \.svg, \.pdf"):
        plot_path(name)


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (planner_cli.main, ["pareto", "x", "--out", "p.txt"], "its name must end in .png, .svg, .pdf"),
        (planner_cli.main, ["pareto", "x", "--html", "p.png"], "its name must end in .html"),
        (planner_cli.main, ["pareto", "x"], "nothing to write; give --out"),
        (planner_cli.main, ["pareto", "x", "--out", "no/such/p.png"], "there is no folder 'no/such'"),
        (costmodel_cli.main, ["plot", "timeline", "x", "--out", "p.txt"], "its name must end in .png, .svg, .pdf"),
        (costmodel_cli.main, ["plot", "breakdown", "x", "--out", "p"], "its name must end in .png, .svg, .pdf"),
        (costmodel_cli.main, ["plot", "breakdown", "x", "--method", "ful", "--out", "p.png"], "unknown method 'ful'"),
        (costmodel_cli.main, ["plot", "timeline", MODEL, "--method", "blocks", "--blocks", "99", "--out", "p.png"],
         "99"),
        (costmodel_cli.main, ["plot", "timeline", MODEL, "--accounting", "tinytl", "--out", "p.png"], "allowed: lean"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_before_anything_is_traced(command, tmp_path, monkeypatch, main, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = command(*arguments, main=main)
    assert (code, out) == (2, "") and err.count("\n") == 1 and err.startswith("error: ") and message in err
    assert not list(tmp_path.iterdir())


def test_a_folder_in_the_files_place_is_one_line(priced, tmp_path):
    (tmp_path / "pareto.png").mkdir()
    with pytest.raises(InputError, match="cannot write"):
        draw_pareto(priced, tmp_path / "pareto.png")
