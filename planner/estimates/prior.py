"""The recovery to expect before anything is measured: from published tables, and from a curve over depth.

A table gives the mean over its data sets. The interval is a 90 % prediction interval for one further data set, from the
spread over the data sets: mean +- t sqrt(s^2 (1 + 1/n)). If the table is of another network, resolution or batch, or of
a near relative of the method, the variance from network to network is added to s^2 (1 + 1/n): the mean squared
difference between two networks' recoveries on the same data set. Clipped to 0 and 1.

The depth curve, for k of K blocks trained:

    blocks(k)   = 1 - (1 - k/K)^p        a mobiletl(k) is never above blocks(k), and neither ever falls with k
    mobiletl(k) = c blocks(k)

p and c come from one published number: MobileNetV3, 5 blocks by MobileTL, 0.6 points below full tuning on CIFAR10.
With full - last = g points on CIFAR10 (ProxylessNAS-Mobile), that is a shortfall of 0.6/g; CIFAR10 being easy, it is
scaled by m, how much larger than on CIFAR10 the published methods' shortfalls are over all data sets: s = m 0.6/g.

- Assumption: half of s is due to the depth, half to MobileTL's approximations (nothing published separates them):
  (1 - 5/K)^p = s/2 and c = (1 - s) / (1 - s/2).
- Assumption: K = 11, MobileNetV3-Small, and its 0.6 points are against full tuning. The abstract says neither; but of
  its 36 % fewer FLOPs this package counts 36.0 % for Small against full tuning (10 classes, 224 pixels, element-wise
  work included), 34.5 % for Large, and 1 % against the same blocks trained as usual.
- Assumption: depth counts as the fraction of blocks. The tail adds nothing to the head's 0 at k = 0, and the stem
  nothing to blocks(K), which is 1.
- The interval is no coverage statement but the range between two curves of the same form. Assumption: low is p = 1,
  every block counting the same and the stem as one more (K + 1 for K), with all of s due to the approximations
  (c = 1 - s); high is p^2, as far above p as 1 is below it on a scale of ratios, with the approximations free (c = 1).

MobileTL also reports more accuracy than TinyTL on six of eight data sets (ProxylessNAS-Mobile), at depths that could
not be read: a check (the curve passes TinyTL's mean of those data sets at k = 6 of 20), not an input. Single runs need
not be monotone: Gradient Filtering's Table 2 has MobileNetV2 at 63.1 with 2 trained convolutions and 62.2 with 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean

from costmodel import METHODS, Way, anchor

from ..evidence.rows import Row, published
from .estimated import Estimate
from .intervals import Interval, further_value
from .setting import Setting

LAST, FULL = anchor("last").method, anchor("full").method
_TABLE_METHODS = ("norm", "tinytl-b", "tinytl-l", "tinytl-lb")  # whose tables say how hard a data set is
_ANCHOR_BLOCKS_OF_NETWORK = 11  # Assumption: see above
_DEPTH_SHARE = 0.5  # Assumption: see above


@dataclass(frozen=True)
class DepthCurve:
    """recovery = scale (1 - (1 - k / (K + more))^exponent)."""

    exponent: float
    scale: float = 1.0
    more: int = 0

    def __call__(self, k: int, block_count: int) -> float:
        """Return the recovery of k of `block_count` trained blocks."""
        return self.scale * (1 - (1 - k / (block_count + self.more)) ** self.exponent)


def recoveries(method: str, rows: Sequence[Row]) -> dict[tuple, dict[str, float]]:
    """Return, for each setting that has `method`, last and full on a data set, the recovery per data set.

    A data set where training everything is not above training the last layer has no recovery and is left out.
    """
    top1 = {(row.setting, row.dataset, row.method): row.top1_percent for row in rows if row.top1_percent is not None}
    found: dict[tuple, dict[str, float]] = {}
    for (setting, dataset, name), accuracy in top1.items():
        last, full = (top1.get((setting, dataset, end)) for end in (LAST, FULL))
        if name == method and last is not None and full is not None and full > last:
            found.setdefault(setting, {})[dataset] = (accuracy - last) / (full - last)
    return found


def prior(way: Way, setting: Setting, rows: Sequence[Row]) -> Estimate:
    """Return the recovery to expect of a way of training in a setting.

    rows: the published accuracies. Errors: ValueError if k is not in 1 to block_count.
    """
    if setting.converted:
        return _unknown(
            f"{way.method!r} changes what {setting.model} computes (group norm, standardised weights), so that its "
            "pre-training does not hold; published for networks that were pre-trained so"
        )
    method = METHODS.get(way.method)
    if method is None:
        return _from_table(way.method, way.method, setting, rows)
    if method.anchor is not None:
        value = 1.0 if method.anchor == "full" else 0.0
        rests_on = "the scale itself: training the last layer only is 0, training everything is 1"
        return Estimate(value, value, value, "definition", "", rests_on, "exact, by definition")
    if method.takes_blocks:
        if way.blocks is None or not 1 <= way.blocks <= setting.block_count:
            raise ValueError(f"method {method.name!r} needs k from 1 to {setting.block_count}, not {way.blocks!r}")
        return _by_depth(way, setting, rows)
    if method.needs_norm and not setting.has_norm:
        return _unknown(f"no published network without norm layers was trained by {method.name!r}")
    return _from_table(method.name, method.evidence or method.name, setting, rows)


@cache
def published_prior(way: Way, setting: Setting) -> Estimate:
    """Return `prior` on the published accuracies."""
    return prior(way, setting, published())


def _unknown(reason: str) -> Estimate:
    return Estimate(None, None, None, "unknown", "", reason, "none")


def _from_table(method: str, relative: str, setting: Setting, rows: Sequence[Row]) -> Estimate:
    """Return the mean over a table's data sets: of this very setting if there is one, else carried over.

    relative: the method whose table it is.
    """
    groups = recoveries(relative, rows)
    if not groups:
        return _unknown(f"no published accuracy of {method!r} next to the last layer only and full fine-tuning")
    wanted = (setting.name, setting.resolution, setting.batch)
    # The same setting before the same network before the table with the most data sets.
    key = max(groups, key=lambda group: (group[1:] == wanted, group[1] == setting.name, len(groups[group])))
    values = list(groups[key].values())
    carried = relative != method or key[1:] != wanted
    extra = _network_variance(rows) if carried else 0.0
    expected = prediction(values, extra)
    where = sorted({row.locator for row in rows if row.setting == key and row.method == relative})
    network = f"{key[1]} at {key[2] or 'unstated'} pixels, batch {key[3] or 'unstated'}"
    rests_on = f"the mean of {len(values)} published data sets on {network}"
    interval = f"90 % for one further data set, from the spread over {len(values)}"
    if relative != method:
        rests_on += f", of {relative} (group norm and weight standardization instead of frozen batch norm)"
    if carried:
        rests_on += f"; carried over to {setting.model} at {setting.resolution} pixels"
        rests_on += f", batch {setting.batch}" if setting.batch else ""
        interval += " and between two networks" if extra is not None else ", on another network (nothing known)"
    source = f"{key[0]}, {', '.join(where)}"
    return Estimate(expected.value, expected.low, expected.high, "prior", source, rests_on, interval)


def prediction(values: Sequence[float], extra_variance: float | None) -> Interval:
    """Return the mean and the 90 % prediction interval for one further recovery, clipped to 0 and 1.

    All of 0 to 1 where the spread is not known.
    """
    mean = fmean(values)
    if len(values) < 2 or extra_variance is None:
        return Interval(mean, min(mean, 0.0), max(mean, 1.0))
    low, high = (min(max(0.0, end), 1.0) for end in further_value(values, extra_variance).ends)
    return Interval(mean, min(low, mean), max(high, mean))


def _network_variance(rows: Sequence[Row]) -> float | None:
    """Return the mean squared difference between two networks' recoveries of a method on the same data set."""
    squares = []
    for method in sorted({row.method for row in rows} - {LAST, FULL}):
        groups = list(recoveries(method, rows).items())
        for index, (setting, values) in enumerate(groups):
            for other, others in groups[index + 1 :]:
                if setting[1] != other[1]:
                    squares += [(values[name] - others[name]) ** 2 for name in values.keys() & others.keys()]
    return fmean(squares) if squares else None


def _by_depth(way: Way, setting: Setting, rows: Sequence[Row]) -> Estimate:
    curves, method, k = depth_curves(tuple(rows)), way.method, way.blocks
    anchor = _anchor_row(rows)
    if anchor is None or curves is None or method not in curves["value"] or k is None:
        return _unknown(f"no published accuracy from which the depth curve of {method!r} could start")
    value, low, high = (curves[name][method](k, setting.block_count) for name in ("value", "low", "high"))
    rests_on = (
        f"an assumed curve over depth, {k} of {setting.block_count} blocks, through one published number: "
        f"{anchor.points_below_full:g} points below full tuning with {anchor.trained_blocks} blocks of "
        f"{anchor.model} by MobileTL on {anchor.dataset}, carried over to {setting.model} and to other data"
    )
    if method == "mobiletl":
        rests_on += (
            "; MobileTL also reports more than TinyTL on six of eight data sets, at depths that are not known here"
        )
    interval = "the range between two assumed curves, with no stated coverage"
    return Estimate(value, low, high, "prior", f"{anchor.source}, {anchor.locator}", rests_on, interval)


def _anchor_row(rows: Sequence[Row]) -> Row | None:
    return next(
        (row for row in rows if row.method == "mobiletl" and row.points_below_full and row.trained_blocks), None
    )


@cache
def depth_curves(rows: tuple[Row, ...]) -> dict[str, dict[str, DepthCurve]] | None:
    """Return the curves 'value', 'low' and 'high', each by method; None if the rows hold nothing to start from."""
    anchor = _anchor_row(rows)
    if anchor is None:
        return None
    points, blocks = anchor.points_below_full, anchor.trained_blocks
    assert points and blocks  # the anchor states both
    tables = [recoveries(method, rows) for method in _TABLE_METHODS]
    groups = [values for table in tables for values in table.values() if values.get(anchor.dataset, 1) < 1]
    gaps = [
        full.top1_percent - last.top1_percent
        for full in rows
        for last in rows
        if (full.method, last.method, full.setting) == (FULL, LAST, last.setting)
        and full.dataset == last.dataset == anchor.dataset
        and full.top1_percent is not None
        and last.top1_percent is not None
    ]
    if not groups or not gaps:
        return None
    harder = fmean((1 - fmean(values.values())) / (1 - values[anchor.dataset]) for values in groups)
    shortfall = harder * points / fmean(gaps)
    if not 0 < shortfall < 1:
        return None
    by_depth = _DEPTH_SHARE * shortfall
    untrained = 1 - blocks / _ANCHOR_BLOCKS_OF_NETWORK
    exponent = math.log(by_depth) / math.log(untrained)

    def pair(power: float, scale: float, more: int = 0) -> dict[str, DepthCurve]:
        return {"blocks": DepthCurve(power, 1.0, more), "mobiletl": DepthCurve(power, scale, more)}

    return {
        "value": pair(exponent, (1 - shortfall) / (1 - by_depth)),
        "low": pair(1.0, 1 - shortfall, more=1),
        "high": pair(exponent**2, 1.0),
    }
