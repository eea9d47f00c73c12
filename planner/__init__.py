"""What to do about the cost of fine-tuning: every method and depth priced, with the accuracy to expect, and one pick.

`planner.recommend.recommend(models, ram_bytes)` answers the main question; `planner.candidates.candidates(models)`
gives everything it chose from. What the accuracies mean is in `planner.accuracy`.
"""
