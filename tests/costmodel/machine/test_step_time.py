"""The time of a step: its work counted, a fit that finds known times, an error by leaving networks out."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from networks import traced

from costmodel import InputError, Schedule, Step, StepTime, best_schedule, footprint, way
from costmodel.interface.calibrate import in_toml
from costmodel.machine.calibration import KeptStepTime
from costmodel.machine.step_time import Sample, Seconds, fit, leave_networks_out
from costmodel.machine.work import FEATURES, work

NAMES = ("torchvision:mobilenet_v2", "torchvision:mobilenet_v3_small", "timm:mobilenetv2_050", "timm:fbnetc_100")
STEPS = [
    Step(traced(name), way(method, 4 if method == "blocks" else None), batch)
    for name in NAMES
    for method in ("full", "bias", "last", "blocks")
    for batch in (4, 8)
]


def of(step: Step, *feature: str) -> float:
    return work(step)[FEATURES.index(feature)]


def total(
    step: Step, phase: str, measure: str, kinds=("pointwise", "depthwise", "dense", "grouped", "image", "linear")
):
    return sum(of(step, phase, kind, measure) for kind in kinds)


@pytest.mark.parametrize("step", STEPS[:12], ids=lambda step: f"{step.graph.model} {step.way.label} {step.batch}")
def test_its_flops_are_the_footprints(step):
    flops = footprint(step).flops
    assert total(step, "forward", "flops") == flops["forward"]
    assert total(step, "input", "flops") == flops["backward_input"]
    assert total(step, "weight", "flops") == flops["backward_weight"]


def test_what_runs_again_counts_as_forward():
    plain = STEPS[0]
    again = dataclasses.replace(plain, schedule=best_schedule(plain, most_flops=1.33))
    flops = footprint(again).flops
    assert flops["recompute"] > 0
    assert total(again, "forward", "flops") == flops["forward"] + flops["recompute"]


def test_pieces_and_passes_make_more_calls():
    step = Step(STEPS[0].graph, way("blocks", 3, {"norm_statistics": "running"}), 8)
    calls = total(step, "forward", "calls")
    halves = dataclasses.replace(step, schedule=Schedule(micro_batch=4))
    assert total(halves, "forward", "calls") == 2 * calls and of(halves, "pass", "", "calls") == 2
    pieces = dataclasses.replace(step, schedule=Schedule(prefix_batch=1))
    assert calls < total(pieces, "forward", "calls") < 8 * calls
    assert total(pieces, "forward", "flops") == total(step, "forward", "flops")


def samples(noise: float = 0) -> tuple[list[Sample], np.ndarray]:
    """Return steps whose times are made of known ones."""
    draw = np.random.default_rng(0)
    times = draw.uniform(0.5, 1.5, len(FEATURES)) * [{"flops": 1e-11, "bytes": 1e-10}.get(f[2], 1e-5) for f in FEATURES]
    made = []
    for step in STEPS:
        seconds = float(work(step) @ times) * float(np.exp(noise * draw.standard_normal()))
        made.append(Sample(step.graph.model, step.label, work(step), seconds))
    return made, times


def test_a_fit_finds_times_that_explain_the_steps():
    made, _ = samples()
    model = fit(made, "arena", 2, "made up")
    for step, sample in zip(STEPS, made, strict=True):
        found = model.predict(step)
        assert found.kind == "calibrated" and found.value == pytest.approx(sample.seconds, rel=0.02)
        assert found.low <= found.value <= found.high and "4 networks" in found.basis
    assert min(model.coefficients) >= 0


def test_the_error_is_that_of_networks_left_out():
    made, _ = samples(noise=0.1)
    model, left_out = fit(made, "arena", 2, "made up"), leave_networks_out(made)
    errors = [abs(predicted / sample.seconds - 1) for sample, predicted in left_out]
    assert len(left_out) == len(made)
    assert model.median_error == pytest.approx(np.median(errors)) and model.worst_error == pytest.approx(max(errors))
    held = [model.predict(step) for step in STEPS]
    assert held[0].high / held[0].value == pytest.approx(np.exp(model.spread))
    inside = [abs(np.log(predicted / sample.seconds)) <= model.spread for sample, predicted in left_out]
    assert 0.85 <= np.mean(inside) <= 0.95


def test_a_left_out_network_is_not_seen():
    """A network that is ten times as slow as the others is predicted as if it were not."""
    made, _ = samples()
    slow = [
        dataclasses.replace(one, seconds=10 * one.seconds) if one.network == NAMES[0] else one for one in made
    ]  # fmt: skip
    wrong = [predicted / one.seconds for one, predicted in leave_networks_out(slow) if one.network == NAMES[0]]
    assert max(wrong) < 0.25


def test_a_model_is_written_and_read_again():
    model = fit(samples()[0], "tight", 3, "made up")
    kept = KeptStepTime.of(model)
    assert KeptStepTime.model_validate_json(kept.model_dump_json()).step_time == model
    with pytest.raises(InputError, match="unknown feature 'forward magic flops'"):
        StepTime.from_features({"forward magic flops": 1.0}, **kept.model_dump(exclude={"seconds"}))


def test_a_device_file_takes_what_calibrate_prints(tmp_path):
    from planner.devices.device import FOLDER, device

    model = fit(samples()[0], "arena", 4, "steps timed on a board")
    path = tmp_path / "board.toml"
    path.write_text((FOLDER / "template.toml").read_text() + "\n" + in_toml(KeptStepTime.of(model)))
    found = device(path).step_time("arena")
    assert found is not None and device(path).step_time("default") is None
    assert found.predict(STEPS[0]).value == pytest.approx(model.predict(STEPS[0]).value, rel=1e-3)
    assert found.basis.startswith("Source: steps timed on a board")


def test_what_is_said_where_no_time_is_known():
    assert Seconds.would_swap("why").text == "would swap: why" and Seconds.would_swap("why").value is None
    assert Seconds.unknown("why").text == "unknown: why"
    assert Seconds.at_least(0.25, "roofline").text == "250 ms or more (roofline)"
