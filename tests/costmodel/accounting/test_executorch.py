"""The accounting of an exported step: its rules on calls that can be counted by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from networks import traced

from costmodel import InputError, Schedule, Step, best_schedule, footprint, price, way
from costmodel.accounting.arena import Program
from costmodel.accounting.executorch import CALL_BYTES
from costmodel.accounting.lean import LEAN
from costmodel.step.simulation import CATEGORIES


def most(program: Program) -> int:
    """Return the most bytes at one moment."""
    spans = program.finish()
    return max(sum(size for size, first, last in spans if first <= now <= last) for now in range(len(program.places)))


def test_a_result_of_another_kind_lies_beside_its_operand():
    program = Program()
    program.leave(program.call(160, program.call(160)))
    assert most(program) == 320


def test_an_element_wise_result_takes_the_place_of_what_ends():
    program = Program()
    program.leave(program.chain(160, program.chain(160, program.call(160))))
    assert most(program) == 160


def test_not_of_what_is_read_later():
    program = Program()
    x = program.call(160)
    y = program.chain(160, x)
    program.leave(program.call(16, x, y))
    assert most(program) == 336  # x, y and the last


def test_not_of_what_has_another_size():
    program = Program()
    program.leave(program.chain(160, program.call(48)))
    assert most(program) == 208


def test_what_nobody_needs_is_not_computed():
    program = Program()
    x = program.call(160)
    program.call(64, program.call(64, x))  # whose result nobody reads
    program.leave(program.call(16, x))
    assert most(program) == 176


NETWORK = "torchvision:mobilenet_v2"


@pytest.fixture(scope="module")
def graph():
    return traced(NETWORK, 96)


def test_weights_lie_in_the_file_or_in_the_state(graph):
    for method in ("last", "full"):
        found = footprint(graph, method, batch=4, accounting="executorch")
        assert found.memory_bytes["weights"] == 4 * graph.parameter_count


def test_calls_take_memory_for_themselves(graph):
    """Eight pieces of one image are six times the calls of the prefix more than two of four."""
    one, four = (
        footprint(Step(graph, way("last"), 8, Schedule(prefix_batch=images), accounting="executorch"))
        for images in (1, 4)
    )
    calls = (one.memory_bytes["buffers"] - four.memory_bytes["buffers"]) / CALL_BYTES
    prefix = sum(not layer.is_view for layer in graph.layers) - 1  # all but the head
    assert calls / 6 == pytest.approx(prefix + 2, abs=2)  # with copies of an image in and of the result out


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


def test_in_flash_what_does_not_change_takes_no_ram(graph):
    """Weights that train, and the statistics of norms that take those of the batch, are all that is left in RAM."""
    linux, flash = (
        footprint(graph, "last", None, 8, accounting=name).memory_bytes for name in ("executorch", "executorch-flash")
    )
    assert flash["weights"] == 4 * (1280 * 1000 + 1000)
    assert linux["weights"] - flash["weights"] == 4 * (graph.parameter_count - 1281_000)
    assert flash["transient"] == linux["transient"] and flash["buffers"] < linux["buffers"]
    full = [footprint(graph, "full", None, 8, accounting=name) for name in ("executorch", "executorch-flash")]
    assert full[0].memory_bytes["weights"] == full[1].memory_bytes["weights"]
    assert full[0].arena_bytes == full[1].arena_bytes


def arena_bytes(step: Step) -> int:
    """Return the predicted arena."""
    return footprint(step).arena_bytes


def test_schedules_take_less_arena(graph):
    """What each lever saves it saves here, too; how much is compared with exported programs."""
    last, full = (Step(graph, way(name), 8, accounting="executorch") for name in ("last", "full"))
    # One image at a time the frozen layers take an eighth; what is left is the gradient of the head, 1280 x 1000, what
    # it is made of, the features, the gradient of the logits and that transposed.
    pieces = replace(last, schedule=Schedule(prefix_batch=1))
    assert arena_bytes(pieces) == 4 * (1280 * 1000 + 8 * 1280 + 2 * 8 * 1000)
    assert arena_bytes(replace(full, schedule=Schedule(micro_batch=4))) < 0.8 * arena_bytes(full)
    lean = replace(full, accounting="lean")
    assert arena_bytes(replace(full, schedule=best_schedule(lean, most_flops=1.33))) < 0.8 * arena_bytes(full)


def test_gradients_of_passes_lie_in_the_arena(graph):
    """Of 2 passes the first one's gradients wait: those of the head, 1280 x 1000 weights and 1000 biases."""
    whole, halves = (
        Step(graph, way("last"), 2, Schedule(micro_batch=size), accounting="executorch") for size in (2, 1)
    )
    assert footprint(halves).memory_bytes["gradients"] == 0
    waiting = next(moment for moment in reversed(footprint(halves).moments) if moment.phase == "loss")
    assert (
        sum(waiting.by_category[CATEGORIES.index(name)] for name in ("saved_activations", "transient")) > 4 * 1281_000
    )
    assert arena_bytes(halves) > 4 * 1281_000 and arena_bytes(whole) > 0


def test_a_cache_is_refused(graph):
    with pytest.raises(InputError, match="take lean"):
        footprint(Step(graph, way("last"), 8, Schedule(cache="int8"), accounting="executorch"))


def test_every_category_has_its_place(graph):
    found = footprint(graph, "mobiletl", 3, 8, "momentum", "executorch")
    at_peak = dict(zip(CATEGORIES, found.peak.by_category, strict=True))
    assert all(at_peak[name] > 0 for name in ("weights", "buffers", "optimizer"))
    assert at_peak["gradients"] == 0  # a parameter's gradient is gone with its update
