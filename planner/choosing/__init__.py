"""Candidates, objectives, the frontier, the recommendation and its plan."""
