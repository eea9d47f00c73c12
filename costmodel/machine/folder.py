"""Where what this package works out once for a machine is kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """Return the folder of that name in the system's place for caches, or in COSTMODEL_CACHE; it need not exist."""
    if chosen := os.environ.get("COSTMODEL_CACHE"):
        return Path(chosen) / name
    from platformdirs import user_cache_path

    return user_cache_path("finetune-planner", appauthor=False) / name
