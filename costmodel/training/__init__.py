"""A torch network made to train in a way: apply, restore."""
