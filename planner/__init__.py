"""What to do about the cost of fine-tuning: every method and depth priced, with the accuracy to expect, and one pick.

`planner.recommend.recommend(models, ram_bytes)` answers the main question; `planner.candidates.candidates(models)`
gives everything it chose from. What the accuracies mean, and how runs of your own become one, is in `planner.accuracy`;
how far off they are without is in `planner.validation`.
"""
