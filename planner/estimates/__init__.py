"""Evidence -> the accuracy to expect of a candidate, with interval and kind."""
