"""Plans: saved, loaded, applied to the real network, and refused where they do not belong."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import build

from costmodel import InputError, Schedule, footprint, restore, way
from planner.choosing.plan import Plan
from planner.choosing.recommend import recommend

MODEL = "torchvision:mobilenet_v3_small"


@pytest.fixture(scope="module")
def plan() -> Plan:
    return recommend(MODEL, 25_000_000, resolution=64, frozen_dtype=["float32", "float16"]).plan


def test_a_saved_plan_is_the_same_and_holds_the_pick(plan, tmp_path):
    path = tmp_path / "plan.json"
    plan.save(path)
    assert Plan.load(path) == plan
    answer = recommend(MODEL, 25_000_000, resolution=64, frozen_dtype=["float32", "float16"])
    assert (plan.way, plan.schedule, plan.peak_bytes) == (
        answer.chosen.way, answer.chosen.step.schedule, answer.chosen.peak_bytes,
    )  # fmt: skip
    assert set(Plan.model_fields) == set(json.loads(path.read_text()))
    assert footprint(plan.step(answer.chosen.step.graph)).peak_bytes == plan.peak_bytes


def test_apply_trains_what_was_planned_and_keeps_as_many_bytes(plan):
    from costmodel.checking.measuring import saved_bytes

    model = plan.apply(build(MODEL)).train()
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trained == plan.trained_parameters
    assert saved_bytes(model, torch.randn(plan.micro_batch, 3, 64, 64)) == plan.saved_bytes
    assert type(restore(model)).__name__ == "MobileNetV3"


def test_a_plan_for_another_network_is_refused_with_the_reason(plan):
    with pytest.raises(
        InputError, match=r"the plan is for torchvision:mobilenet_v3_small with 1000 classes, 2,542,856"
    ):
        plan.apply(build("timm:tinynet_e"))
    other_head = build(MODEL)
    other_head.classifier[3] = torch.nn.Linear(1024, 10)
    with pytest.raises(InputError, match="plan for this network"):
        plan.apply(other_head)
    assert all(parameter.requires_grad for parameter in other_head.parameters())


def test_a_method_that_only_has_a_price_is_refused(plan):
    with warnings.catch_warnings(), pytest.raises(InputError, match="can only be priced"):
        plan.model_copy(update={"way": way("back-razor")}).apply(build(MODEL))


def changed(plan: Plan, place: str, value: object) -> dict:
    """Return a plan's JSON with one value changed; place: such as 'network.classes'."""
    written = json.loads(plan.model_dump_json())
    *parts, last = place.split(".")
    inner = written
    for part in parts:
        inner = inner[part]
    inner[last] = value
    return written


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("version", 3, "is a plan of version 3, and this package reads versions 1 and 2"),
        ("batch", 0, "batch: Input should be greater than 0"),
        ("extra", 1, "extra: Extra inputs are not permitted"),
        ("way.method", None, "way: method: Input should be a valid string"),
        ("way.method", "magic", "way: unknown method 'magic'"),
        ("way.blocks", -1, "way: blocks: Input should be greater than 0"),
        ("way.options", {"magic": 1}, "magic"),
        ("way", 3, "way: Input should be a valid dictionary"),
        ("optimizer", "magic", "unknown optimizer 'magic'"),
        ("accounting", "fat", "unknown accounting 'fat'"),
        ("precision.frozen_dtype", "int2", "int2"),
        ("schedule.micro_batch", 3, "micro_batch must divide batch, but 3 does not divide 8"),
        ("schedule.segments", [[0, 3, "magic"]], "unknown mode of a segment 'magic'"),
        ("schedule.segments", [[0, -3, "cheap"]], "schedule: segments"),
        ("schedule.cache", "float8", "unknown type of a cache 'float8'"),
        ("schedule.inplace_update", 1, "schedule: inplace_update"),
        ("promises.saved_bytes", 10**12, "saved_bytes 1,000,000,000,000 are more than peak_bytes"),
        ("promises.peak_bytes", 2**63, "peak_bytes: Input should be less than"),
        ("promises.peak_bytes", -1, "peak_bytes: Input should be greater than or equal to 0"),
        ("network.resolution", 10**6, "resolution must be at most 4,096"),
    ],
)
def test_a_bad_file_is_one_line(plan, tmp_path, place, value, said):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(changed(plan, place, value)))
    with pytest.raises(InputError, match=said) as refused:
        Plan.load(path)
    assert "\n" not in str(refused.value) and str(path) in str(refused.value)


def test_a_plan_of_version_1_is_read(plan, tmp_path):
    """The format that had everything side by side."""
    told = plan.promises.model_dump()
    expected = {name: told.pop(name) for name in [*told] if name.startswith(("recovery", "accuracy"))}
    old = {
        **plan.network.model_dump(), **plan.way.to_dict(), **plan.precision.to_dict(), **told,
        "version": 1, "made_with": plan.made_with, "batch": 8, "micro_batch": 8, "inplace_update": False,
        "optimizer": plan.optimizer, "accounting": plan.accounting,
        "expected": expected | {"kind": plan.evidence.kind, "rests_on": plan.evidence.rests_on},
    }  # fmt: skip
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(old))
    read = Plan.load(path)
    assert read.model_copy(update={"evidence": plan.evidence, "schedule": plan.schedule}) == plan
    assert read.schedule == Schedule()
    path.write_text(json.dumps(old | {"micro_batch": 3}))
    with pytest.raises(InputError, match="3 does not divide 8"):
        Plan.load(path)


def test_a_schedule_of_another_network_is_refused(plan):
    other = plan.model_copy(update={"schedule": Schedule(segments=((5, 6, "recompute"),))})
    with pytest.raises(InputError, match=r"the schedule is of another network|keep nothing for"):
        other.apply(build(MODEL))


@pytest.mark.parametrize(
    ("name", "value"), [("recovery", "NaN"), ("recovery_low", "-Infinity"), ("accuracy_percent", "101"),
                        ("accuracy_low_percent", "-1"), ("accuracy_high_percent", "NaN")],
)  # fmt: skip
def test_expectations_that_cannot_be_are_refused(plan, tmp_path, name, value):
    path = tmp_path / "plan.json"
    written = json.loads(plan.model_dump_json())
    written["promises"][name] = "HERE"
    path.write_text(json.dumps(written).replace('"HERE"', value))
    with pytest.raises(InputError, match=rf"promises\.{name}: Input should be"):
        Plan.load(path)


def test_a_plan_that_cannot_be_applied_is_not_saved(tmp_path):
    only_priced = recommend(MODEL, 64_000_000, resolution=64, methods="sparse-update").plan
    with pytest.raises(InputError, match="'sparse-update' can only be priced, so its plan could not be applied"):
        only_priced.save(tmp_path / "plan.json")
    assert not (tmp_path / "plan.json").exists()


@given(st.binary(max_size=60))
def test_no_garbage_is_a_plan(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("plans") / "plan.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is not a plan"):
        Plan.load(path)


def test_files_that_cannot_be_read_or_written(plan, tmp_path):
    with pytest.raises(InputError, match="cannot read the plan"):
        Plan.load(tmp_path / "none.json")
    with pytest.raises(InputError, match="cannot write the plan"):
        plan.save(tmp_path / "none" / "plan.json")
