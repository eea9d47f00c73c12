"""Where the repository is: what the tests read beside the package (README, benchmarks, examples)."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
