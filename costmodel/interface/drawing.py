"""What the plots of both packages share: colours that the colour-blind tell apart, and the files that can be written.

Source: Okabe and Ito, Color Universal Design (jfly.uni-koeln.de/color, 2008). Their yellow is left out, being faint on
paper, and grey stands in for it. A plot says the same by markers, hatching or lightness, for print without colour.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, BLACK, GREY = "#E69F00", "#56B4E9", "#000000", "#999999"
LIGHT_SKY = "#B9DFF5"  # a tint, for areas
FORMATS = (".png", ".svg", ".pdf")


def plot_path(path: str | Path, formats: tuple[str, ...] = FORMATS) -> Path:
    """Return the path of a plot that can be written, to be asked for before anything is computed.

    Errors: InputError for another kind of file, or a folder that does not exist.
    """
    path = Path(path)
    if path.suffix.lower() not in formats:
        raise InputError(f"cannot write a plot to {str(path)!r}; its name must end in {', '.join(formats)}")
    if not path.parent.is_dir():
        raise InputError(f"cannot write {str(path)!r}: there is no folder {str(path.parent)!r}; make it first")
    return path


def literal(text: str) -> str:
    """Return a text, such as a file's name, that matplotlib draws as it is: between two dollars it reads formulas."""
    return text.replace("$", r"\$")


def save(figure: Figure, path: Path) -> None:
    """Write a figure to a file that `plot_path` allows. Errors: InputError if the file cannot be written."""
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise InputError(f"cannot write {str(path)!r}: {error.strerror or error}; choose another file") from None
