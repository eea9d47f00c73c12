"""Plans carried out: from a recommendation to answers, whatever kills the training on the way; and all misuse."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from repository import ROOT
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from costmodel import InputError, ModelError, Precision, Schedule, Step, footprint, trace, way
from costmodel.graph.passages import passages
from planner.campaign.decoding import read_image
from planner.campaign.images import list_folder, read_folder
from planner.campaign.weights import load_weights, make_network
from planner.choosing.plan import Evidence, Network, Plan, Promises, parameters_digest
from planner.interface import cli, train_view
from planner.training.course import Course
from planner.training.folder import Folder
from planner.training.predict import load_network, predict
from planner.training.train import Stopped, train
from planner.training.watch import Watch

TINY = f"{ROOT / 'tests' / 'support' / 'tiny_network.py'}:make"
SIDE, BATCH = 32, 8
FORK = multiprocessing.get_context("fork")
SHORT = Course(epochs=2, learning_rate=0.01, augment=("crop",))


def draw(folder: Path, classes: int, each: int) -> Path:
    """Write handwritten digits as images, so many of each class."""
    digits = load_digits()
    for label in range(classes):
        (folder / str(label)).mkdir(parents=True)
        for number, image in enumerate(digits.images[digits.target == label][:each]):
            Image.fromarray((image * 15.9).astype(np.uint8)).save(folder / str(label) / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """Three digits, 20 images of each: 48 to train with, in 6 steps, and 12 held out."""
    return draw(tmp_path_factory.mktemp("images") / "digits", 3, 20)


def planned(method="blocks", blocks=1, schedule=None, frozen="float32", optimizer="adam") -> Plan:
    """Return the plan of a step of the tiny network."""
    step = Step(
        trace(TINY, SIDE, 3), way(method, blocks), BATCH, schedule or Schedule(), Precision(frozen=frozen), optimizer
    )
    cost = footprint(step)
    names = ("recovery", "recovery_low", "recovery_high")
    names += ("accuracy_percent", "accuracy_low_percent", "accuracy_high_percent")
    return Plan(
        made_with="a test",
        network=Network(
            model=step.graph.model, resolution=SIDE, classes=3, parameter_count=step.graph.parameter_count,
            parameters=parameters_digest((name, tensor.shape) for name, tensor in step.graph.parameters.items()),
        ),
        way=step.way, schedule=step.schedule, precision=step.precision, batch=BATCH, optimizer=optimizer,
        accounting="lean",
        promises=Promises(
            peak_bytes=cost.peak_bytes, saved_bytes=cost.saved_bytes, total_flops=cost.total_flops,
            trained_parameters=cost.trained_parameters, **dict.fromkeys(names),
        ),
        evidence=Evidence(kind="none", rests_on="nothing"),
    )  # fmt: skip


class Killed(Watch):
    """Kills the process, or asks it to stop, once so many steps are done."""

    def __init__(self, steps: int, by_signal: bool = False):
        self.steps, self.by_signal = steps, by_signal

    def step(self, done: int, total: int, text: str) -> None:
        if done == self.steps and self.by_signal:
            os.kill(os.getpid(), signal.SIGKILL)
        self.stopped = done == self.steps


def killed(plan: Plan, data: Path, out: Path, steps: int, **options) -> None:
    """Train in a process of its own that is killed after so many steps."""
    process = FORK.Process(target=train, args=(plan, data, out), kwargs={**options, "watch": Killed(steps, True)})
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "weights.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- from a question to answers ---------------------------------------------------------------------------------------


def test_recommended_killed_resumed_and_asked(digits, tmp_path, command):
    plan, out, whole = tmp_path / "plan.json", tmp_path / "out", tmp_path / "whole"
    code, _, error = command(
        "recommend", TINY, "--ram", "1MB", "--resolution", "32", "--classes", "3", "--optimizer", "adam",
        "--save", str(plan), main=cli.main,
    )  # fmt: skip
    assert code == 0, error
    course = Course(epochs=6, learning_rate=0.05, augment=("crop",))
    # 6 steps an epoch: the first kill hits the second epoch, the next one the first epoch after that
    for steps, seconds in ((9, 0), (14, 60)):
        killed(plan, digits, out, steps, course=course, checkpoint_seconds=seconds)
        assert not any(name.endswith(".part") for name in os.listdir(out))
    resumed = train(plan, digits, out, course=course)
    code, printed, error = command(
        "train", str(plan), "--data", str(digits), "--out", str(whole), "--epochs", "6", "--lr", "0.05",
        "--augment", "crop", main=cli.main,
    )  # fmt: skip
    assert code == 0, error
    uninterrupted = Folder(whole).trained()
    assert resumed.history == uninterrupted.history and resumed.best == uninterrupted.best
    assert same(weights(out), weights(whole))
    assert resumed.memory.agrees and "as predicted" in printed
    assert resumed.accuracy_percent >= 50  # chance is 33 %
    assert f"accuracy {resumed.accuracy_percent:.1f} % on 12 held-out images" in printed
    assert error.count("held-out images") == 6
    # what it says of the held-out images is what the training measured
    pictures = list_folder(digits)
    held_out = read_folder(pictures, SIDE).test
    shown = [file for file in pictures.files if any(torch.equal(_pixels(file), each) for each in held_out.pixels)]
    code, printed, _ = command("predict", str(out), *(str(file.path) for file in shown), "--json", main=cli.main)
    said = json.loads(printed)
    right = sum(one["class"] == file.label for one, file in zip(said, shown, strict=True))
    assert code == 0 and len(shown) == 12 and 100 * right / 12 == pytest.approx(resumed.accuracy_percent)
    assert all(0 < one["probability"] <= 1 for one in said)
    # asked again, the training is over
    assert train(plan, digits, out, course=course) == resumed
    assert sorted(path.name for path in out.iterdir()) == [
        ".lock", "plan.json", "run.json", "trained.json", "weights.safetensors",
    ]  # fmt: skip
    assert Plan.load(out / "plan.json") == Plan.load(plan)


def _pixels(file) -> torch.Tensor:
    return read_image(file.path, SIDE).pixels


# --- schedules --------------------------------------------------------------------------------------------------------


def segments(*modes: str) -> tuple[tuple[int, int, str], ...]:
    """Return the layers of the tiny network's last block as a segment, in a mode."""
    graph = trace(TINY, SIDE, 3)
    block = [layer.index for layer in graph.layers if layer.module.startswith("blocks.2")]
    assert block[0] in passages(graph)  # one tensor leads to it
    return tuple((block[0], block[-1], mode) for mode in modes)


LEVERS = {
    "in place": Schedule(inplace_update=True),
    "prefix": Schedule(prefix_batch=1),
    "cheap": Schedule(segments=segments("cheap")),
    "recompute": Schedule(segments=segments("recompute")),
    "all of these": Schedule(None, True, 2, segments("both")),
    "cache": Schedule(cache="float32"),
    "cache, in place": Schedule(cache="float32", inplace_update=True),
}


@pytest.fixture(scope="module")
def plain(digits, tmp_path_factory):
    """A training without any lever: its weights, and what it came to."""
    out = tmp_path_factory.mktemp("plain") / "out"
    trained = train(planned(), digits, out, course=Course(epochs=2, learning_rate=0.01, augment=()))
    return weights(out), trained


@pytest.mark.parametrize("lever", LEVERS)
def test_every_lever_trains_the_same_network_in_the_memory_that_was_planned(lever, digits, plain, tmp_path):
    plan, course = planned(schedule=LEVERS[lever]), Course(epochs=2, learning_rate=0.01, augment=())
    killed(plan, digits, tmp_path / "out", 4, course=course, checkpoint_seconds=0)
    found = train(plan, digits, tmp_path / "out", course=course)
    whole = train(plan, digits, tmp_path / "whole", course=course)
    assert found.memory.agrees, found.memory
    assert found.history == whole.history and same(weights(tmp_path / "out"), weights(tmp_path / "whole"))
    for name, value in plain[0].items():
        # a convolution of one image sums in another order than one of eight
        exact = plan.schedule.prefix_batch is None and plan.schedule.cache is None
        closeness = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-3, "atol": 1e-5}
        torch.testing.assert_close(weights(tmp_path / "out")[name], value, **closeness)
    assert found.memory.measured_bytes <= plain[1].memory.measured_bytes


def test_the_allocator_changes_no_result(digits, plain, tmp_path):
    course = Course(epochs=2, learning_rate=0.01, augment=())
    train(planned(), digits, tmp_path / "out", course=course, allocator="default")
    assert same(weights(tmp_path / "out"), plain[0])


def test_an_unknown_allocator_is_refused(digits, tmp_path):
    with pytest.raises(InputError, match="unknown allocator 'aerna'; did you mean 'arena'"):
        train(planned(), digits, tmp_path / "out", course=SHORT, allocator="aerna")


def test_micro_batches_give_the_same_network_but_for_rounding(digits, tmp_path):
    course = Course(epochs=2, learning_rate=0.01, augment=())
    found = {}
    for micro_batch in (None, 2):
        plan = planned("bias", None, Schedule(micro_batch), optimizer="sgd")
        trained = train(plan, digits, tmp_path / str(micro_batch), course=course)
        assert trained.memory.agrees
        found[micro_batch] = weights(tmp_path / str(micro_batch)), trained
    assert found[2][1].memory.measured_bytes < found[None][1].memory.measured_bytes
    for name, value in found[None][0].items():
        torch.testing.assert_close(found[2][0][name], value, rtol=1e-4, atol=1e-6)


def test_frozen_weights_in_fewer_bits_are_plain_float32_in_the_file(digits, tmp_path):
    plan = planned(frozen="float16")
    trained = train(plan, digits, tmp_path / "out", course=SHORT)
    state, graph = weights(tmp_path / "out"), trace(TINY, SIDE, 3)
    network, _ = make_network(graph, load_weights(graph.model, str(tmp_path / "out" / "weights.safetensors")), 0)
    before = make_network(graph, load_weights(graph.model, None), 0)[0].state_dict()
    assert trained.is_plain and {value.dtype for name, value in state.items() if "num" not in name} == {torch.float32}
    assert same(network.state_dict(), state)
    # what is frozen stands as it was rounded
    assert torch.equal(state["stem.0.weight"], before["stem.0.weight"].half().float())
    again, _ = load_network(tmp_path / "out")
    images = torch.randn(2, 3, SIDE, SIDE)
    torch.testing.assert_close(again(images), network.eval()(images))


def test_modules_that_a_method_adds_are_kept_and_come_back(digits, tmp_path):
    plan = planned("tinytl-l", None)
    killed(plan, digits, tmp_path / "out", 8, course=SHORT, checkpoint_seconds=0)
    trained = train(plan, digits, tmp_path / "out", course=SHORT)
    whole = train(plan, digits, tmp_path / "whole", course=SHORT)
    assert not trained.is_plain and trained.history == whole.history
    assert same(weights(tmp_path / "out"), weights(tmp_path / "whole"))
    network, _ = load_network(tmp_path / "out")
    assert same({name: value.contiguous() for name, value in network.state_dict().items()}, weights(tmp_path / "out"))
    # another seed is another network: the modules start from random numbers
    other = train(plan, digits, tmp_path / "other", course=Course(2, 0.01, ("crop",), seed=1))
    assert other.history != whole.history


# --- stops ------------------------------------------------------------------------------------------------------------


def test_asked_to_stop_it_says_where_and_goes_on(digits, tmp_path, command, monkeypatch):
    plan, out = tmp_path / "plan.json", tmp_path / "out"
    planned().save(plan)
    asked = train_view.TrainingBars.step

    def step(self, done: int, total: int, text: str) -> None:
        asked(self, done, total, text)
        if done == 8:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(train_view.TrainingBars, "step", step)
    before = signal.getsignal(signal.SIGTERM)
    given = ("train", str(plan), "--data", str(digits), "--out", str(out), "--epochs", "2", "--augment", "crop")
    code, printed, error = command(*given, "--lr", "0.01", main=cli.main)
    assert code == 130 and not printed and signal.getsignal(signal.SIGTERM) == before
    assert "stopped in epoch 2 of 2, step 2 of 6; the same command goes on" in error
    monkeypatch.setattr(train_view.TrainingBars, "step", asked)
    code, printed, error = command(*given, "--lr", "0.01", "--json", main=cli.main)
    assert code == 0 and "going on with epoch 2 of 2, after step 2" in error
    whole = train(plan, digits, tmp_path / "whole", course=SHORT)
    assert json.loads(printed)["history"] == [epoch.model_dump() for epoch in whole.history]
    assert same(weights(out), weights(tmp_path / "whole"))


def test_a_stop_between_two_test_batches_is_kept(digits, tmp_path):
    course = Course(epochs=1, learning_rate=0.01, augment=())
    with pytest.raises(Stopped, match="epoch 1 of 1, step 6 of 6"):
        train(planned(), digits, tmp_path / "out", course=course, watch=Killed(6))
    found = train(planned(), digits, tmp_path / "out", course=course)
    assert found.history == train(planned(), digits, tmp_path / "whole", course=course).history


def test_it_ends_early_where_nothing_gets_better(digits, tmp_path):
    # a rate so small that no weight moves: the norms' statistics alone do, and only they change what is measured
    trained = train(
        planned("last", None), digits, tmp_path / "out", course=Course(9, 1e-30, augment=(), patience=2)
    )  # fmt: skip
    assert len(trained.history) == 3 and trained.best.number == 1
    assert trained.ended == "no epoch was better than epoch 1 for 2 epochs"


# --- misuse -----------------------------------------------------------------------------------------------------------


def refused(said: str, plan, data, out, kind=InputError, **options) -> None:
    with pytest.raises(kind, match=said) as error:
        train(plan, data, out, **{"course": SHORT, **options})
    assert "\n" not in str(error.value)


def test_plan_and_images_must_go_together(digits, tmp_path):
    four = draw(tmp_path / "four", 4, 3)
    refused(r"is for 3 classes, but .*four has 4 \(0, 1, 2, 3\); plan again with planner recommend .*--classes 4",
            planned(), four, tmp_path / "out")  # fmt: skip
    few = draw(tmp_path / "few", 3, 2)
    refused("3 training images are less than the plan's batch of 8", planned(), few, tmp_path / "out")
    refused("not a readable folder", planned(), tmp_path / "nowhere", tmp_path / "out")
    refused("cannot read the plan", tmp_path / "none.json", digits, tmp_path / "out")


def test_what_goes_on_must_be_the_same(digits, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(Stopped):
        train(planned(), digits, out, course=SHORT, watch=Killed(3))
    refused(r"differs in plan \(\w+, now \w+\)", planned("last", None), digits, out)
    refused(r"differs in epochs \(2, now 3\), seed \(0, now 1\); give the same", planned(), digits, out,
            course=Course(3, 0.01, ("crop",), seed=1))  # fmt: skip
    refused(r"differs in augmentation \(crop, now none\)", planned(), digits, out, course=Course(2, 0.01, ()))
    other = tmp_path / "other.pth"
    network, _ = make_network(trace(TINY, SIDE, 3), load_weights(TINY, None), 0)
    torch.save({name: value + 1 for name, value in network.state_dict().items()}, other)
    refused("differs in weights", planned(), digits, out, weights=str(other))
    more = draw(tmp_path / "more", 3, 21)
    refused("differs in images", planned(), more, out)
    assert train(planned(), digits, out, course=SHORT).ended


def test_a_folder_of_something_else_stays_as_it_is(digits, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    refused("holds 'thesis.txt' and was not made by planner train", planned(), digits, tmp_path)
    (tmp_path / "file").write_text("")
    refused("cannot write to the folder", planned(), digits, tmp_path / "file")
    with Folder(tmp_path / "held").held():
        refused("another process trains into", planned(), digits, tmp_path / "held")
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_numbers_and_names_that_make_no_sense(digits, tmp_path, command):
    for course, said in (
        (Course(0), "epochs must be"), (Course(learning_rate=float("nan")), "learning rate must be positive"),
        (Course(learning_rate=-1.0), "learning rate must be"), (Course(seed=-1), "seed must be"),
        (Course(patience=-2), "patience must be"), (Course(augment=("spin",)), "unknown augmentation 'spin'"),
    ):  # fmt: skip
        refused(said, planned(), digits, tmp_path / "out", course=course)
    cached = planned(schedule=Schedule(cache="float32"))
    refused("a cache, which holds one view of each image: crop cannot be; give --augment none",
            cached, digits, tmp_path / "out")  # fmt: skip
    refused("activations are in float16", planned().model_copy(update={"precision": Precision(activations="float16")}),
            digits, tmp_path / "out")  # fmt: skip
    planned().save(tmp_path / "plan.json")
    code, _, error = command(
        "train", str(tmp_path / "plan.json"), "--data", str(digits), "--out", str(tmp_path / "out"), "--augment",
        "crop,sponge", main=cli.main,
    )  # fmt: skip
    assert code == 2 and error.startswith("error: unknown augmentation 'sponge'") and error.count("\n") == 1


def test_a_loss_without_end_is_named(digits, tmp_path):
    refused(r"the training diverged; give a smaller --lr than 1e\+30", planned("full", None, optimizer="sgd"), digits,
            tmp_path / "out", ModelError, course=Course(2, 1e30, ()))  # fmt: skip


def test_damaged_files_are_one_line(digits, tmp_path, command):
    out = tmp_path / "out"
    with pytest.raises(Stopped):
        train(planned(), digits, out, course=SHORT, watch=Killed(8))
    checkpoint = (out / "checkpoint.pt").read_bytes()
    (out / "checkpoint.pt").write_bytes(checkpoint[: len(checkpoint) // 2])
    refused("checkpoint.pt is damaged; delete it to train from the start again", planned(), digits, out)
    (out / "checkpoint.pt").write_bytes(checkpoint)
    train(planned(), digits, out, course=SHORT)
    picture = str(next((digits / "1").iterdir()))
    nothing, text = tmp_path / "none.png", tmp_path / "text.png"
    text.write_text("no image")
    code, printed, error = command("predict", str(out), str(nothing), picture, str(text), main=cli.main)
    assert code == 2 and printed.count(" %") == 1
    assert [line.partition(" '")[0] for line in error.splitlines()] == ["error: cannot read the image"] * 2
    code, printed, _ = command("predict", str(out), picture, "--top", "9", "--json", main=cli.main)
    (said,) = json.loads(printed)
    assert code == 0 and [len(said["classes"]), sum(one["probability"] for one in said["classes"])] == [
        3, pytest.approx(1),
    ]  # fmt: skip
    (out / "weights.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(InputError, match=r"weights.safetensors is damaged"):
        list(predict(out, [picture]))
    (out / "trained.json").write_text('{"version": 1}')
    with pytest.raises(InputError, match=r"trained.json is damaged: model: Field required"):
        list(predict(out, [picture]))
    with pytest.raises(InputError, match="has no trained network; make one with planner train"):
        list(predict(tmp_path, [picture]))


def test_activations_in_bfloat16_train_under_autocast(digits, tmp_path):
    plan = planned().model_copy(update={"precision": Precision(activations="bfloat16")})
    trained = train(plan, digits, tmp_path / "out", course=SHORT)
    assert trained.memory.measured_bytes < trained.memory.planned_bytes  # that of float32
    assert trained.history != train(planned(), digits, tmp_path / "float32", course=SHORT).history
