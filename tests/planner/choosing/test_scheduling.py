"""Way and schedule chosen together: the pick against all combinations, what the answer says of it, and bad input."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from costmodel import PLAIN, InfeasibleError, InputError, Schedule, Step, footprint
from planner import device, recommend
from planner.choosing.axes import axes
from planner.choosing.candidates import price_all, trace_all
from planner.choosing.scheduling import levers

NETWORKS = ("torchvision:mobilenet_v3_small", "zoo:mobilenet_v2_w035")
MOST = 1.33


def test_what_is_picked_costs_what_its_step_costs():
    answer = recommend(NETWORKS[0], 40_000_000, resolution=128)
    cost = footprint(answer.chosen.step)
    names = ("peak_bytes", "saved_bytes", "total_flops", "forward_flops", "backward_flops", "moved_bytes")
    assert {name: getattr(answer.chosen, name) for name in names} == {name: getattr(cost, name) for name in names}
    assert answer.plan.schedule == answer.chosen.step.schedule


def test_levers_add_up_to_the_schedule():
    answer = recommend("torchvision:mobilenet_v2", 64_000_000)
    step = answer.chosen.step
    brought, plainly = levers(step), footprint(replace(step, schedule=PLAIN))
    assert len(brought) >= 2
    assert plainly.peak_bytes + sum(each.bytes for each in brought) == answer.chosen.peak_bytes
    assert plainly.total_flops + sum(each.flops for each in brought) == answer.chosen.total_flops
    assert answer.chosen.total_flops <= MOST * plainly.total_flops
    said = " ".join(answer.reasons)
    assert all(str(each) in said for each in brought)
    assert "without a schedule nothing fits" in said


def test_each_lever_is_named():
    graph = trace_all("torchvision:mobilenet_v2", resolution=64)[0]
    for way, schedule, said in (
        ("bias", Schedule(micro_batch=2), "micro-batches of 2"),
        ("last", Schedule(prefix_batch=1), "frozen layers 1 image at a time"),
        ("last", Schedule(cache="float32"), "frozen layers from a cache"),
        ("full", Schedule(inplace_update=True), "parameters updated in place"),
    ):
        space = axes(methods=way)
        step = replace(price_all([graph], space)[0].step, schedule=schedule)
        assert [each.said for each in levers(step)] == [said]


def test_plainly_and_with_fewer_levers():
    plainly = recommend(NETWORKS[0], 40_000_000, schedules="none")
    assert plainly.chosen.step.schedule == PLAIN and plainly.plainly is None
    better = recommend(NETWORKS[0], 40_000_000)
    assert better.chosen.recovery.value > plainly.chosen.recovery.value
    assert (better.plainly.way, better.plainly.peak_bytes) == (plainly.chosen.way, plainly.chosen.peak_bytes)
    one = recommend(NETWORKS[0], 40_000_000, schedules=["inplace"])
    assert one.chosen.step.schedule in (PLAIN, Schedule(inplace_update=True))
    free = recommend(NETWORKS[0], 40_000_000, most_flops=1.0)
    assert free.chosen.total_flops == footprint(replace(free.chosen.step, schedule=PLAIN)).total_flops


def test_a_cache_is_used_only_where_it_is_named():
    answer = recommend("torchvision:mobilenet_v2", 30_000_000, methods="last")
    assert answer.chosen.step.schedule.cache is None
    named = recommend("torchvision:mobilenet_v2", 30_000_000, methods="last", schedules=["cache", "prefix"])
    assert named.chosen.step.schedule.cache == "float32"
    assert named.chosen.total_flops < 0.01 * answer.chosen.total_flops


def test_a_cache_must_fit_on_the_storage():
    asked = {"methods": ["last", "blocks"], "schedules": ["cache", "prefix", "inplace", "cheap"], "resolution": 96}
    free = recommend("torchvision:mobilenet_v2", 20_000_000, **asked).chosen
    assert free.cache is not None
    enough, too_little = free.cache.bytes_per_image, free.cache.bytes_per_image - 1
    assert (
        recommend("torchvision:mobilenet_v2", 20_000_000, limits={"storage": enough}, **asked).chosen.label
        == free.label
    )
    other = recommend("torchvision:mobilenet_v2", 20_000_000, limits={"storage": too_little}, **asked).chosen
    assert other.cache is None or other.cache.bytes_per_image <= too_little


def test_bad_input_is_refused():
    for more, said in (
        ({"schedules": ["magic"]}, "unknown lever 'magic'"),
        ({"most_flops": 0.5}, "most_flops is 0.5; allowed: 1"),
        ({"most_flops": float("nan")}, "most_flops is nan"),
        ({"most_flops": float("inf")}, "most_flops is inf"),
    ):
        with pytest.raises(InputError, match=said):
            recommend(NETWORKS[0], 40_000_000, **more)
    with pytest.raises(InfeasibleError, match="nothing fits in 1"):
        recommend(NETWORKS[0], 1_000_000)


def test_other_books_have_no_schedules():
    answer = recommend(NETWORKS[0], 200_000_000, accounting="eager")
    assert answer.chosen.step.schedule == PLAIN


def test_json_and_lists(tmp_path):
    from planner import candidates

    answer = json.loads(json.dumps(recommend(NETWORKS[0], 40_000_000, resolution=96).to_dict()))
    assert answer["plan"]["schedule"]["micro_batch"] == 8
    listed = candidates(NETWORKS[0], resolution=96, methods="blocks", most_flops=1.33)
    plainly = candidates(NETWORKS[0], resolution=96, methods="blocks")
    assert all(one.peak_bytes <= other.peak_bytes for one, other in zip(listed, plainly, strict=True))
    assert listed[5].peak_bytes < plainly[5].peak_bytes
    assert Step(plainly[0].step.graph, plainly[0].way) == plainly[0].step


def test_where_nothing_fits_the_change_that_helps_is_named():
    with pytest.raises(InfeasibleError) as refused:
        recommend("torchvision:mobilenet_v2", 25_000_000)
    said = str(refused.value)
    assert "29.4 MB (29409856 bytes)" in said and "what would fit: --resolution 160 (last on" in said
    # What it names fits, and one step less does not.
    assert recommend("torchvision:mobilenet_v2", 25_000_000, resolution=160, methods="last").chosen.peak_bytes <= 25e6
    with pytest.raises(InfeasibleError):
        recommend("torchvision:mobilenet_v2", 25_000_000, batch=1, methods="last")
    with pytest.raises(InfeasibleError, match="runs without Python"):
        recommend("torchvision:mobilenet_v2", 300_000, device=device("stm32f746"))
