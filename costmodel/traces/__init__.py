"""Graphs kept for later: files, the cache, and those that come with the package."""
