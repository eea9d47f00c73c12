"""The planned arena: the same training bit for bit, in the memory that was predicted, whatever a step does."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import pytest
import torch
from networks import traced
from tiny_network import make
from torch import nn

from costmodel import (
    METHODS,
    Arena,
    InputError,
    Kernels,
    Schedule,
    Step,
    apply,
    best_schedule,
    footprint,
    peak_bytes,
    trace,
    way,
)
from costmodel.checking.steps import runner
from costmodel.training.optimizers import make_optimizer

PIXELS, CLASSES = 32, 3


@pytest.fixture
def arena():
    made = Arena()
    assert made.policy == "arena", made.note
    yield made
    made.close()


def network(method: str = "full", schedule: Schedule | None = None) -> nn.Module:
    depth = 2 if METHODS[method].takes_blocks else None
    return apply(make(CLASSES), method, depth, PIXELS, schedule=schedule or Schedule()).train()


def images(batch: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(batch, 3, PIXELS, PIXELS, generator=generator)
    return drawn, torch.randint(0, CLASSES, (batch,), generator=generator)


class Training:
    """Some irregular training in an arena, and what it came to."""

    def __init__(self, method: str, optimizer: str, arena: Arena):
        torch.manual_seed(0)
        self.network, self.arena, self.losses = network(method), arena, []
        self.update = make_optimizer(optimizer, self.network, 0.01)
        self.planned = 0

    def loss(self, batch: int, seed: int) -> torch.Tensor:
        given, labels = images(batch, seed)
        return nn.functional.cross_entropy(self.network(given), labels)

    def step(self, batch: int, seed: int, parts: int = 1, set_to_none: bool = True) -> None:
        with self.arena.step("train", batch, parts):
            for part in range(parts):
                loss = self.loss(batch, 100 * seed + part)
                loss.backward()
                self.losses.append(loss.item())
            self.update.step()
            self.update.zero_grad(set_to_none=set_to_none)
        self.planned += self.arena.last.planned if self.arena.last else 0

    def evaluate(self) -> None:
        self.network.eval()
        with self.arena.step("evaluate"), torch.no_grad():
            self.losses.append(self.network(images(8, 7)[0]).sum().item())
        self.network.train()

    def fail(self) -> None:
        with pytest.raises(ZeroDivisionError), self.arena.step("train", 8, 1):
            loss = self.loss(8, 9)
            _ = 1 / 0
            loss.backward()

    def result(self) -> dict[str, torch.Tensor]:
        return copy.deepcopy(self.network.state_dict()) | {"losses": torch.tensor(self.losses, dtype=torch.float64)}


def irregular(training: Training) -> dict[str, torch.Tensor]:
    """Two epochs of regular steps, a smaller last batch, an evaluation; accumulation, kept gradients, a failure."""
    for epoch in range(3):
        for number in range(6):
            training.step(8, 10 * epoch + number)
        training.step(5, epoch)
        training.evaluate()
        training.step(4, epoch, parts=2)
    training.fail()
    for number in range(4):
        training.step(8, 50 + number, set_to_none=number % 2 == 0)
    return training.result()


@pytest.mark.parametrize(
    ("method", "optimizer"),
    [(name, "sgd") for name, method in METHODS.items() if method.has_layers]
    + [("full", "adam"), ("blocks", "momentum")],
)
@pytest.mark.filterwarnings("ignore:.* puts .* in place of")
def test_training_is_the_same_bit_for_bit(arena, method, optimizer):
    without = irregular(Training(method, optimizer, Arena("default")))
    training = Training(method, optimizer, arena)
    inside = irregular(training)
    assert training.planned > 100  # most steps were replayed
    assert without.keys() == inside.keys()
    assert [name for name, value in without.items() if not torch.equal(value, inside[name])] == []


@pytest.mark.parametrize("method", ["full", "bias", "mobiletl"])
def test_the_region_is_as_large_as_predicted(arena, method):
    graph = traced("timm:mobilenetv2_050")
    step = Step(trace(graph.model, 96), way(method, 3 if METHODS[method].takes_blocks else None), 4)
    for schedule in (Schedule(), best_schedule(step, most_flops=1.33)):
        one = Step(step.graph, step.way, step.batch, schedule, kernels=Kernels("layers", torch.get_num_threads()))
        run = runner(one, lambda schedule=schedule: arena.step(method, schedule))
        for _ in range(6):
            run()
        found, predicted = arena.placement(method, schedule), footprint(one)
        above = predicted.peak_bytes - predicted.moments[0].total_bytes
        assert arena.last.planned > 100 and not arena.last.is_off
        assert found.bytes == pytest.approx(above, rel=0.02, abs=200_000), schedule
        assert found.bytes <= 1.02 * found.live_bytes


@pytest.mark.parametrize("name", ["timm:mobilenetv2_050", "tests/support/tiny_network.py:make"])
@pytest.mark.parametrize("method", ["full", "mobiletl"])
def test_the_recorded_peak_is_what_the_profiler_sees(arena, name, method):
    step = Step(trace(name, PIXELS), way(method, 2 if METHODS[method].takes_blocks else None), 3, optimizer="adam")
    plain = runner(step)
    plain()
    run = runner(step, lambda: arena.step(name, method))
    found = []
    for _ in range(4):
        run()
        found.append(arena.recorded_peak_bytes)
    assert found[0] is None and found[3] is None  # the first makes Adam's state; after two that are alike it is planned
    assert found[1] == found[2] == peak_bytes(plain)


def test_what_is_kept_survives_later_steps(arena):
    held, expected = [], []
    for number in range(12):
        with arena.step():
            made = torch.full((50_000,), float(number))
            other = made + 1
            if number % 3 == 0:
                held.append(other)
                expected.append(number + 1)
            del made, other
    assert [set(tensor.tolist()) for tensor in held] == [{float(value)} for value in expected]


def test_other_steps_under_the_same_kind_are_rehearsed_anew(arena):
    def step(sizes: list[int]) -> None:
        with arena.step():
            _ = [torch.zeros(size) for size in sizes]

    for _ in range(5):
        step([10_000, 20_000])
    assert arena.last.planned == 2 and arena.last.region_bytes >= 120_000
    for _ in range(3):
        step([30_000, 5_000, 7_000])
        assert arena.last.is_off
    for _ in range(4):
        step([30_000, 5_000, 7_000])
    assert arena.last.planned == 3 and not arena.last.is_off


def test_a_step_in_a_step_is_refused(arena):
    with pytest.raises(InputError, match="a step of this arena is already running"), arena.step(), arena.step():
        pass
    with arena.step():  # and the arena goes on
        pass


def run(program: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", program], capture_output=True, text=True, timeout=120, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )  # fmt: skip


RANDOM = """
import random, torch
from costmodel import Arena
arena, draw, held, damaged, planned = Arena(check=True), random.Random(3), [], 0, 0
plan = [(draw.randrange(1000, 60000), draw.randrange(1, 9)) for _ in range(25)]
for number in range(300):
    regular = draw.random() < 0.8
    with arena.step():
        live = []
        for size, life in plan if regular else draw.sample(plan, 20):
            live = [(t, v, left - 1) for t, v, left in live if left > 1]
            value = draw.random()
            live.append((torch.full((size,), value), value, life))
            assert all((t == t.new_tensor(v)).all() for t, v, _ in live)
        if draw.random() < 0.1:
            held.append(live[-1])
    held = [(t, v, left) for t, v, left in held if draw.random() < 0.9]
    assert all((t == t.new_tensor(v)).all() for t, v, _ in held)
    damaged += arena.last.damaged
    planned += arena.last.planned
print(damaged, planned > 2000)
"""


def test_random_steps_share_no_memory():
    done = run(RANDOM)
    assert (done.returncode, done.stdout.split()) == (0, ["0", "True"]), done.stderr


DAMAGE = """
import ctypes, torch
from costmodel import Arena
arena = Arena(check=True)
def step(write):
    with arena.step():
        a, b = torch.zeros(5000), torch.zeros(5000)
        place = a.data_ptr()
        if write == "past the end":
            ctypes.memset(place + 20000, 1, 4)
        del a
        if write == "freed":
            ctypes.memset(place + 100, 1, 4)
    return arena.last.damaged
for _ in range(6):
    assert step("") == 0
print(step("past the end"), step(""), step("freed") + step(""))
"""


def test_writes_to_memory_of_others_are_found():
    done = run(DAMAGE)
    assert (done.returncode, done.stdout.split()) == (0, ["1", "0", "1"]), done.stderr


WORKERS = """
import torch
from torch.utils.data import DataLoader, TensorDataset
from costmodel import Arena
torch.manual_seed(0)
data = TensorDataset(torch.randn(40, 3, 16, 16), torch.randint(0, 3, (40,)))
def train(arena):
    torch.manual_seed(1)
    layers = torch.nn.Conv2d(3, 32, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(6272, 3)
    network = torch.nn.Sequential(*layers)
    update = torch.optim.SGD(network.parameters(), 0.1)
    for _ in range(3):
        for images, labels in DataLoader(data, 8, num_workers=2):
            with arena.step():
                torch.nn.functional.cross_entropy(network(images), labels).backward()
                update.step()
                update.zero_grad()
    return [p.detach().clone() for p in network.parameters()]
plain, arena = train(Arena("default")), Arena()
inside = train(arena)
print(all(map(torch.equal, plain, inside)), arena.last.planned > 5)
"""


def test_forked_workers_load_meanwhile():
    done = run(WORKERS)
    assert (done.returncode, done.stdout.split()) == (0, ["True", "True"]), done.stderr


def test_without_a_compiler_malloc_is_made_tight(tmp_path):
    program = """
import torch, costmodel
arena = costmodel.Arena()
with arena.step():
    torch.zeros(100_000)
print(arena.policy, arena.note, sep="; ")
"""
    done = run(program, CXX="no-such-compiler", COSTMODEL_CACHE=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("tight; no planned arena: ") and done.stdout.count("\n") == 1
    assert "no-such-compiler" in done.stdout and "UserWarning: no planned arena" in done.stderr
