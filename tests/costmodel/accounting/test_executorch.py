"""The accounting of an exported step: its rules on calls that can be counted by hand."""

from __future__ import annotations

import pytest
from networks import traced

from costmodel import InputError, Schedule, Step, footprint, price, way
from costmodel.accounting.executorch import Program
from costmodel.accounting.lean import LEAN
from costmodel.step.simulation import CATEGORIES


def most(program: Program) -> int:
    """Return the most bytes at one moment."""
    spans = program.finish()
    return max(sum(size for size, first, last in spans if first <= now <= last) for now in range(len(program.places)))


def test_a_result_of_another_kind_lies_beside_its_operand():
    program = Program()
    program.call(100, program.call(100))
    assert most(program) == 200


def test_an_element_wise_result_takes_the_place_of_what_ends():
    program = Program()
    program.chain(100, program.chain(100, program.call(100)))
    assert most(program) == 100


def test_not_of_what_is_read_later():
    program = Program()
    x = program.call(100)
    y = program.chain(100, x)
    program.call(10, x, y)
    assert most(program) == 210  # x, y and the last


def test_not_of_what_has_another_size():
    program = Program()
    program.chain(100, program.call(40))
    assert most(program) == 140


NETWORK = "torchvision:mobilenet_v2"


@pytest.fixture(scope="module")
def graph():
    return traced(NETWORK, 96)


def test_what_trains_has_a_second_place_beside_the_file(graph):
    found = footprint(graph, "last", batch=4, accounting="executorch")
    head = 1280 * 1000 + 1000  # weights and biases
    assert found.memory_bytes["weights"] == 4 * (graph.parameter_count + head)


@pytest.mark.parametrize(("optimizer", "copies"), [("sgd", 0), ("momentum", 1), ("adam", 2)])
def test_the_optimizer_has_its_state(graph, optimizer, copies):
    found = footprint(graph, "last", batch=4, optimizer=optimizer, accounting="executorch")
    assert found.optimizer_bytes == pytest.approx(copies * 4 * (1280 * 1000 + 1000), abs=8)  # PyTorch's Adam counts


def test_many_prices_are_those_of_single_steps(graph):
    batches = [1, 3, 8, 17]
    found = price(graph, [way("mobiletl", 3)], batches, ["momentum"], accounting="executorch")
    single = [footprint(graph, "mobiletl", 3, batch, "momentum", "executorch").peak_bytes for batch in batches]
    assert found.columns["peak_bytes"].tolist() == single


def test_it_is_never_below_what_must_be_kept(graph):
    """The arena holds what `lean` keeps, so that its largest moment is no smaller."""
    for method, blocks in (("bias", None), ("mobiletl", 5), ("full", None)):
        found = footprint(graph, method, blocks, 8, accounting="executorch")
        arena = sum(found.memory_bytes[name] for name in ("input", "saved_activations", "transient"))
        assert arena >= footprint(graph, method, blocks, 8, accounting=LEAN.name).saved_bytes


def test_schedules_that_cut_the_network_up_are_refused(graph):
    step = Step(graph, way("last"), 8, Schedule(prefix_batch=1), accounting="executorch")
    with pytest.raises(InputError, match="take lean"):
        footprint(step)


def test_every_category_has_its_place(graph):
    found = footprint(graph, "mobiletl", 3, 8, "momentum", "executorch")
    at_peak = dict(zip(CATEGORIES, found.peak.by_category, strict=True))
    assert all(at_peak[name] > 0 for name in ("weights", "buffers", "optimizer"))
    assert at_peak["gradients"] == 0  # a parameter's gradient is gone with its update
