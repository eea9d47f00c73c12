"""Accuracies that were observed, each with its source."""
