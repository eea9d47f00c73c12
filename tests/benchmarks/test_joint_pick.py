"""The recommendation against brute force, at fewer ways and limits than the benchmark."""

from __future__ import annotations

import joint_pick

from planner.choosing.axes import axes


def test_the_pick_is_that_of_all_ways_and_schedules():
    few = axes(methods=["last", "bias", "full", "blocks"], blocks=[1, 3, 8], batch=[4, 8])
    space = joint_pick.Space.of(joint_pick.NETWORKS[:1], few, joint_pick.FEW_LEVERS)
    assert len(space.everything) > 3 * len(space.plain)
    found = joint_pick.compare(space, 50)
    assert found.differing == 0 and found.fitting > 30 and found.cut > 12
