"""Predicted against measured, and the papers' own numbers."""
