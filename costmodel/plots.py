"""The only drawing of this package: published against computed numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import InputError

if TYPE_CHECKING:
    from .reproduce import Reproduction


def published_against_computed(results: Sequence[Reproduction], path: str | Path) -> None:
    """Draw a panel of points for each unit (logarithmic axes), and the line on which both are equal.

    Errors: InputError for a file name that matplotlib cannot write.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    units = [unit for unit in dict.fromkeys(result.published.unit for result in results) if unit]
    figure, axes = pyplot.subplots(1, len(units), figsize=(4 * len(units), 4), layout="constrained", squeeze=False)
    for axis, unit in zip(axes[0], units, strict=True):
        rows = [result for result in results if result.published.unit == unit]
        values = [value for row in rows for value in (row.published.value, row.computed)]
        ends = min(values) * 0.8, max(values) * 1.25
        axis.plot(ends, ends, color="0.7", linewidth=1, zorder=0)
        for same, colour, label in ((True, "tab:blue", "reproduced"), (False, "tab:orange", "differs")):
            points = [(row.published.value, row.computed) for row in rows if row.reproduced == same]
            if points:
                axis.scatter(*zip(*points, strict=True), s=18, color=colour, label=label)
        axis.set(xscale="log", yscale="log", xlabel=f"published, {unit}", ylabel=f"computed, {unit}")
        for direction in (axis.xaxis, axis.yaxis):
            direction.set_major_locator(LogLocator(subs=(1, 2, 5)))
            direction.set_major_formatter(StrMethodFormatter("{x:g}"))
            direction.set_minor_formatter(NullFormatter())
        axis.legend(frameon=False)
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write the plot {str(path)!r}: {error}") from None
    finally:
        pyplot.close(figure)
