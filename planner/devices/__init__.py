"""Devices to train on: one TOML file each, every number with its source."""
