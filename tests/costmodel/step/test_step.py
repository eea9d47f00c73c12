"""Steps, schedules and precisions as values: checked once, with a label, written and read in one place."""

from __future__ import annotations

import json

import pytest
from networks import traced

from costmodel import InputError, Precision, Schedule, Step, Way, footprint, precision_from, schedule_from

SMALL = "zoo:mcunet_5fps"


def test_a_step_is_priced_as_its_short_form():
    graph = traced(SMALL)
    step = Step(graph, Way("mobiletl", 2), 6, Schedule(2), Precision("float32", "int8", "bfloat16"), "adam", "eager")
    short = footprint(
        graph, "mobiletl", 2, 6, "adam", "eager", micro_batch=2, frozen_dtype="int8", activation_dtype="bfloat16"
    )
    assert footprint(step).step == short.step == step
    assert footprint(step).to_dict() == short.to_dict() and footprint(step).moments == short.moments
    with pytest.raises(InputError, match="a Step says everything itself"):
        footprint(step, "bias")


def test_labels_for_people():
    graph = traced(SMALL)
    assert Step(graph).label == "batch 8, 224x224, 1000 classes, sgd, accounting lean"
    step = Step(graph, batch=6, schedule=Schedule(2), precision=Precision(frozen="int8"), optimizer="adam")
    assert step.label == (
        "batch 6, in micro-batches of 2, 224x224, 1000 classes, adam, accounting lean, frozen weights in int8"
    )
    assert Schedule(inplace_update=True).label(8) == "updated in place" and not Schedule(8).label(8)
    assert not Precision().label


@pytest.mark.parametrize(
    "step", [{}, {"schedule": Schedule(2)}, {"schedule": Schedule(inplace_update=True)},
             {"precision": Precision(frozen="float16", activations="bfloat16")}], ids=str
)  # fmt: skip
def test_what_is_written_is_read_back(step):
    step = Step(traced(SMALL), **step)
    saved = json.loads(json.dumps(step.to_dict()))
    assert schedule_from(saved) == step.schedule and precision_from(saved) == step.precision
    assert (saved["model"], saved["batch"], saved["micro_batch"]) == (SMALL, 8, step.micro_batch)
    assert schedule_from({}) == Schedule() and precision_from({}) == Precision()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda graph: Step(graph, batch=0), "batch must be a whole number of 1 or more, not 0"),
        (lambda graph: Step(graph, batch=True), "batch must be a whole number of 1 or more, not True"),
        (lambda graph: Step(graph, schedule=Schedule(3)), "micro_batch must divide batch, but 3 does not divide 8"),
        (lambda graph: Step(graph, schedule=Schedule(4, True)), "inplace_update frees each gradient at once"),
        (lambda graph: Step(graph, optimizer="adan"), "unknown optimizer 'adan'; did you mean 'adam'"),
        (lambda graph: Step(graph, accounting="leen"), "unknown accounting 'leen'; did you mean 'lean'"),
        (lambda graph: Schedule(0), "micro_batch must be a whole number of 1 or more, not 0"),
        (lambda graph: Precision(frozen="int4"), "unknown dtype of frozen weights 'int4'"),
        (lambda graph: Precision(activations="int8"), "unknown activation dtype 'int8'"),
        (lambda graph: Precision(weights="float16"), "unknown dtype of trained weights 'float16'"),
    ],
)  # fmt: skip
def test_what_does_not_exist_or_fit_is_refused_in_one_line(make, message):
    with pytest.raises(InputError, match=message) as error:
        make(traced(SMALL))
    assert "\n" not in str(error.value)
