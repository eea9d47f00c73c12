"""Accuracy as recovery: how far a method goes from training the last layer only (0) to training everything (1).

    recovery(method, data set) = (accuracy(method) - accuracy(last)) / (accuracy(full) - accuracy(last))

on one network, resolution and batch. Below, the same is counted between the logits of the accuracies (`model.py`),
where it carries over best; it is shown between the accuracies of a typical data set, or of the user's.

An estimate is of one of these kinds:

- `definition`: last (0) and full (1).
- `measured`: the user's own runs of this very way.
- `interpolated`: the user's own runs of the method at a lower and at a higher depth, with what evidence says of depth.
- `prior`: published accuracies, partially pooled over networks, data sets and methods; together with what runs the user
  has of other ways.
- `unknown`: nothing. The value is None; nothing is put in its place.

With runs of the user's own every way gets an accuracy (`anchored.py`); last and full tell most. The interval of a way
that was not measured is that of a run of it on as many test images as the user's runs had. Runs of the same network at
another resolution or batch tell what to expect of last and full, too, with an interval that grows with the distance.

A batch norm with batch statistics sees one batch. Evidence is of batches of 8 images and more; what fewer do is not
known, and such ways are unknown unless they were measured.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from costmodel import METHODS, Way, anchor
from costmodel.units import counted

from ..evidence.rows import Row, named_way
from .anchored import FULL, LAST, Expected, Level, expect
from .backbones import shift
from .estimated import Believed, Estimate, Kind
from .intervals import Z95
from .logits import logit, per_point, percent
from .model import Model, Place, family_of, model_of, model_with, published_model
from .observations import gaps, sampling_points, seed_points
from .runs import Measured, data_set, elsewhere, measured_runs
from .setting import LEAST_IMAGES, Setting
from .terms import Terms, terms

__all__ = ["Estimate", "Setting", "data_set", "estimate", "estimates"]

# Standard deviation, in logits, for each doubling of the resolution by which a run of the user's own is away. Source:
# Cars by TinyTL, last and full at 96 to 320 pixels (Figure 3, Table 2): 0.7 to 0.9 logits for each doubling.
RESOLUTION_LOGITS = 0.8
# Standard deviation, in logits, of what another batch changes. Assumption: no more than a few points.
BATCH_LOGITS = 0.1
# A way that is measured further than so many standard deviations from what last, full and evidence lead to expect tells
# nothing of the others: its training went wrong, or it is like nothing observed. Assumption.
_OUTLYING = 4.0
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
    """Return the estimate of each way, as `estimate` does; they know how far one is from another (`Believed`)."""
    name = data_set(own, dataset)
    model = published_model() if rows is None else model_of(tuple(rows))
    question = _Question(model, setting, name, own, ways)
    return [question.estimate(way) for way in ways]


class _Question:
    """A network and a data set, with the user's runs, and ways of training: what to expect of all of them together."""

    def __init__(self, model: Model, setting: Setting, name: str | None, own: Sequence[Row], ways: Collection[Way]):
        self.setting, self.name = setting, name
        self.runs = {} if name is None else measured_runs(own, name, setting)
        per_class = setting.images_per_class
        self.near = () if name is None else tuple(
            row.model_copy(update={"depth_of": setting.block_count or None, "images_per_class": per_class})
            for row in elsewhere(own, name, setting)
        )  # fmt: skip
        self.model = model_with(model, self.near) if self.near else model
        self.typical = self.model.typical(setting.few_shot)
        self.images = min((each.test_images for each in self.runs.values() if each.test_images), default=None)
        self.scatter = seed_points(setting.few_shot)
        found = {way: self._terms(way) for way in dict.fromkeys((*ways, *self.runs))}
        self.unknown = {way: reason for way, reason in found.items() if isinstance(reason, str)}
        self.terms = {way: known for way, known in found.items() if not isinstance(known, str)}
        among = [way for way in self.terms if way not in ENDS]
        self.numbers = ENDS | {way: number for number, way in enumerate(among)}
        self.belief = self.model.belief(
            [self.terms[way] for way in among], Place(setting.name, name or "", setting.few_shot)
        )
        self.additive = self.model.components.additive(setting.few_shot)
        ends = {number: self.runs[way] for way, number in ENDS.items() if way in self.runs}
        self.from_ends = self.expected = self._expect(ends)
        if told := {number: run for way, number in self.numbers.items() if (run := self._told(way))}:
            self.expected = self._expect(ends | told)

    def _expect(self, measured: Mapping[int, Measured]) -> Expected:
        return expect(self.belief, self.additive, self._level(), measured, self.scatter)

    def _told(self, way: Way) -> Measured | None:
        """Return the runs of a way if they tell something of others: not so far off that something went wrong."""
        run, number = self.runs.get(way), self.numbers[way]
        if run is None or way in ENDS:
            return None
        error = math.hypot(run.standard_error, self.scatter) * float(per_point(run.accuracy.value))
        apart = float(logit(run.accuracy.value)) - float(self.from_ends.logits[number])
        return run if abs(apart) <= _OUTLYING * math.hypot(self.from_ends.deviation(number), error) else None

    def _level(self) -> Level:
        """Return what to expect of last and of the gap: as the user's runs elsewhere say, or as in a typical cell."""
        found = []
        for cell, (last, gap) in gaps(self.near).items():
            pixels = self.setting.resolution, cell.resolution
            doublings = abs(math.log2(pixels[0] / pixels[1])) if pixels[0] and pixels[1] else 0.0
            found.append((math.hypot(BATCH_LOGITS, RESOLUTION_LOGITS * doublings), last, gap))
        if found:
            away, last, gap = min(found)
            return Level(last, away, gap, away)
        typical = self.typical
        return Level(typical.last, typical.last_deviation, typical.gap, typical.gap_deviation)

    def _terms(self, way: Way) -> Terms | str:
        """Return the terms of a way, or why nothing is known of it."""
        setting, method = self.setting, METHODS.get(way.method)
        if not setting.classifies and way not in ENDS:
            return "what was published is of classifiers, and this network gives no class for a whole image"
        for family in family_of(way.method):
            relative = way if family == way.method else Way(family, way.blocks, way.options)
            found = terms(relative, setting)  # refuses a depth that the network has not
            if found is not None and self.model.knows(found):
                break
        else:
            return "no accuracy of such a way was published, next to those of the last layer only and of everything"
        if way in setting.converted:
            return (
                "the method changes what the network computes (group norm, standardised weights), so that its "
                "pre-training does not hold; published for networks that were pre-trained so"
            )
        if method is not None and method.needs_norm and not setting.has_norm:
            return "no published network without norm layers was trained so"
        seen = setting.images_per_norm.get(way, LEAST_IMAGES)
        if seen < LEAST_IMAGES:
            return (
                f"norms take their statistics from fewer than {LEAST_IMAGES} images at once, which nobody observed; "
                "take larger batches, or the option norm_statistics=running"
            )
        return found

    def estimate(self, way: Way) -> Estimate:
        """Return what to expect of a way."""
        guess = self._prior(way) if way in self.terms else Estimate.unknown(self.unknown[way])
        if way in self.runs:
            return self._measured(guess, way)
        return self._predicted(guess, way) if way in self.terms and (self.runs or self.near) else guess

    def _prior(self, way: Way) -> Estimate:
        """Return what evidence alone says of a way, on a typical data set."""
        known, number = self.terms[way], self.numbers[way]
        typical, above = self.typical, shift(self.setting)
        guess = Estimate.unknown("")
        mean, deviation = known.offset, 0.0
        if way not in ENDS:
            mean, deviation = float(self.belief.mean[number]), float(self.belief.deviation[number])
        here = float(percent(typical.last + typical.gap * mean))
        guess = replace(
            guess,
            typical_percent=None if above is None else float(percent(typical.last + typical.gap * mean + above)),
            expected_percent=here,
            believed=Believed(self.expected, number),
        )
        if way in ENDS:
            rests_on = "the scale itself: training the last layer only is 0, training everything is 1"
            return replace(
                guess, value=mean, low=mean, high=mean, kind="definition", rests_on=rests_on,
                interval="exact, by definition",
            )  # fmt: skip
        half = Z95 * math.hypot(deviation, self.additive / typical.gap)
        value, low, high = (self._share(each) for each in (mean, mean - half, mean + half))
        return replace(
            guess, value=value, low=low, high=high, kind="prior", source=self._source(known),
            rests_on=self._rests_on(known), interval="90 % for one further data set",
        )  # fmt: skip

    def _share(self, between_logits: float) -> float:
        """Return a recovery between the accuracies of last and full on a typical data set."""
        typical = self.typical
        last, value, full = percent(typical.last + typical.gap * np.array([0.0, between_logits, 1.0])).tolist()
        return (value - last) / (full - last)

    def _source(self, known: Terms) -> str:
        rows = self.model.rows_of(known.family)
        own = [row for row in rows if row.few_shot == self.setting.few_shot]
        return "; ".join(dict.fromkeys(row.source.partition(";")[0] for row in own or rows))

    def _rests_on(self, known: Terms) -> str:
        rows = self.model.rows_of(known.family)
        networks = {row.model.rpartition(":")[2] for row in rows}
        data_sets = {(row.dataset, row.few_shot) for row in rows}
        text = (
            f"{len(rows)} observed accuracies of {known.family} on {counted(len(networks), 'network')} and "
            f"{counted(len(data_sets), 'data set')}, in one model with those of the other methods"
        )
        return text if self.setting.name in networks else f"{text}; none is of {self.setting.model}"

    def _measured(self, guess: Estimate, way: Way) -> Estimate:
        run, accuracy = self.runs[way], self.runs[way].accuracy
        guess = replace(
            guess, accuracy_percent=accuracy.value, accuracy_low_percent=accuracy.low,
            accuracy_high_percent=accuracy.high, accuracy_kind="measured",
            accuracy_rests_on=f"your runs of {way.label} ({run.runs}x) on {self.name}: {run.source}",
            accuracy_interval=run.spread, expected_percent=accuracy.value,
        )  # fmt: skip
        if way in ENDS or (way in self.terms and self._told(way)):
            guess = replace(guess, expected_percent=self.expected.accuracy(self.numbers[way])[0])
        else:
            guess = replace(guess, believed=None)
        return self._recovery(guess, "measured", f"your runs of {way.label}")

    def _predicted(self, guess: Estimate, way: Way) -> Estimate:
        """Return the estimate with what the runs of other ways lead to expect."""
        number = self.numbers[way]
        value, _, _ = self.expected.accuracy(number)
        error = math.hypot(self.scatter, sampling_points(value, self.images) if self.images else 0.0)
        value, low, high = self.expected.accuracy(number, error)
        depths = [own.blocks for own in self.runs if own.blocks and replace(own, blocks=way.blocks) == way]
        between = way.blocks is not None and any(k < way.blocks for k in depths) and any(k > way.blocks for k in depths)
        kind: Kind = "interpolated" if between else "prior"
        others = ", ".join(f"{own.label} ({run.accuracy.value:.4g} %)" for own, run in self.runs.items())
        others = others or "the same network at another resolution or batch"
        of_run = f"a run on {self.images} test images" if self.images else "a run, without the error of its test images"
        guess = replace(
            guess, accuracy_percent=value, accuracy_low_percent=low, accuracy_high_percent=high, accuracy_kind=kind,
            accuracy_rests_on=f"your runs on {self.name} of {others}, and the recovery that evidence leads to expect",
            accuracy_interval=f"90 % for {of_run}", expected_percent=value,
        )  # fmt: skip
        return self._recovery(guess, kind, f"your runs of {others}")

    def _recovery(self, guess: Estimate, kind: Kind, runs: str) -> Estimate:
        """Return the estimate with the recovery on the user's data, where training more helps there at all."""
        ends = [self.runs.get(anchor(end)) for end in ("last", "full")]
        last, full = (None if run is None else run.accuracy.value for run in ends)
        if guess.kind == "definition" or last is None or full is None or not self.expected.training_more_helps:
            return guess
        if full <= last:
            return guess
        accuracy = (guess.accuracy_percent, guess.accuracy_low_percent, guess.accuracy_high_percent)
        value, low, high = ((each - last) / (full - last) for each in accuracy if each is not None)
        return replace(guess, value=value, low=low, high=high, kind=kind, rests_on=f"{runs}, between last and full",
                       interval=guess.accuracy_interval)  # fmt: skip
