"""An image's file -> its pixels.

An image is turned as its EXIF orientation says, cut to the middle square and scaled to the resolution. Of 16 bits the
upper ones count, what is transparent lies on white, and of an animation the first frame stands for all.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from costmodel.errors import InputError, one_line
from costmodel.reading import read_file

# What is decoded, by the names' endings. Other decoders of Pillow are kept out: that of EPS runs a program.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = {
    ".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
}  # fmt: skip
# Source: Pillow, Image.MAX_IMAGE_PIXELS: a quarter of a GiB in three bytes a pixel. Looked at before it is decoded.
MOST_PIXELS = 89_478_485
UNREADABLE = "cannot read the image"  # as `read_file` says it


class Picture(NamedTuple):
    """An image that was read, 3 x R x R of uint8. digest: of the file's content."""

    pixels: torch.Tensor
    digest: bytes
    animated: bool


def read_image(path: str | Path, resolution: int) -> Picture:
    """Return an image as it is trained and tested with, but for the normalisation.

    Errors: InputError, with the reason, if it cannot be read or is none.
    """
    path = Path(path)
    content = read_file(path, "image")
    try:
        pixels, animated = _decode(content, resolution)
        return Picture(pixels, hashlib.sha256(content).digest(), animated)
    except UnidentifiedImageError:
        reason = f"no image of the kinds {', '.join(FORMATS)}"
    except Exception as error:  # whatever a decoder makes of a broken file
        reason = one_line(error)[:80] or type(error).__name__
    raise InputError(f"{UNREADABLE} {str(path)!r}: {reason}")


def _decode(content: bytes, resolution: int) -> tuple[torch.Tensor, bool]:
    """Return an image as 3 x R x R of uint8, and whether it is an animation.

    Errors: ValueError for more than MOST_PIXELS, and for values without a known range; whatever the decoder raises.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MOST_PIXELS:
                raise ValueError(f"{width:,} x {height:,} pixels are more than {MOST_PIXELS:,}")
            animated = getattr(image, "n_frames", 1) > 1
            square = ImageOps.fit(
                _in_colour(ImageOps.exif_transpose(image)), (resolution, resolution), Image.Resampling.BILINEAR
            )
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous(), animated


def _in_colour(image: Image.Image) -> Image.Image:
    """Return an image in RGB, 8 bits a channel. Errors: ValueError for values whose range nobody knows."""
    if image.mode == "F":
        raise ValueError("floating-point values, whose range is not known")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("32-bit values, whose range is not known")
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))  # 65,535 becomes 255
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert("RGB")
