"""What the plots of both packages share: colours that the colour-blind tell apart, and the files that can be written.

Source: Okabe and Ito, Color Universal Design (jfly.uni-koeln.de/color, 2008). Their yellow is left out, being faint on
paper, and grey stands in for it. A plot says the same by markers, hatching or lightness, for print without colour.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, overload

from ..errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, BLACK, GREY = "#E69F00", "#56B4E9", "#000000", "#999999"
LIGHT_SKY = "#B9DFF5"  # a tint, for areas
FORMATS = (".png", ".svg", ".pdf")


@overload
def plot_path(path: str | Path, formats: tuple[str, ...] = FORMATS) -> Path: ...
@overload
def plot_path(path: None) -> None: ...
def plot_path(path: str | Path | None, formats: tuple[str, ...] = FORMATS) -> Path | None:
    """Return the path of a plot that can be written, to be asked for before anything is computed; None stays None.

    Errors: InputError for another kind of file, or a folder that does not exist.
    """
    if path is None:
        return None
    path = Path(path)
    if path.suffix.lower() not in formats:
        raise InputError(f"cannot write a plot to {str(path)!r}; its name must end in {', '.join(formats)}")
    if not path.parent.is_dir():
        raise InputError(f"cannot write {str(path)!r}: there is no folder {str(path.parent)!r}; make it first")
    return path


def literal(text: str) -> str:
    """Return a text, such as a file's name, that matplotlib draws as it is: between two dollars it reads formulas."""
    return text.replace("$", r"\$")


@dataclass(frozen=True)
class Picture:
    """A drawn plot, which a notebook shows."""

    png: bytes = field(repr=False)

    def _repr_png_(self) -> bytes:
        return self.png


def save(figure: Figure, path: Path | None) -> Picture:
    """Write a figure to a file that `plot_path` allows, if one is given, and return the picture.

    Errors: InputError if the file cannot be written.
    """
    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=150)
    try:
        if path is not None and path.suffix.lower() == ".png":
            path.write_bytes(drawn.getvalue())
        elif path is not None:
            figure.savefig(path)
    except OSError as error:
        raise InputError(f"cannot write {str(path)!r}: {error.strerror or error}; choose another file") from None
    return Picture(drawn.getvalue())
