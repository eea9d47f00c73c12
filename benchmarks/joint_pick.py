"""The recommendation against brute force: every way by every schedule of its frontier, at random limits.

    python benchmarks/joint_pick.py --date 2026-11-21 --machine '2-core x86-64 virtual machine' --limits 1000

The pick is the most accurate of all that keep the limits on memory and, sometimes, FLOPs; of those that tie with it the
one of fewest FLOPs. `planner.choosing.scheduling` finds it without pricing all schedules; here all are priced. Batches
smaller than 8 count only where nothing else fits, since no accuracy was observed with them. Writes
results/joint_pick.md. Takes about ten minutes on one core.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from verifying import RESULTS, versions

from costmodel import LEVERS, PLAIN, schedule_frontier
from planner.choosing.axes import Axes, axes
from planner.choosing.candidate import Candidate
from planner.choosing.candidates import price_all, trace_all
from planner.choosing.choice import pick
from planner.choosing.scale import TOLERANCE
from planner.choosing.scheduling import Scheduling, carried_out, scheduled

NETWORKS = ("torchvision:mobilenet_v3_small", "zoo:mobilenet_v2_w035")
RESOLUTION, MOST_FLOPS = 64, 1.33
SPACE = axes(methods=["last", "bias", "norm", "full", "blocks", "mobiletl"], blocks=[1, 3, 8], batch=[4, 8])
FEW_LEVERS = ("prefix", "inplace", "recompute")  # with all of them a way has up to thousands of schedules


@dataclass(frozen=True)
class Space:
    """All ways of some networks, plainly, and by every schedule of some levers within the FLOPs."""

    plain: list[Candidate]
    everything: list[Candidate]
    how: Scheduling

    @classmethod
    def of(cls, networks: Sequence[str], space: Axes, levers: Sequence[str]) -> Space:
        """Price them all."""
        plain = price_all(trace_all(networks, resolution=RESOLUTION), space)
        found = [
            carried_out(candidate, replace(candidate.step, schedule=each.schedule))
            for candidate in plain
            for each in schedule_frontier(candidate.step, allow=levers)
            if each.total_flops <= MOST_FLOPS * candidate.total_flops
        ]
        return cls(plain, found, Scheduling(tuple(levers), MOST_FLOPS))

    def limits(self, count: int, seed: int = 0) -> Iterator[dict[str, float]]:
        """Draw limits, between what hardly anything keeps and what most do."""
        random = np.random.default_rng(seed)
        peaks = sorted(candidate.peak_bytes for candidate in self.everything)
        flops = sorted(candidate.total_flops / candidate.batch for candidate in self.everything)
        for _ in range(count):
            found = {"memory": int(random.uniform(0.95 * peaks[0], 1.02 * peaks[int(0.9 * len(peaks))]))}
            if random.random() < 0.3:
                found["flops"] = float(random.uniform(flops[0], flops[-1]))
            yield found

    def by_definition(self, limits: dict[str, float]) -> float | None:
        """Return the FLOPs per image of the pick; None if nothing fits."""
        fits = [
            c for c in self.everything
            if c.peak_bytes <= limits["memory"] and c.total_flops / c.batch <= limits.get("flops", np.inf)
            and c.recovery.typical_percent is not None
        ]  # fmt: skip
        fits = [c for c in fits if c.batch >= 8] or fits
        if not fits:
            return None
        most = max(c.recovery.typical_percent or 0 for c in fits)
        return min(c.total_flops / c.batch for c in fits if most - (c.recovery.typical_percent or 0) <= TOLERANCE)

    def picked(self, limits: dict[str, float]) -> Candidate:
        """Return the planner's pick."""
        return pick(scheduled(self.plain, limits, self.how), limits).chosen


@dataclass
class Count:
    """What came of the limits: how many were tried, how many something fits, in how many a schedule was picked."""

    tried: int = 0
    fitting: int = 0
    cut: int = 0
    differing: int = 0


def compare(space: Space, count: int, seed: int = 0) -> Count:
    """Compare both for random limits."""
    found = Count()
    for limits in space.limits(count, seed):
        found.tried += 1
        expected = space.by_definition(limits)
        if expected is None:
            continue
        found.fitting += 1
        chosen = space.picked(limits)
        found.cut += chosen.step.schedule != PLAIN
        found.differing += chosen.total_flops / chosen.batch != expected or chosen.peak_bytes > limits["memory"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--date", required=True)
    parser.add_argument("--machine", required=True)
    parser.add_argument("--limits", type=int, default=1000)
    given = parser.parse_args()
    text = [
        "# The recommendation against brute force",
        "",
        f"{given.date}; {versions()}; {given.machine}. {', '.join(NETWORKS)} at {RESOLUTION} x {RESOLUTION}, batches 4 "
        f"and 8, at most {MOST_FLOPS} times the FLOPs. Written by `python benchmarks/joint_pick.py`.",
        "",
        "| levers | ways | ways by all schedules | limits | something fits | a schedule is picked | picks differ |",
        "|---|---|---|---|---|---|---|",
    ]
    differing = 0
    for levers, count in ((FEW_LEVERS, given.limits), (LEVERS, given.limits // 10)):
        space = Space.of(NETWORKS, SPACE, levers)
        found = compare(space, count)
        differing += found.differing
        text.append(
            f"| {', '.join(levers)} | {len(space.plain)} | {len(space.everything)} | {found.tried} | {found.fitting} "
            f"| {found.cut} | {found.differing} |"
        )
        print(text[-1], flush=True)
    (RESULTS / "joint_pick.md").write_text("\n".join(text) + "\n")
    sys.exit(differing > 0)


if __name__ == "__main__":
    main()
