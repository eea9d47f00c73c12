"""Candidates that tests change a little."""

from dataclasses import replace

from planner import Candidate


def renamed(candidate: Candidate, model: str) -> Candidate:
    """Return the same candidate of a network of another name."""
    step = candidate.step
    return replace(candidate, step=replace(step, graph=replace(step.graph, model=model)))
