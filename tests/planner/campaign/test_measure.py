"""A campaign: what runs next, real runs of a tiny network, and all that may go wrong meanwhile."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import numpy as np
import optuna
import pytest
import sqlalchemy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from repository import ROOT
from rich.console import Console

from costmodel import InputError, Way, trace
from planner.campaign import measure as measuring
from planner.campaign.fine_tuning import Memory, Recipe, Run, fine_tune
from planner.campaign.images import list_folder, read_folder
from planner.campaign.measure import measure
from planner.campaign.next_trial import anchors, most_left, next_trial, seeds_of
from planner.campaign.rates import split
from planner.campaign.storage import Hopeless, Store, key_of
from planner.campaign.watch import Watch
from planner.campaign.weights import load_weights, make_network
from planner.choosing.axes import axes
from planner.choosing.candidates import price_all
from planner.choosing.objectives import keeps
from planner.choosing.recommend import choose
from planner.evidence import Row, load
from planner.evidence.database import StorageError, data_set_names, url_of
from planner.interface import cli
from planner.interface.measure_view import tables

TINY = f"{ROOT / 'tests' / 'support' / 'tiny_network.py'}:make"
RECIPE = Recipe(epochs=2, learning_rate=0.1, resolution=16)
ROOMY = {"memory": 10**9}
FAST = {"patience_seconds": 0.0}
FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def graph():
    return trace(TINY, 16, 3)


def price(graph, rows=()):
    return price_all([graph], axes(batch=8, evidence=rows, dataset="data" if rows else None))


def measured(key, percent, graph, images=1000, reachable=None):
    way, seed = key
    return Row(
        model=graph.model, method=way.method, trained_blocks=way.blocks, dataset="data", top1_percent=percent,
        resolution=16, batch=8, seed=seed, test_images=images, source="test", reachable_percent=reachable,
    )  # fmt: skip


def draw(folder: Path, classes=("red", "green", "blue"), count=10) -> Path:
    """Write noisy images, each class of one colour."""
    random = np.random.default_rng(0)
    for index, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = random.normal(100, 40, (16, 16, 3))
            pixels[..., index % 3] += 80
            Image.fromarray(pixels.clip(0, 255).astype("uint8")).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture
def pictures(tmp_path):
    return draw(tmp_path / "pictures")


# --- what runs next ---------------------------------------------------------------------------------------------------


def test_anchors_come_first(graph):
    first = next_trial(price(graph), (), ROOMY)
    assert first.key == (Way("last"), 0)
    rows = [measured(first.key, 60.0, graph)]
    assert next_trial(price(graph, rows), rows, ROOMY).key == (Way("full"), 0)
    # another worker has the first: the second anchor is free
    assert next_trial(price(graph), (), ROOMY, running=[first.key]).key == (Way("full"), 0)


def test_second_anchor_is_the_best_that_fits(graph):
    priced = price(graph)
    full = next(c for c in priced if c.way.method == "full")
    limits = {"memory": full.peak_bytes - 1}
    last, other = anchors(choose(priced, limits))
    assert last.way.method == "last" and other.way.method != "full" and keeps(other, limits)
    assert other.recovery.value == max(c.recovery.value or 0 for c in priced if keeps(c, limits))


def test_nothing_runs_where_nothing_is_open(graph):
    only = [candidate for candidate in price(graph) if candidate.way.method == "last"]
    assert next_trial(only, (), ROOMY) is None
    assert most_left(only, (), ROOMY) == 0


def test_decision_ends_it(graph):
    """Everything else is far below full: no rival is left, though most were never run."""
    keys = {"last": 10.0, "full": 95.0, "norm": 15.0, "bias": 14.0}
    rows = [measured((Way(method), 0), percent, graph) for method, percent in keys.items()]
    rows += [measured((Way(method, 3), 0), 20.0, graph) for method in ("blocks", "mobiletl")]
    priced = price(graph, rows)
    assert choose(priced, ROOMY).chosen.way.method == "full"
    assert next_trial(priced, rows, ROOMY) is None


def test_leaders_repeat_until_their_seeds_are_used(graph):
    """All are measured once and equal: the pick and the first rival run again, at most three times each."""
    ways = axes().ways(graph)
    rows = [measured((way, 0), 80.0, graph, images=50) for way in ways if not way.method.startswith("tinytl")]
    seen = []
    while (trial := next_trial(price(graph, rows), rows, ROOMY)) is not None:
        seen.append(trial.key)
        rows.append(measured(trial.key, 80.0, graph, images=50))
    assert {seed for _, seed in seen} == {1, 2}
    assert len(seen) == len(set(seen)) == 2 * len({way for way, _ in seen})
    assert next_trial(price(graph, rows), rows, ROOMY, seeds=4).seed == 3


def test_stopped_run_is_below_what_it_could_reach_and_done_with(graph):
    rows = [measured((Way("last"), 0), 60.0, graph), measured((Way("full"), 0), 95.0, graph)]
    rows.append(measured((Way("blocks", 1), 0), 62.0, graph, reachable=80.0))
    stopped = next(c for c in price(graph, rows) if c.way == Way("blocks", 1)).recovery
    assert stopped.accuracy_percent == 62.0 and stopped.accuracy_high_percent == 80.0
    assert "could still reach" in stopped.accuracy_interval
    rows.append(measured((Way("blocks", 1), 1), 90.0, graph))  # beside a whole run it counts with the most
    both = next(c for c in price(graph, rows) if c.way == Way("blocks", 1)).recovery
    assert both.accuracy_percent == (80 + 90) / 2 and both.accuracy_low_percent < (62 + 90) / 2


@settings(max_examples=5)
@given(st.data())
def test_campaign_ends_and_runs_nothing_twice(graph, data):
    ways = axes().ways(graph)
    truth = {way: data.draw(st.floats(20, 95), label=str(way)) for way in ways}
    noise = data.draw(st.floats(0, 3))
    peaks = sorted(c.peak_bytes for c in price(graph))
    limits = {"memory": data.draw(st.sampled_from(peaks[len(peaks) // 2 :]))}
    rows, keys = [], []
    while (trial := next_trial(priced := price(graph, rows), rows, limits, seeds=2)) is not None:
        assert most_left(priced, rows, limits, seeds=2) >= 1
        assert trial.key not in keys and (keeps(trial.candidate, limits) or trial.candidate.way.method == "last")
        keys.append(trial.key)
        percent = truth[trial.candidate.way] + noise * (-1) ** trial.seed
        rows.append(measured(trial.key, min(100.0, percent), graph, images=500))
    decision = choose(price(graph, rows), limits)
    open_ones = [decision.chosen, *decision.rivals] if decision.rivals else []
    assert all(len(seeds_of(candidate, rows)) == 2 for candidate in open_ones)


# --- the database -----------------------------------------------------------------------------------------------------

SETTINGS = {"model": "net", "dataset": "data", "data": "d", "weights": "w", "resolution": 16, "batch": 8} | {
    "epochs": 2, "learning_rate": 0.1, "optimizer": "sgd",
}  # fmt: skip
RESULTS = {"test_images": 12, "epochs_run": 2, "seconds": 1.0}


def store(location, **options):
    return Store(str(location), SETTINGS, {"last", "blocks"}, 5, **{**FAST, **options})


def claim(where, key=(Way("blocks", 2), 0), most=None, **attributes):
    return where.claim(key, 0.1, attributes, most, "memory 1")


def test_result_comes_back_as_evidence(tmp_path):
    place = tmp_path / "runs.db"
    one = store(place)
    taken = claim(one)
    taken.report(1, 70.0), taken.report(2, 75.0)
    assert taken.complete(75.0, False, RESULTS)
    assert claim(one, (Way("last"), 0)).complete(50.0, False, RESULTS)
    claim(one, (Way("last"), 1))  # still running: no evidence
    for location in (str(place), f"sqlite:///{place}"):
        first, second = load(location)
        assert (first.method, first.trained_blocks, first.top1_percent, first.test_images) == ("blocks", 2, 75.0, 12)
        assert (second.method, second.trained_blocks, second.seed) == ("last", None, 0)
        assert f"{place}, trial 0, 20" in first.source


def test_evidence_that_is_none_is_one_line(tmp_path):
    (tmp_path / "text.db").write_text("no database")
    (tmp_path / "other.db").touch()
    store(tmp_path / "empty.db")
    for name, said in (
        ("none.db", "cannot read .*No such file"), ("text.db", "not a database"), ("other.db", "no such table"),
        ("empty.db", "no finished runs"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said) as error:
            load(tmp_path / name)
        assert "\n" not in str(error.value)
    assert (tmp_path / "other.db").stat().st_size == 0  # nothing was written to it
    with pytest.raises(InputError, match="cannot keep runs in 'mysql'"):
        load("mysql://host/runs")


def test_recipes_do_not_go_by_one_name():
    alike = [SETTINGS, SETTINGS | {"model": "other", "weights": "v"}]
    assert data_set_names(alike) == ["data", "data"]  # another network has other weights
    longer = SETTINGS | {"epochs": 9}
    assert data_set_names([SETTINGS, longer]) == ["data (epochs 2)", "data (epochs 9)"]
    assert data_set_names([SETTINGS, SETTINGS | {"weights": "v"}]) == ["data (weights w)", "data (weights v)"]


def test_workers_that_claim_at_once_get_each_run_once(tmp_path):
    """Three workers want the same six runs, and set the database up at the same time."""
    keys = [(Way("blocks", depth), seed) for depth in (1, 2) for seed in range(3)]
    start, got = threading.Barrier(3), []

    def work():
        start.wait()
        own = store(tmp_path / "runs.db")
        start.wait()
        for key in keys:
            taken = claim(own, key, most=5)
            if taken:
                got.append(key)
                taken.complete(50.0, False, RESULTS)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == len(set(got)) == 5  # no more than the campaign may have
    assert len(load(tmp_path / "runs.db")) == 5


def age(location):
    """Make every sign of life an hour old: their workers have died."""
    url = url_of(str(location))
    hour = "datetime(heartbeat, '-1 hour')" if url.startswith("sqlite") else "heartbeat - interval '1 hour'"
    with sqlalchemy.create_engine(url).begin() as connection:
        connection.execute(sqlalchemy.text(f"UPDATE trial_heartbeats SET heartbeat = {hour}"))


def test_dead_workers_run_is_free_again(tmp_path):
    place = tmp_path / "runs.db"
    dead, alive = store(place), store(place)
    taken = claim(dead)
    assert claim(alive) is None and len(alive.trials()) == 1
    age(place)
    assert alive.trials() == []
    assert claim(alive).complete(60.0, False, RESULTS)
    assert not taken.complete(90.0, False, RESULTS)  # it was not dead after all: too late
    assert [one.top1_percent for one in load(place)] == [60.0]


def test_worker_that_gives_signs_of_life_keeps_its_run(tmp_path):
    place = tmp_path / "runs.db"
    busy, other = store(place, heartbeat_seconds=1), store(place)
    taken = claim(busy)
    age(place)
    with taken.alive():
        time.sleep(1.5)
    assert len(other.trials()) == 1
    assert taken.complete(60.0, False, RESULTS)


def test_worker_that_died_before_its_first_sign_of_life(tmp_path, monkeypatch):
    one = store(tmp_path / "runs.db")
    monkeypatch.setattr(Store, "sign_of_life", lambda self, trial_id: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        claim(one)
    assert len(one.trials()) == 1
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + 61)
    assert one.trials() == []


def test_a_sign_of_life_in_the_future_grows_old(tmp_path, monkeypatch):
    """The clock was set back after the worker died: by the clock its last sign of life lies ahead for a year."""
    place = tmp_path / "runs.db"
    one = store(place)
    claim(one)
    with sqlalchemy.create_engine(url_of(str(place))).begin() as connection:
        connection.execute(sqlalchemy.text("UPDATE trial_heartbeats SET heartbeat = datetime(heartbeat, '+1 year')"))
    assert len(one.trials()) == 1
    now = time.monotonic()
    monkeypatch.setattr("time.monotonic", lambda: now + 59)
    assert len(one.trials()) == 1
    monkeypatch.setattr("time.monotonic", lambda: now + 61)
    assert one.trials() == []


def test_a_worker_whose_clock_was_set_back_keeps_its_run(tmp_path, monkeypatch):
    """Its claim lies an hour ahead of the clock; it gives signs of life, and nobody takes its run."""
    one = store(tmp_path / "runs.db")
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + 3600)
    taken = claim(one)
    monkeypatch.setattr("time.time", lambda: now)
    assert len(one.trials()) == 1
    assert taken.complete(60.0, False, RESULTS) and len(load(tmp_path / "runs.db")) == 1


@pytest.mark.parametrize("state", ["RUNNING", "COMPLETE"])
def test_trials_of_plain_optuna_are_none_of_the_campaign(tmp_path, state):
    """Somebody opens the study with Optuna and leaves a trial in it."""
    place = tmp_path / "runs.db"
    one = store(place)
    assert claim(one).complete(60.0, False, RESULTS)
    other = optuna.load_study(study_name=one.name, storage=f"sqlite:///{place}")
    trial = other.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
    if state == "COMPLETE":
        other.tell(trial, 99.0)
    assert [key_of(trial) for trial in one.trials()] == [(Way("blocks", 2), 0)]
    assert claim(one, (Way("last"), 0)).complete(50.0, False, RESULTS)
    assert [row.top1_percent for row in load(place)] == [60.0, 50.0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("UPDATE trial_values SET value = 250", "top1_percent is 250.0: Input should be less than or equal to 100"),
        ("UPDATE trial_user_attributes SET value_json = '1e400' WHERE key = 'test_images'", "test_images is inf"),
        ("UPDATE trial_user_attributes SET value_json = '\"ff\"' WHERE key = 'test_images'", "test_images is 'ff'"),
        ("UPDATE trial_user_attributes SET value_json = '[' WHERE key = 'campaign'", "is damaged: Expecting value"),
        ("UPDATE trials SET datetime_complete = '2026-11-21 -1:30:31.5'", "is damaged: Invalid isoformat"),
        ("DELETE FROM trial_params WHERE param_name = 'seed'", "trial 0 was not written by planner measure: 'seed'"),
    ],
)
def test_a_database_that_was_changed_is_one_line(tmp_path, change, said):
    place = tmp_path / "runs.db"
    claim(store(place)).complete(60.0, False, RESULTS)
    with sqlalchemy.create_engine(url_of(str(place))).begin() as connection:
        connection.execute(sqlalchemy.text(change))
    with pytest.raises(InputError, match=said) as error:
        load(place)
    assert "\n" not in str(error.value) and str(place) in str(error.value)


def test_a_database_that_is_no_file_is_one_line(tmp_path):
    os.mkfifo(tmp_path / "fifo.db")
    (tmp_path / "folder.db").mkdir()
    (tmp_path / "loop.db").symlink_to(tmp_path / "loop.db")
    for name in ("fifo.db", "folder.db", "loop.db", "a\0b.db"):
        for do in (load, store):
            with pytest.raises(InputError) as error:
                do(tmp_path / name)
            assert "\n" not in str(error.value)


def test_hopeless_run_is_stopped(tmp_path):
    """The finished ones gained 10 and 20 points after epoch 1: 50 could become 70, which is below 75."""
    one = store(tmp_path / "runs.db")

    def finish(seed, first, final):
        taken = claim(one, (Way("blocks", 1), seed))
        taken.report(1, first), taken.report(2, final)
        taken.complete(final, False, RESULTS)

    finish(0, 70.0, 80.0)
    early = claim(one, (Way("blocks", 2), 0), threshold_percent=75.0)
    assert not early.report(1, 1.0)  # one finished run tells too little
    early.fail("test")
    finish(1, 60.0, 80.0)
    assert not claim(one, (Way("blocks", 3), 0), threshold_percent=None).report(1, 1.0)
    assert not claim(one, (Way("blocks", 4), 0), threshold_percent=75.0).report(1, 55.0)
    hopeless = claim(one, (Way("blocks", 5), 0), threshold_percent=75.0)
    assert hopeless.report(1, 50.0)
    assert hopeless.complete(50.0, True, RESULTS | {"epochs_run": 1})
    last = load(tmp_path / "runs.db")[-1]
    assert (last.top1_percent, last.reachable_percent) == (50.0, 70.0)
    assert "stopped after epoch 1 of 2" in last.source
    assert issubclass(Hopeless, optuna.pruners.BasePruner)


def test_database_that_is_away_for_a_moment_costs_nothing(tmp_path):
    place, away = tmp_path / "runs.db", tmp_path / "away.db"
    one = store(place, patience_seconds=20.0)
    taken = claim(one)
    place.rename(away)
    one.storage.engine.dispose()
    assert not taken.report(1, 50.0)  # the run goes on
    threading.Timer(0.5, away.rename, [place]).start()
    assert taken.complete(60.0, False, RESULTS)
    assert [one.top1_percent for one in load(place)] == [60.0]


def test_lost_database_is_one_line_with_the_result(tmp_path):
    place = tmp_path / "runs.db"
    one = store(place)
    taken = claim(one)
    place.unlink()
    with pytest.raises(StorageError, match=r"cannot be used: .*accuracy 61.25 %") as error:
        taken.complete(61.25, False, RESULTS)
    assert "\n" not in str(error.value)


def test_place_that_cannot_be_written_is_one_line():
    with pytest.raises(StorageError, match=r"cannot write /proc/runs.db: "):
        store("/proc/runs.db")
    with pytest.raises(StorageError, match="cannot be used"):
        store("postgresql://nobody@127.0.0.1:9/none")


# --- images and weights -----------------------------------------------------------------------------------------------


def test_split_is_fixed_and_every_image_is_used_once(pictures):
    folder = list_folder(pictures)
    first, second = read_folder(folder, 16), read_folder(folder, 16)
    assert (len(first.train), len(first.test)) == (24, 6)  # two of ten of each class
    assert all(torch.equal(a, b) for a, b in zip(first.test.pixels, second.test.pixels, strict=True))
    assert not any(torch.equal(a, b) for a in first.train.pixels for b in first.test.pixels)
    assert first.test.labels == [0, 0, 1, 1, 2, 2] and folder.classes == ("blue", "green", "red")
    image, label = first.train[0]
    assert image.shape == (3, 16, 16) and label == 0 and abs(image.mean()) < 3


def test_folder_with_its_own_split(tmp_path):
    draw(tmp_path / "all" / "train", count=4), draw(tmp_path / "all" / "val", count=2)
    images = read_folder(list_folder(tmp_path / "all"), 16)
    assert (len(images.train), len(images.test)) == (12, 6)
    draw(tmp_path / "all" / "val" / "pink", ("x",), 1)
    with pytest.raises(InputError, match="has the class 'pink'"):
        list_folder(tmp_path / "all")


def test_broken_images_are_named(pictures):
    (pictures / "red" / "3.png").write_bytes(b"no image")
    cut = pictures / "blue" / "4.png"
    cut.write_bytes(cut.read_bytes()[:100])
    images = read_folder(list_folder(pictures), 16)
    assert len(images.skipped) == 2 and len(images.train) + len(images.test) == 28
    assert "red/3.png" in images.notes[0] and "blue/4.png" in images.notes[0]
    with pytest.raises(InputError, match=r"2 images \(blue/4.png.*--strict"):
        read_folder(list_folder(pictures), 16, strict=True)


def test_class_with_one_image_is_named(pictures):
    (pictures / "rare").mkdir()
    shutil.copy(pictures / "red" / "0.png", pictures / "rare")
    images = read_folder(list_folder(pictures), 16)
    assert images.notes[0] == "class 'rare' has 1 images to train and 0 to test with"
    assert images.train.labels.count(2) == 1 and 2 not in images.test.labels
    with pytest.raises(InputError, match="class 'rare' has 1"):
        read_folder(list_folder(pictures), 16, strict=True)


@pytest.mark.parametrize("make", ["none", "file", "empty", "one"])
def test_folder_that_is_none(tmp_path, make):
    folder = tmp_path / make
    if make == "file":
        folder.touch()
    elif make != "none":
        folder.mkdir()
        if make == "one":
            (folder / "only").mkdir()
    with pytest.raises(InputError, match=r"is not a folder|has no subfolder|has 1 class"):
        list_folder(folder)


def test_head_of_other_classes_is_left_out_and_said(graph, tmp_path):
    from tiny_network import make

    other = make(7)
    torch.save({"state_dict": other.state_dict()}, tmp_path / "weights.pth")
    network, note = make_network(graph, load_weights(graph.model, str(tmp_path / "weights.pth")), 0)
    assert note == "the weights' head has 7 classes, the data 3: the head starts from random weights"
    assert torch.equal(network.stem[0].weight, other.stem[0].weight) and network.head.out_features == 3
    torch.save(make(3).state_dict(), tmp_path / "same.pth")
    network, note = make_network(graph, load_weights(graph.model, str(tmp_path / "same.pth")), 0)
    assert note is None and torch.equal(network.head.weight, make(3).head.weight)


def test_weights_of_another_network_are_refused_by_name(graph, tmp_path):
    from tiny_network import wider

    path = tmp_path / "weights.pth"
    for state, said in (
        (wider(3).state_dict(), r"has 'stem.0.weight' as \(8, 3, 5, 5\), the network as \(8, 3, 3, 3\)"),
        ({"more": torch.zeros(1)}, "has 'more', which the network does not have .and"),
        ({}, "lacks"),
    ):
        torch.save(state, path)
        with pytest.raises(InputError, match=said):
            make_network(graph, load_weights(graph.model, str(path)), 0)
    for content in (b"", b"text", json.dumps({}).encode()):
        path.write_bytes(content)
        with pytest.raises(InputError, match="not a file of weights only"):
            load_weights(graph.model, str(path))
    torch.save(wider(3), path)  # a pickled module could run code
    with pytest.raises(InputError, match="not a file of weights only"):
        load_weights(graph.model, str(path))
    with pytest.raises(InputError, match="cannot read the weights"):
        load_weights(graph.model, str(tmp_path / "none.pth"))


def test_default_weights_without_a_network_say_how_to_pass_a_file(monkeypatch):
    def fail(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    with pytest.raises(InputError, match=r"no route to host.*torch.save.*--weights weights.pth"):
        load_weights("torchvision:mobilenet_v2", "DEFAULT")
    monkeypatch.setattr("timm.create_model", fail)
    with pytest.raises(InputError, match=r"no route to host.*--weights weights.pth"):
        load_weights("timm:mobilenetv2_050", "DEFAULT")
    with pytest.raises(InputError, match="has no DEFAULT weights"):
        load_weights("zoo:proxylessnas_mobile", "DEFAULT")
    with pytest.raises(InputError, match="give --weights"):
        load_weights("torchvision:mobilenet_v2", None)


# --- whole campaigns --------------------------------------------------------------------------------------------------


def campaign(pictures, storage, trials=4, watch=None, **more):
    return measure(
        TINY, pictures, ROOMY, recipe=RECIPE, trials=trials, storage=str(storage), watch=watch, **{**FAST, **more}
    )


def counted(storage):
    """Return the keys of the runs that count, and all trials of the only study."""
    url = url_of(str(storage))
    study = optuna.load_study(study_name=optuna.get_all_study_names(url)[0], storage=url)
    return [key_of(trial) for trial in study.trials if trial.state.name in ("COMPLETE", "PRUNED")], study.trials


MEMORY = Memory(1000, 500, 500, 800, 800, agrees=True)


def right(percent, images=1000):
    """Return outcomes with so many right; the first ones."""
    count = round(percent / 100 * images)
    return (True,) * count + (False,) * (images - count)


def quick(network, train, test, way, recipe, *, seed, report, schedule=None):
    """Stand in for training and take no time: the more trains, the better."""
    ends = {"last": 50.0, "full": 90.0, "norm": 80.0, "bias": 75.0}
    accuracy, epochs = ends.get(way.method, 70.0 + 5 * (way.blocks or 0)) + seed, recipe.epochs
    history = [(epoch, accuracy - epochs + epoch) for epoch in range(1, epochs + 1)]
    stopped = any([report(*each) for each in history])
    return Run(tuple(history), epochs, epochs, stopped, right(accuracy), 0.1, MEMORY)


class Interrupt(Watch):
    """Does something in the first epoch of the n-th run."""

    def __init__(self, run, do):
        self.run, self.do, self.count = run, do, 0

    def starts(self, *_):
        self.count += 1

    def epoch(self, epoch, accuracy_percent):
        if self.count == self.run and epoch == 1:
            self.do()


def interrupt():
    raise KeyboardInterrupt


def test_campaign_measures_and_recommends(pictures, tmp_path, command):
    place = tmp_path / "runs.db"
    arguments = [TINY, "--ram", "1GB", "--resolution", "16"]
    options = ["--data", str(pictures), "--epochs", "2", "--lr", "0.1", "--storage", str(place), "--trials", "3"]
    code, said, wrong = command("measure", *arguments, *options, main=cli.main)
    assert code == 0, wrong
    assert "ended: all 3 trials are done" in said and "recommended" in said
    code, said, _ = command("measure", *arguments, *options, "--json", main=cli.main)
    outcome = json.loads(said)
    assert len(outcome["runs"]) == 3 and outcome["runs"][0]["method"] == "last"  # nothing ran a second time
    assert all(run["saved_bytes"] == run["measured_saved_bytes"] for run in outcome["runs"])
    keys, trials = counted(place)
    assert keys[:2] == [(Way("last"), 0), (Way("full"), 0)]
    stored = trials[0].user_attrs
    assert torch.__version__.startswith(stored["versions"]["torch"].partition("+")[0])
    assert " measure " in stored["command"] and stored["learning_rate"] == 0.1
    assert stored["test_images"] == 6 and stored["memory"]["measured_saved_bytes"] > 0 and stored["seconds"] > 0
    code, said, _ = command("recommend", *arguments, "--classes", "3", "--evidence", str(place), main=cli.main)
    assert "measured: your runs of" in said and "trial 0, 20" in " ".join(said.replace("│", " ").split())


def test_interrupted_campaign_goes_on(pictures, tmp_path, monkeypatch, command):
    place = tmp_path / "runs.db"
    with pytest.raises(KeyboardInterrupt):
        campaign(pictures, place, watch=Interrupt(2, interrupt))
    assert len(counted(place)[0]) == 1
    outcome = campaign(pictures, place)
    keys, trials = counted(place)
    assert len(keys) == len(set(keys)) == 4 and len(trials) == 5  # the interrupted one failed at once
    assert len(outcome.runs) == 4
    monkeypatch.setattr(measuring, "measure", lambda *_, **__: interrupt())
    code, _, said = command("measure", TINY, "--data", "x", "--ram", "1GB", main=cli.main)
    assert code == 130 and "the same command goes on" in said


PARTS = {
    "data": "the images", "weights": "the weights", "graph": "the network's layers", "versions": "what is installed",
}  # fmt: skip


@pytest.mark.parametrize("part", PARTS)
def test_what_differs_is_another_study_and_said(tmp_path, part):
    place = tmp_path / "runs.db"
    whole = SETTINGS | {"graph": "g", "versions": "torch 2"}
    first = Store(str(place), whole, {"last", "blocks"}, 5, **FAST)
    assert first.note is None and claim(first).complete(60.0, False, RESULTS)
    same = Store(str(place), whole, {"last", "blocks"}, 5, **FAST)
    assert same.note is None and len(same.trials()) == 1
    other = Store(str(place), whole | {part: "other"}, {"last", "blocks"}, 5, **FAST)
    assert other.trials() == [] and f"{PARTS[part]}: other, before {whole[part]}" in other.note
    assert claim(other).complete(70.0, False, RESULTS)
    names = {row.dataset for row in load(place)}
    assert names == {f"data ({part} other)", f"data ({part} {whole[part]})"}
    assert len({row.identity for row in load(place)}) == 2 and {row.graph for row in load(place)} <= {"g", "other"}


def test_runs_of_before_are_read_and_their_identity_is_unknown(tmp_path):
    place = tmp_path / "runs.db"
    claim(store(place)).complete(60.0, False, RESULTS)  # SETTINGS has no graph and no versions
    (row,) = load(place)
    assert row.identity == "unknown" and row.source.endswith("identity unknown") and row.graph == ""
    new = Store(str(place), SETTINGS | {"graph": "g", "versions": "v"}, {"last", "blocks"}, 5, **FAST)
    assert "the network's layers: g, before unknown; what is installed: v, before unknown" in new.note
    assert claim(new).complete(70.0, False, RESULTS)
    assert {row.dataset for row in load(place)} == {
        "data (versions unknown, graph unknown)",
        "data (versions v, graph g)",
    }


def study_names(place):
    return set(optuna.get_all_study_names(url_of(str(place))))


def test_other_images_of_the_same_names_and_sizes_are_another_study(pictures, tmp_path):
    """All images are BMP files of one size; one gets another content."""
    for path in list(pictures.rglob("*.png")):
        with Image.open(path) as image:
            image.save(path.with_suffix(".bmp"))
        path.unlink()
    place = tmp_path / "runs.db"
    campaign(pictures, place, trials=1, trainer=quick)
    campaign(pictures, place, trials=1, trainer=quick)
    assert len(study_names(place)) == 1
    Image.new("RGB", (16, 16), "white").save(pictures / "red" / "0.bmp")
    outcome = campaign(pictures, place, trials=1, trainer=quick)
    assert len(study_names(place)) == 2 and any("the images: " in note for note in outcome.notes)


OWN_NETWORK = """
import torch
from torch import nn

def make(num_classes=3):
    torch.manual_seed({seed})
    body = nn.Conv2d(3, 4, 3, {stride}), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*body, nn.Linear(4, num_classes))
"""


def test_a_builder_that_changes_is_another_study_and_its_runs_are_named(pictures, tmp_path, command):
    path, place = tmp_path / "own.py", tmp_path / "runs.db"

    def run():
        return measure(
            f"{path}:make", pictures, ROOMY, recipe=RECIPE, trials=2, storage=str(place), trainer=quick, **FAST
        )

    def notes(*more):
        options = ["--ram", "1GB", "--resolution", "16", "--classes", "3", "--evidence", str(place), "--json", *more]
        code, out, err = command("recommend", f"{path}:make", *options, main=cli.main)
        assert code == 0, err
        return " ".join(json.loads(out)["notes"])

    path.write_text(OWN_NETWORK.format(seed=0, stride=1))
    run()
    assert "have changed since" not in notes()
    path.write_text(OWN_NETWORK.format(seed=1, stride=1))
    assert any("the weights: own.py" not in note and "the weights: " in note for note in run().notes)
    assert len(study_names(place)) == 2
    path.write_text(OWN_NETWORK.format(seed=1, stride=2))
    name = next(row.dataset for row in load(place))
    said = notes("--dataset", name)
    assert "4 of 4 rows of your evidence" in said and "its layers have changed since, so measure again" in said


def test_a_builder_without_a_seed_is_refused(pictures, tmp_path):
    path = tmp_path / "own.py"
    more = "import numpy as np\ndef other(num_classes=3):\n    network = make(num_classes)\n    with torch.no_grad():\n"
    more += "        network[0].weight += float(np.random.default_rng().normal())\n    return network\n"
    path.write_text(OWN_NETWORK.format(seed=0, stride=1) + more)
    with pytest.raises(InputError, match="gets other weights each time it is built"):
        measure(f"{path}:other", pictures, ROOMY, recipe=RECIPE, trials=1, storage=str(tmp_path / "runs.db"))


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf"), 1e10])
def test_rates_that_cannot_be_are_refused(pictures, tmp_path, rate):
    for rates in ((rate,), (0.1, rate)):
        with pytest.raises(InputError, match="a learning rate must be above 0 and at most 1e"):
            campaign(pictures, tmp_path / "runs.db", rates=rates)
    assert not (tmp_path / "runs.db").exists()


def test_hopeless_run_is_stopped_and_not_recommended(pictures, tmp_path):
    """It promises much and is far below the rest after one epoch of two: 1000 test images make that sure."""

    def trainer(network, train, test, way, recipe, *, report, seed, schedule=None):
        if way.method != "mobiletl":
            return quick(network, train, test, way, recipe, report=report, seed=seed)
        stopped = report(1, 20.0)
        return Run(((1, 20.0),), 1, 1, stopped, right(20.0), 0.1, MEMORY)

    outcome = campaign(pictures, tmp_path / "runs.db", trials=12, trainer=trainer)
    stopped = [run for run in outcome.runs if run.stopped]
    assert ("mobiletl", 20.0) in {(run.way.method, run.accuracy_percent) for run in stopped}
    keys = [run.way for run in stopped]
    assert len(keys) == len(set(keys))  # once is enough
    ended = [c for c in outcome.after.candidates if c.way in keys]
    assert outcome.after.chosen.way.method == "full" and not set(map(id, ended)) & set(map(id, outcome.after.rivals))
    assert all(c.recovery.accuracy_high_percent < 50 for c in ended if c.way.method == "mobiletl")


def test_every_run_is_checked_and_a_mismatch_is_said(pictures, tmp_path):
    def off(*arguments, **options):
        run, saved = quick(*arguments, **options), MEMORY.saved_bytes
        return replace(run, memory=replace(MEMORY, measured_saved_bytes=saved + 4, agrees=False))

    outcome = campaign(pictures, tmp_path / "runs.db", trials=1, trainer=off)
    assert not outcome.runs[0].memory_agrees
    assert outcome.runs[0].measured_saved_bytes - outcome.runs[0].saved_bytes == 4
    console = Console(width=150)
    with console.capture() as captured:
        for part in tables(outcome):
            console.print(part)
    said = captured.get()
    assert "DIFFERS" in said and "memory not as predicted in trial 0" in said


def test_candidate_that_cannot_be_trained_is_left_out(pictures, tmp_path):
    def refuse(network, train, test, way, recipe, **options):
        if way.method == "full":
            raise RuntimeError("out of memory")
        return quick(network, train, test, way, recipe, **options)

    def refuse_all(*_, **__):
        raise RuntimeError("out of memory")

    outcome = campaign(pictures, tmp_path / "runs.db", trials=3, trainer=refuse)
    assert outcome.failed == {"full": "out of memory"} and len(outcome.runs) == 3
    with pytest.raises(InputError.__base__, match="last cannot be trained: out of memory"):
        campaign(pictures, tmp_path / "other.db", trials=3, trainer=refuse_all)


def test_full_disk_is_one_line_and_the_rerun_completes(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr("random.random", lambda: 0.0)  # Optuna's waits between attempts
    place = tmp_path / "runs.db"
    campaign(pictures, place, trials=1)

    def full(connection, _):
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")

    sqlalchemy.event.listen(sqlalchemy.engine.Engine, "connect", full)
    try:
        with pytest.raises(StorageError, match=r"disk is full.*run the same command again") as error:
            campaign(pictures, place, trials=30)
    finally:
        sqlalchemy.event.remove(sqlalchemy.engine.Engine, "connect", full)
    assert "\n" not in str(error.value)
    kept, _ = counted(place)
    age(place)
    campaign(pictures, place, trials=len(kept) + 2)
    keys, _ = counted(place)
    assert keys[: len(kept)] == kept and len(keys) == len(set(keys)) == len(kept) + 2


@pytest.mark.parametrize("how", ["read-only", "deleted"])
def test_a_database_that_is_lost_in_mid_campaign_is_one_line(pictures, tmp_path, monkeypatch, how):
    """What is stored stays, what could not be stored is said, and the same command goes on."""
    monkeypatch.setattr("random.random", lambda: 0.0)  # Optuna's waits between attempts
    place = tmp_path / "runs.db"

    def refuse(connection, cursor, statement, *_):
        if statement.startswith(("INSERT", "UPDATE")):
            raise sqlite3.OperationalError("attempt to write a readonly database")

    def lose():
        if how == "deleted":
            place.rename(tmp_path / "away.db")
        else:
            sqlalchemy.event.listen(sqlalchemy.engine.Engine, "before_cursor_execute", refuse)

    try:
        with pytest.raises(StorageError, match="run the same command again to go on") as error:
            campaign(pictures, place, watch=Interrupt(2, lose), trainer=quick)
    finally:
        if how == "read-only":
            sqlalchemy.event.remove(sqlalchemy.engine.Engine, "before_cursor_execute", refuse)
    assert "\n" not in str(error.value) and "accuracy" in str(error.value)
    if how == "deleted":
        (tmp_path / "away.db").rename(place)
    assert len(counted(place)[0]) == 1
    age(place)
    campaign(pictures, place, trainer=quick)
    keys, _ = counted(place)
    assert len(keys) == len(set(keys)) == 4


@pytest.mark.parametrize("which", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_campaign_that_is_asked_to_stop_gives_its_run_back(pictures, tmp_path, which):
    place = tmp_path / "runs.db"
    program = [sys.executable, "-c", "from planner.interface.cli import main; main()", "measure", TINY, "--ram", "1GB"]
    program += ["--data", str(pictures), "--resolution", "16", "--lr", "0.1", "--epochs", "100000"]
    program += ["--storage", str(place), "--trials", "2"]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
    number = getattr(signal, which)
    with subprocess.Popen(
        program, env={**os.environ, "PYTHONPATH": paths}, stderr=subprocess.PIPE, text=True,
        # The tests may run in the background, where a shell lets signals be ignored, which children inherit.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    ) as worker:  # fmt: skip
        try:
            until = time.monotonic() + 60
            while time.monotonic() < until:
                with contextlib.suppress(Exception):
                    if counted(place)[1][0].intermediate_values:
                        break
                time.sleep(0.2)
            worker.send_signal(number)
            _, said = worker.communicate(timeout=60)
        finally:
            worker.kill()
    assert worker.returncode == 130
    assert "finished runs are kept in" in said and "Traceback" not in said
    (trial,) = counted(place)[1]
    assert trial.state.name == "FAIL" and trial.user_attrs["failed"] == "interrupted"


def work(pictures, storage, trials, start=None, watch=None):
    """One worker, in a process of its own."""
    waits = [start] if start is not None else []

    class Together(Watch):
        def starts(self, *_):  # in the first run, wait until the other worker is in its first
            if waits:
                waits.pop().wait(120)

    campaign(pictures, storage, trials, watch or Together())


def kill_and_rerun(pictures, storage):
    """Kill a worker in the middle of its second run, and run the same campaign again."""
    busy = FORK.Event()
    watch = Interrupt(2, lambda: (busy.set(), time.sleep(600)))
    worker = FORK.Process(target=work, args=(pictures, storage, 4, None, watch))
    worker.start()
    assert busy.wait(120)
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    keys, trials = counted(storage)
    assert len(keys) == 1 and trials[1].state.name == "RUNNING"
    age(storage)
    campaign(pictures, storage)
    keys, trials = counted(storage)
    assert len(keys) == len(set(keys)) == 4 and trials[1].state.name == "FAIL"
    assert key_of(trials[1]) in keys  # the run that broke off was done again


def two_workers(pictures, storage):
    start = FORK.Barrier(2)
    workers = [FORK.Process(target=work, args=(pictures, storage, 6, start)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(240)
    assert [worker.exitcode for worker in workers] == [0, 0]
    keys, trials = counted(storage)
    assert len(keys) == len(set(keys)) == 6
    assert len({t.user_attrs["worker"] for t in trials if t.state.name in ("COMPLETE", "PRUNED")}) == 2


def test_killed_worker_sqlite(pictures, tmp_path):
    kill_and_rerun(pictures, tmp_path / "runs.db")


def test_two_workers_sqlite(pictures, tmp_path):
    two_workers(pictures, tmp_path / "runs.db")


# --- PostgreSQL -------------------------------------------------------------------------------------------------------


def _program(name: str) -> str | None:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(found[-1]) if found else None)


class Server:
    """A PostgreSQL server on a socket in a folder of its own, as a user that is not root."""

    def __init__(self, folder: Path):
        self.folder, self.user = folder, "nobody" if os.getuid() == 0 else None
        if self.user:
            shutil.chown(folder, self.user)
        self.run("initdb", "-D", folder / "data", "-A", "trust", "-U", "me", "--no-sync")
        self.start()

    @property
    def url(self) -> str:
        return f"postgresql://me@/postgres?host={self.folder}"

    def run(self, program, *arguments):
        command = [_program(program), *map(str, arguments)]
        subprocess.run(command, check=True, user=self.user, cwd=self.folder, stdout=subprocess.DEVNULL, timeout=60)

    def start(self):
        options = f"-k {self.folder} -c listen_addresses='' -c fsync=off"
        self.run("pg_ctl", "-D", self.folder / "data", "-l", self.folder / "log", "-w", "-o", options, "start")

    def stop(self):
        self.run("pg_ctl", "-D", self.folder / "data", "-m", "immediate", "-w", "stop")


@pytest.fixture
def server():
    if not _program("initdb") or not _program("pg_ctl"):
        pytest.skip("needs the programs of a PostgreSQL server")
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    try:
        running = Server(folder)
        yield running
        running.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_postgresql(pictures, server):
    """Two workers, then a server that goes away in the middle of a run and comes back."""
    two_workers(pictures, server.url)
    assert len(load(server.url)) == 6
    with pytest.raises(StorageError, match="run the same command again to go on") as error:
        campaign(pictures, server.url, trials=8, watch=Interrupt(1, server.stop))
    assert "\n" not in str(error.value) and "accuracy" in str(error.value)
    server.start()
    age(server.url)
    campaign(pictures, server.url, trials=8)
    keys, _ = counted(server.url)
    assert len(keys) == len(set(keys)) == 8


PASSWORD = "s3cretPW"


def test_no_password_anywhere(pictures, server, command, monkeypatch, tmp_path):
    """However it is given: in no output, no traceback, and in no byte of the server's files."""
    monkeypatch.chdir(tmp_path)
    locations = [
        f"postgresql://me:{PASSWORD}@/postgres?host={server.folder}",
        f"postgresql://me@/postgres?host={server.folder}&password={PASSWORD}",
        f"postgresql://me@/postgres?host={server.folder}",
    ]
    common = [TINY, "--ram", "1GB", "--resolution", "16"]
    said = []
    for number, location in enumerate(locations):
        monkeypatch.setenv("PGPASSWORD", PASSWORD if number == 2 else "")
        measuring = ["measure", *common, "--data", str(pictures), "--epochs", "1", "--lr", "0.1", "--trials", "1"]
        for storage in ([f"--storage={location}"], ["--storage", location]):
            code, out, err = command(*measuring, *storage, "--json", main=cli.main)
            assert code == 0, err
            said += [out, err]
        for evidence in ([f"--evidence={location}"], ["--evidence", location]):
            for more in (
                ["recommend", *common, "--json"],
                ["recommend", *common],
                ["candidates", *common[:1], "--csv"],
            ):
                code, out, err = command(*more, *evidence, main=cli.main)
                assert code == 0, err
                said += [out, err]
        for wrong in (
            location.replace("postgres?", "none?"),
            location.replace("@/", "@h:x/"),
            location + "&a=b",
            "x" + location,
        ):
            for debug in ([], ["--debug"]):
                code, out, err = command("recommend", *common, "--evidence", wrong, *debug, main=cli.main)
                assert code == 2 and err
                said += [out, err]
    assert len(said) > 60 and not [text for text in said if PASSWORD in text]
    server.stop()
    kept = [path for path in server.folder.rglob("*") if path.is_file() and path.name != "log"]
    assert len(kept) > 100 and not [path for path in kept if PASSWORD.encode() in path.read_bytes()]
    assert any(b"--storage=postgresql://me:***@/postgres" in path.read_bytes() for path in kept)
    server.start()


# --- learning rates, chance and divergence ----------------------------------------------------------------------------


def test_each_way_gets_the_rate_that_is_best_on_validation_images(pictures, tmp_path):
    """The head wants the largest, blocks the smallest; no test image is seen while rates are tried, nor twice."""
    seen = []

    def trainer(network, train, test, way, recipe, *, report, seed, schedule=None):
        found = quick(network, train, test, way, recipe, report=report, seed=seed)
        best = 0.3 if way.method == "last" else 0.01
        seen.append((way, recipe.learning_rate, seed, len(train), len(test)))
        if seed < 100:
            return found
        return replace(found, history=((2, 90.0 if recipe.learning_rate == best else 40.0),))

    place = tmp_path / "runs.db"
    with pytest.raises(KeyboardInterrupt):
        campaign(pictures, place, watch=Interrupt(2, interrupt), trainer=trainer, rates=(0.01, 0.1, 0.3))
    outcome = campaign(pictures, place, trainer=trainer, rates=(0.01, 0.1, 0.3))
    for run in outcome.runs:
        assert run.learning_rate == (0.3 if run.way.method == "last" else 0.01)
    images = read_folder(list_folder(pictures), 16)
    tried = [each for each in seen if each[2] >= 100]
    assert len({each[:2] for each in tried}) == len(tried) > 3  # what was tried before the interruption stays known
    assert {each[3] + each[4] for each in tried} == {len(images.train)}
    assert {each[3:] for each in seen if each[2] < 100} == {(len(images.train), len(images.test))}
    frame = load(place)
    assert {row.model for row in frame} == {outcome.after.chosen.model}


def test_validation_images_are_of_every_class_and_never_train(pictures):
    images = read_folder(list_folder(pictures), 16).train
    train, validation = split(images)
    assert not set(train.indices) & set(validation.indices)
    assert len(train) + len(validation) == len(images)
    assert {images.labels[i] for i in validation.indices} == set(images.labels)


def test_what_is_not_above_chance_is_no_recommendation(pictures, tmp_path):
    def trainer(network, train, test, way, recipe, *, report, seed, schedule=None):
        found = quick(network, train, test, way, recipe, report=report, seed=seed)
        return replace(found, history=((2, 35.0),), correct=right(35.0), diverged=way.method == "full")

    outcome = campaign(pictures, tmp_path / "runs.db", trainer=trainer)
    assert outcome.chance_percent == pytest.approx(100 / 3) and not outcome.above_chance
    assert any("training and 6 test images of 3 classes" in note for note in outcome.notes)
    console = Console(width=150)
    with console.capture() as captured:
        for part in tables(outcome):
            console.print(part)
    said = captured.get()
    assert "nothing is recommended" in said and "not above chance, 33.3 %" in said and "DIVERGED" in said
    assert "recommended: " not in said.replace("nothing is recommended", "")


def test_a_run_that_diverges_is_said():
    images = 1e3 * torch.randn(16, 3, 8, 8), torch.arange(16) % 2
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2))
    run = fine_tune(network, images, images, Way("full"), Recipe(2, 1e38, 8, 8), check_memory=False)
    assert run.diverged
    calm = fine_tune(network, images, images, Way("full"), Recipe(2, 1e-3, 8, 8), check_memory=False)
    assert not calm.diverged


def test_a_database_whose_text_is_damaged_is_one_line(pictures, tmp_path):
    import sqlite3

    place = tmp_path / "runs.db"
    campaign(pictures, place, trials=1)
    with sqlite3.connect(place) as database:
        database.execute("update studies set study_name = cast(x'ff6e6f' as text)")
    with pytest.raises(StorageError, match="UTF-8"):
        load(place)
