"""Accuracy as recovery: how far a method goes from training the last layer only (0) to training everything (1).

    recovery(method, data set) = (accuracy(method) - accuracy(last)) / (accuracy(full) - accuracy(last))

on one network, resolution and batch. It says nothing about how accurate training everything is, so recoveries of
different networks tell how much of its own potential each reaches, not which of them is more accurate.

An estimate is of one of these kinds:

- `definition`: last (0) and full (1).
- `measured`: the user's own runs of this very method and depth.
- `interpolated`: the user's own runs of the method at a lower and at a higher depth. Assumption: accuracy does not fall
  with depth; the value is linear in k, and the interval holds everything between the low end of the one and the high
  end of the other.
- `prior`: published accuracies or an assumed curve over depth (`prior`). Beyond the depths that the user
  measured it is held to them: never below what less depth reached, nor above what more depth did.
- `unknown`: nothing. The value is None; nothing is put in its place.

Two measured anchors of the user's own turn recovery R into accuracy: last, and full or one more method m,

    accuracy = last + R (full - last)            accuracy = last + R / R_m (m - last)

with the errors of all of them added in squares (`intervals.combine`). Of several m the one with the highest R_m counts.

The anchors' own intervals are explained in `runs`. A predicted accuracy is that of a run tested on as many
images as they were, so it has a sampling error of its own. Assumption: all errors are independent. Methods tested on
the same images err alike, so the interval is rather too wide than too narrow; two that were both measured are compared
image by image (`runs.difference`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from costmodel import METHODS, Way, anchor

from ..evidence.rows import Row, named_way, published
from .estimated import Estimate, Kind
from .intervals import Interval, combine
from .prior import prior, published_prior
from .runs import Measured, data_set, measured_runs, sampling_error
from .setting import Setting

__all__ = ["Estimate", "Setting", "data_set", "estimate"]


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
    guess = published_prior(asked, setting) if rows is None else prior(asked, setting, rows)
    name = data_set(own, dataset)
    runs = measured_runs(own, name, setting)
    if name is None or not runs:  # without a data set there are no runs
        return guess
    guess = _with_recovery(guess, asked, runs)
    return _with_accuracy(guess, asked, runs, setting, published() if rows is None else rows, name)


def _at_depth(
    k: int | None, known: Mapping[int | None, Interval], otherwise: Interval | None
) -> tuple[Interval | None, Kind, tuple[int | None, ...]]:
    """Return what is measured at depth k, else between two depths, else `otherwise` held to what was measured.

    With it come the kind and the measured depths that it rests on.
    """
    if k in known:
        return known[k], "measured", (k,)
    depths = [depth for depth in known if depth is not None]
    below = max((depth for depth in depths if k is not None and depth < k), default=None)
    above = min((depth for depth in depths if k is not None and depth > k), default=None)
    if k is not None and below is not None and above is not None:
        less, more = known[below], known[above]
        value = less.value + (more.value - less.value) * (k - below) / (above - below)
        return Interval(value, min(less.low, more.low), max(less.high, more.high)), "interpolated", (below, above)
    if otherwise is None:
        return None, "unknown", ()
    for depth, bound in ((below, max), (above, min)):
        if depth is not None:
            end = known[depth]
            held = (otherwise.value, end.value), (otherwise.low, end.low), (otherwise.high, end.high)
            return Interval(*(bound(pair) for pair in held)), "prior", (depth,)
    return otherwise, "prior", ()


def _depths(asked: Way, runs: Mapping[Way, Measured]) -> dict[int | None, Measured]:
    """Return the runs of a way at every depth, by depth."""
    return {own.blocks: measured for own, measured in runs.items() if replace(own, blocks=asked.blocks) == asked}


def _held(text: str, used: Sequence[int | None], k: int | None) -> str:
    for depth in used:
        assert depth is not None and k is not None  # only an estimate at a depth is held to those at others
        text += f"; not {'below' if depth < k else 'above'} what was measured at k = {depth}"
    return text


def _spread(own: Sequence[Measured]) -> str:
    return " and ".join(dict.fromkeys(one.spread for one in own))


def _with_recovery(guess: Estimate, asked: Way, runs: Mapping[Way, Measured]) -> Estimate:
    """Return the estimate with the recovery that the user's own last and full give, if they tell the two apart."""
    last, full = runs.get(anchor("last")), runs.get(anchor("full"))
    if guess.kind == "definition" or not last or not full or last.accuracy.high >= full.accuracy.low:
        return guess

    def recovery(accuracy: float, low: float, high: float) -> float:
        return (accuracy - low) / (high - low)

    k, depths = asked.blocks, _depths(asked, runs)
    known = {
        depth: combine(recovery, measured.accuracy, last.accuracy, full.accuracy) for depth, measured in depths.items()
    }
    found, kind, used = _at_depth(k, known, guess.known)
    if found is None or not used:
        return guess
    own = [depths[depth] for depth in used]
    source = ", ".join(dict.fromkeys([last.source, full.source, *(one.source for one in own)]))
    if kind == "prior":
        source, rests_on, interval = guess.source, _held(guess.rests_on, used, k), guess.interval
    else:
        rests_on = (
            f"your runs of {' and '.join(replace(asked, blocks=depth).label for depth in used)}, of last and of full"
        )
        interval = f"your runs: {_spread(own)}, with that of last and full"
    if kind == "interpolated":
        rests_on += f"; k = {k} lies between them, linear in k"
        interval += "; widened to all that lies between the two"
    return replace(guess, value=found.value, low=found.low, high=found.high, kind=kind, source=source,
                   rests_on=rests_on, interval=interval)  # fmt: skip


def _with_accuracy(
    guess: Estimate,
    asked: Way,
    runs: Mapping[Way, Measured],
    setting: Setting,
    rows: Sequence[Row],
    dataset: str,
) -> Estimate:
    """Return the estimate with the accuracy on the user's data set, if anything tells it."""
    predicted, rests_on, interval = _from_anchors(guess.known, runs, setting, rows)
    k, depths = asked.blocks, _depths(asked, runs)
    known = {depth: measured.accuracy for depth, measured in depths.items()}
    found, kind, used = _at_depth(k, known, predicted)
    if found is None:
        return replace(guess, accuracy_rests_on=rests_on)
    if kind == "prior":
        rests_on = _held(rests_on, used, k)
    else:
        own = [depths[depth] for depth in used]
        names = " and ".join(
            f"{replace(asked, blocks=depth).label} ({one.runs}x)" for depth, one in zip(used, own, strict=True)
        )
        rests_on, interval = f"your runs of {names} on {dataset}: {own[0].source}", _spread(own)
    if kind == "interpolated":
        rests_on += f"; k = {k} lies between them, linear in k"
        interval += "; widened to all that lies between the two"
    return replace(
        guess,
        accuracy_percent=found.value,
        accuracy_low_percent=found.low,
        accuracy_high_percent=found.high,
        accuracy_kind=kind,
        accuracy_rests_on=rests_on,
        accuracy_interval=interval,
        runs=runs.get(asked),
    )


def _from_anchors(
    recovery: Interval | None, runs: Mapping[Way, Measured], setting: Setting, rows: Sequence[Row]
) -> tuple[Interval | None, str, str]:
    """Return the accuracy that a recovery means between the user's own anchors, what it rests on, and its interval."""
    last = runs.get(anchor("last"))
    if last is None or recovery is None:
        reason = (
            "its recovery is unknown" if last else "it takes a run of last, and of full or one more method, to tell"
        )
        return None, f"not measured, and {reason}", "none"
    plain = replace(setting, converted=False)
    others = {
        own: expected
        for own in runs
        if own != anchor("last") and not METHODS[own.method].converts
        and (expected := prior(own, plain, rows).known) and expected.value > 0
    }  # fmt: skip
    if not others:
        return None, "not measured, and last is the only anchor: it takes a run of full or of one more method", "none"
    best = max(others, key=lambda own: (others[own].value, own == anchor("full"), str(own)))
    other = runs[best]
    numbers = [last.accuracy, other.accuracy, others[best], recovery]
    value = _between(*(number.value for number in numbers))
    images = last.test_images or other.test_images
    error = sampling_error(value, images) if images else Interval.exact(0.0)
    found = combine(lambda *all: _between(*all[:4]) + all[4], *numbers, error).within(0.0, 100.0)
    ends = f"{last.accuracy.value:.4g} %) and {best.label} ({other.accuracy.value:.4g} %)"
    rests_on = f"the recovery, between your runs of last ({ends}"
    if best != anchor("full"):
        rests_on += f", whose own recovery is taken to be {others[best].value:.3g}"
    last_part = f"the sampling error of {images} test images" if images else "no sampling error (no test_images)"
    return found, rests_on, f"the recovery's interval, the errors of the anchors, and {last_part}, added in squares"


def _between(last: float, other: float, recovery_of_other: float, recovery: float) -> float:
    """Return last + recovery / recovery_of_other (other - last); an end of the scale where that has no bound."""
    if recovery == 0 or other == last:
        return last
    if recovery_of_other <= 0:
        return 100.0 if other > last else 0.0
    return last + recovery / recovery_of_other * (other - last)
