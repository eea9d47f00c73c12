"""Accuracy as recovery: how far a method goes from training the last layer only (0) to training everything (1).

    recovery(method, data set) = (accuracy(method) - accuracy(last)) / (accuracy(full) - accuracy(last))

on one network, resolution and batch. Below, the same is counted between the logits of the accuracies (`model.py`), where
it carries over best; as a recovery it is shown between the accuracies of a typical data set, or of the user's.

An estimate is of one of these kinds:

- `definition`: last (0) and full (1).
- `measured`: the user's own runs of this very way.
- `interpolated`: the user's own runs of the method at a lower and at a higher depth, with what evidence says of depth.
- `prior`: published accuracies, partially pooled over networks, data sets and methods; together with what runs the user
  has of other ways.
- `unknown`: nothing. The value is None; nothing is put in its place.

With runs of the user's own every way gets an accuracy (`anchored.py`); last and full tell most. The interval of a way
that was not measured is that of a run of it on as many test images as the user's runs had.

A batch norm with batch statistics sees one batch. Evidence is of batches of 8 images and more; what fewer do is not
known, and such ways are unknown unless they were measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from costmodel import METHODS, Way, anchor

from ..evidence.rows import Row, named_way, published
from .anchored import FULL, LAST, Expected, Level, expect
from .backbones import shift
from .estimated import Believed, Estimate, Kind
from .logits import percent
from .model import Model, Place, family_of, model_of, model_with, published_model
from .observations import seed_points
from .runs import Measured, data_set, elsewhere, measured_runs, sampling_points
from .setting import Setting
from .terms import Terms, terms

__all__ = ["Estimate", "Setting", "data_set", "estimate", "estimates"]

# Source: the smallest batch of the published rows of methods with batch statistics (TinyTL, MobileTL: 8).
LEAST_IMAGES_PER_NORM = 8
# Standard deviation, in logits, for each doubling of the resolution by which a run of the user's own is away. Source:
# Cars by TinyTL, last and full at 96 to 320 pixels (Figure 3, Table 2): 0.7 to 0.9 logits for each doubling.
RESOLUTION_LOGITS = 0.8
ENDS = {anchor("last"): LAST, anchor("full"): FULL}


def estimate(
    method: Way | str,
    k: int | None,
    setting: Setting,
    rows: Sequence[Row] | None = None,
    own: Sequence[Row] = (),
    dataset: str | None = None,
) -> Estimate:
    """Return the recovery to expect of a way of training in a setting, and the accuracy.

    method: a `Way`, or the name of a method, with its depth k if it takes one. rows: the published accuracies; those of
    the package if None. own: the user's rows (`planner.evidence.load`); dataset: which of their data sets it is about,
    if they hold several.

    Errors: ValueError if k is not in 1 to block_count; InputError for a data set that is not there or not chosen, and
    for a row of more blocks than the network has.
    """
    asked = method if isinstance(method, Way) else named_way(method, k)
    return estimates([asked], setting, rows, own, dataset)[0]


def estimates(
    ways: Sequence[Way],
    setting: Setting,
    rows: Sequence[Row] | None = None,
    own: Sequence[Row] = (),
    dataset: str | None = None,
) -> list[Estimate]:
    """Return the estimate of each way, as `estimate` does."""
    name = data_set(own, dataset)
    runs = {} if name is None else measured_runs(own, name, setting)
    near = () if name is None else elsewhere(own, name, setting)
    model = published_model() if rows is None else model_of(tuple(rows))
    if near:
        model = model_with(model, near)
    found = _Question(model, setting, name, runs, near)
    return [found.estimate(way) for way in ways]


class _Question:
    """A network, a data set, and the user's runs."""

    def __init__(
        self, model: Model, setting: Setting, name: str | None, runs: Mapping[Way, Measured], near: Sequence[Row]
    ):
        self.model, self.setting, self.name, self.runs = model, setting, name, runs
        self.place = Place(setting.name, name or "", setting.few_shot)
        self.typical = model.typical(setting.few_shot)
        self.level = _level(model, self.typical, near, setting)
        self.additive = model.components.additive(setting.few_shot)
        self.images = min((each.test_images for each in runs.values() if each.test_images), default=None)

    def estimate(self, way: Way) -> Estimate:
        """Return what to expect of a way."""
        known, reason = self._terms(way)
        if known is None:
            guess = Estimate.unknown(reason)
            return self._measured(guess, way, None) if way in self.runs else guess
        if not self.runs:
            return self._prior(way, known)
        belief, numbers = self._with_runs(way, known)
        number = ENDS.get(way, numbers.get(way, 0))
        guess = replace(self._prior(way, known), believed=Believed(belief, number))
        return self._measured(guess, way, belief) if way in self.runs else self._predicted(guess, way, belief, number)

    def _terms(self, way: Way) -> tuple[Terms | None, str]:
        """Return the terms of a way, or why nothing is known of it."""
        setting, method = self.setting, METHODS.get(way.method)
        for family in family_of(way.method):
            relative = way if family == way.method else Way(family, way.blocks, way.options)
            found = terms(relative, setting)  # refuses a depth that the network has not
            if found is not None and self.model.knows(found):
                break
        else:
            return None, f"no published accuracy of {way.label!r} next to the last layer only and full fine-tuning"
        if setting.converted:
            return None, (
                f"{way.method!r} changes what {setting.model} computes (group norm, standardised weights), so that its "
                "pre-training does not hold; published for networks that were pre-trained so"
            )
        if method is not None and method.needs_norm and not setting.has_norm:
            return None, f"no published network without norm layers was trained by {method.name!r}"
        seen = setting.images_per_norm
        if seen is not None and seen < LEAST_IMAGES_PER_NORM:
            return None, (
                f"its norms take their statistics from {seen} image{'s' if seen > 1 else ''} at once; published are "
                f"{LEAST_IMAGES_PER_NORM} and more. Take larger batches, or the option norm_statistics=running"
            )
        return found, ""

    def _prior(self, way: Way, known: Terms) -> Estimate:
        """Return what evidence alone says of a way."""
        setting, typical = self.setting, self.typical
        belief = self.model.belief([known], self.place)
        mean, deviation = float(belief.mean[0]), float(belief.deviation[0])
        above = shift(setting)
        shown = None if above is None else float(percent(typical.last + typical.gap * mean + above))
        method = METHODS.get(way.method)
        if method is not None and method.anchor is not None:
            rests_on = "the scale itself: training the last layer only is 0, training everything is 1"
            return Estimate(known.offset, known.offset, known.offset, "definition", "", rests_on,
                            "exact, by definition", typical_percent=shown)  # fmt: skip
        half = 1.645 * (deviation**2 + (self.additive / typical.gap) ** 2) ** 0.5
        value, low, high = (self._share(each) for each in (mean, mean - half, mean + half))
        return Estimate(
            value, low, high, "prior", self._source(known), self._rests_on(known), "90 % for one further data set",
            typical_percent=shown,
        )  # fmt: skip

    def _share(self, between_logits: float) -> float:
        """Return a recovery between the accuracies of last and full on a typical data set."""
        typical = self.typical
        last, value, full = percent(typical.last + typical.gap * _array(0.0, between_logits, 1.0)).tolist()
        return (value - last) / (full - last)

    def _source(self, known: Terms) -> str:
        own = [each for each in self.model.rows_of(known.family) if each.few_shot == self.setting.few_shot]
        sources = dict.fromkeys(each.source.partition(";")[0] for each in own or self.model.rows_of(known.family))
        return "; ".join(sources)

    def _rests_on(self, known: Terms) -> str:
        rows = self.model.rows_of(known.family)
        networks = {row.model.rpartition(":")[2] for row in rows}
        data_sets = {(row.dataset, row.few_shot) for row in rows}
        text = (
            f"{len(rows)} observed accuracies of {known.family} on {_count(networks, 'network')} and "
            f"{_count(data_sets, 'data set')}, with all others pooled by how much networks, data sets and methods differ"
        )
        return text if self.setting.name in networks else f"{text}; none is of {self.setting.model}"

    def _with_runs(self, way: Way, known: Terms) -> tuple[Expected, dict[Way, int]]:
        """Return what to expect of a way and of all that were measured, and their numbers."""
        seen: dict[Way, Terms] = {} if way in ENDS else {way: known}
        for own in self.runs:
            if own not in ENDS and own not in seen and (terms_of := self._terms(own)[0]) is not None:
                seen[own] = terms_of
        numbers = {each: number for number, each in enumerate(seen)}
        belief = self.model.belief(list(seen.values()), self.place)
        measured = {ENDS.get(own, numbers.get(own, 0)): run for own, run in self.runs.items()
                    if own in ENDS or own in numbers}  # fmt: skip
        scatter = seed_points(self.setting.few_shot)
        return expect(belief, self.additive, self.level, measured, scatter), numbers

    def _measured(self, guess: Estimate, way: Way, expected: Expected | None) -> Estimate:
        run, accuracy = self.runs[way], self.runs[way].accuracy
        guess = replace(
            guess, accuracy_percent=accuracy.value, accuracy_low_percent=accuracy.low,
            accuracy_high_percent=accuracy.high, accuracy_kind="measured",
            accuracy_rests_on=f"your runs of {way.label} ({run.runs}x) on {self.name}: {run.source}",
            accuracy_interval=run.spread, expected_percent=accuracy.value,
        )  # fmt: skip
        if expected is None or guess.believed is None:
            return guess
        guess = replace(guess, expected_percent=expected.accuracy(guess.believed.number)[0])
        return self._recovery(guess, expected, "measured", f"your runs of {way.label}")

    def _predicted(self, guess: Estimate, way: Way, expected: Expected, number: int) -> Estimate:
        """Return the estimate with what the runs of other ways lead to expect."""
        value, _, _ = expected.accuracy(number)
        images, scatter = self.images, seed_points(self.setting.few_shot)
        error = (scatter**2 + (sampling_points(value, images) ** 2 if images else 0.0)) ** 0.5
        value, low, high = expected.accuracy(number, error)
        depths = [own.blocks for own in self.runs if own.blocks and replace(own, blocks=way.blocks) == way]
        between = way.blocks is not None and any(k < way.blocks for k in depths) and any(k > way.blocks for k in depths)
        kind: Kind = "interpolated" if between else "prior"
        others = ", ".join(f"{own.label} ({run.accuracy.value:.4g} %)" for own, run in self.runs.items())
        of_run = f"a run on {images} test images" if images else "a run, without the error of its test images"
        guess = replace(
            guess, accuracy_percent=value, accuracy_low_percent=low, accuracy_high_percent=high, accuracy_kind=kind,
            accuracy_rests_on=f"your runs on {self.name} of {others}, and the recovery that evidence leads to expect",
            accuracy_interval=f"90 % for {of_run}", expected_percent=value,
        )  # fmt: skip
        return self._recovery(guess, expected, kind, f"your runs of {others}")

    def _recovery(self, guess: Estimate, expected: Expected, kind: Kind, runs: str) -> Estimate:
        """Return the estimate with the recovery on the user's data, where training more helps there at all."""
        if guess.kind == "definition" or not expected.training_more_helps or not ENDS.keys() <= self.runs.keys():
            return guess
        last, full = percent(_array(expected.last[0], expected.last[0] + expected.gap[0])).tolist()
        ends = (guess.accuracy_percent, guess.accuracy_low_percent, guess.accuracy_high_percent)
        value, low, high = ((each - last) / (full - last) for each in ends if each is not None)
        return replace(guess, value=value, low=low, high=high, kind=kind, rests_on=f"{runs}, between last and full",
                       interval=guess.accuracy_interval)  # fmt: skip


def _level(model: Model, typical, near: Sequence[Row], setting: Setting) -> Level:
    """Return what to expect of last and of the gap: as in a typical cell, or as the user's runs elsewhere say."""
    for last, gap, doublings in model.levels(near, setting):
        away = max(RESOLUTION_LOGITS * doublings, 0.1)
        return Level(last, away, gap, away)
    return Level(typical.last, typical.last_deviation, typical.gap, typical.gap_deviation)


def _count(names: set, what: str) -> str:
    return f"{len(names)} {what}{'' if len(names) == 1 else 's'}"


def _array(*values: float):
    import numpy as np

    return np.array(values)
