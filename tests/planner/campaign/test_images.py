"""Images from anywhere: read as a person sees them, or named and left out."""

from __future__ import annotations

import os
import shutil
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, features

from costmodel import InputError
from planner.campaign.images import list_folder, read_folder

RESOLUTION = 8


@pytest.fixture
def folder(tmp_path):
    """Two classes of ten images each, no two alike."""
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(10):
            Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / name / f"{number}.png")
    return tmp_path


def read(folder, **more):
    return read_folder(list_folder(folder), RESOLUTION, **more)


def pixels(folder, image, name="one.png", **options):
    """Return what becomes of an image, 3 x 8 x 8: it is the only one of its class, so it trains."""
    (folder / "alone").mkdir(exist_ok=True)
    image.save(folder / "alone" / name, **options)
    found = read(folder)
    assert not found.skipped, found.skipped
    return found.train.pixels[found.train.labels.index(0)].numpy()


def gradient(high, dtype):
    """Return a grey image that is brighter to the right: 8 x 8, from 0 to high."""
    return np.tile(np.linspace(0, high, 8).astype(dtype), (8, 1))


# --- what a person sees -----------------------------------------------------------------------------------------------


def test_16_bits_keep_their_upper_half(folder):
    """65,535 is white, and what lies halfway is grey: not clipped to white."""
    found = pixels(folder, Image.fromarray(gradient(65535, np.uint16)))
    assert np.allclose(found[0], np.linspace(0, 255, 8), atol=1) and (found[0] == found[2]).all()


@pytest.mark.parametrize(
    ("array", "said"),
    [(gradient(1.0, np.float32), "floating-point values"), (gradient(10**6, np.int32), "32-bit values")],
)
def test_values_of_unknown_range_are_named(folder, array, said):
    Image.fromarray(array).save(folder / "cat" / "odd.tiff")
    assert said in read(folder).skipped[0] and len(read(folder).skipped) == 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(folder, orientation):
    """Of each of the eight the picture that is seen is the same: EXIF tells how it was turned when stored."""
    seen = Image.fromarray(np.random.default_rng(1).integers(0, 256, (8, 8, 3), np.uint8))
    turned = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    stored = seen if orientation == 1 else seen.transpose(turned[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(pixels(folder, stored, exif=exif), np.asarray(seen).transpose(2, 0, 1))


def test_palettes_and_transparency_and_cmyk(folder):
    """Red in a palette is red; what is transparent lies on white; no ink is white."""
    red = Image.new("RGB", (8, 8), (255, 0, 0)).quantize(4)
    assert pixels(folder, red)[:, 0, 0].tolist() == [255, 0, 0]
    assert pixels(folder, Image.new("RGBA", (8, 8), (0, 0, 0, 0)))[:, 0, 0].tolist() == [255, 255, 255]
    assert pixels(folder, Image.new("RGBA", (8, 8), (0, 0, 0, 255)))[:, 0, 0].tolist() == [0, 0, 0]
    shutil.rmtree(folder / "alone")
    ink = pixels(folder, Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "one.tiff")
    assert ink[:, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["gif", "png", "webp"])
def test_the_first_frame_of_an_animation_counts_and_is_said(folder, kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("#ff0000", "#0000ff")]
    options = {"lossless": True} if kind == "webp" else {}
    found = pixels(folder, frames[0], f"one.{kind}", save_all=True, append_images=frames[1:], **options)
    assert found[:, 0, 0].tolist() == [255, 0, 0]
    assert f"of 1 animation (alone/one.{kind}) only the first frame is used" in read(folder).notes


@pytest.mark.parametrize("kind", ["avif", "bmp", "gif", "jpg", "pgm", "png", "ppm", "tif", "tiff", "webp", "JPEG"])
def test_every_kind_is_read(folder, kind):
    if kind == "avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    grey = Image.new("L" if kind == "pgm" else "RGB", (8, 8), "#808080")
    assert abs(pixels(folder, grey, f"one.{kind}").astype(int) - 128).max() <= 3


def test_the_middle_square_is_used(folder):
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 255
    assert (pixels(folder, Image.fromarray(wide)) == 255).all()


def test_a_line_of_two_million_pixels_is_quick_and_small(folder):
    """Scaled first and cut after, it would be 8 x 16,000,000."""
    assert (pixels(folder, Image.new("L", (2_000_000, 1), 77)) == 77).all()


# --- what is none -----------------------------------------------------------------------------------------------------


def bomb(width, height):
    """Return a PNG that says it is large and holds nothing of it."""

    def chunk(kind, data):
        body = kind + data
        return len(data).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


BROKEN = {
    "text": (b"no image", "no image of the kinds"),
    "empty": (b"", "no image of the kinds"),
    "bomb": (bomb(10_000, 9_000), "10,000 x 9,000 pixels are more than 89,478,485"),
    "larger bomb": (bomb(100_000, 100_000), "exceeds limit of"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image of the kinds"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_image_is_named_once_and_left_out(folder, kind):
    content, said = BROKEN[kind]
    (folder / "cat" / "odd.png").write_bytes(content)
    found = read(folder)
    assert len(found.skipped) == 1 and "cat/odd.png: " in found.skipped[0] and said in found.skipped[0]
    assert len(found.train) + len(found.test) == 20 and "1 image (cat/odd.png" in found.notes[0]
    with pytest.raises(InputError, match=r"1 image \(cat/odd.png.*--strict"):
        read(folder, strict=True)


@pytest.mark.parametrize("kind", ["fifo", "broken link", "loop", "folder"])
def test_what_is_no_file_is_named(folder, kind):
    path = folder / "dog" / "odd.png"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
        (path / "inside.png").write_bytes((folder / "dog" / "1.png").read_bytes())
    else:
        path.symlink_to(path if kind == "loop" else folder / "nowhere")
    found = read(folder)
    assert len(found.skipped) == (kind != "folder") and len(found.train) + len(found.test) == 20 + (kind == "folder")
    assert all("dog/odd.png" in name for name in found.skipped)


def test_a_link_back_to_a_folder_is_followed_once(folder):
    (folder / "cat" / "again").symlink_to(folder / "cat")
    (folder / "cat" / "inside").mkdir()
    (folder / "cat" / "inside" / "up").symlink_to(folder)
    assert len([file for file in list_folder(folder).files if file.label == "dog"]) == 10
    names = [file.path.name for file in list_folder(folder).files if file.label == "cat"]
    assert sorted(names[:10]) == sorted(f"{number}.png" for number in range(10))


def test_hidden_folders_and_other_files_are_no_data(folder):
    for name in (".git", "__MACOSX", "cat/.thumbnails"):
        (folder / name).mkdir()
        shutil.copy(folder / "cat" / "0.png", folder / name)
    (folder / "dog" / "._0.png").write_bytes(b"of another system")
    (folder / "dog" / "list.txt").touch()
    found = list_folder(folder)
    assert found.classes == ("cat", "dog") and len(found.files) == 20
    assert any(note.startswith("1 file (dog/list.txt) left out") for note in read(folder).notes)


def test_names_that_are_no_text(folder):
    os.rename(folder / "cat" / "0.png", os.fsencode(folder) + b"/cat/\xff\x1b.png")
    os.rename(folder / "dog" / "0.png", os.fsencode(folder) + b"/dog/\xfe.png")
    with open(os.fsencode(folder) + b"/dog/\xfe.png", "wb") as file:
        file.write(b"broken")
    found = read(folder)
    assert len(found.train) + len(found.test) == 19 and "dog/\\udcfe.png" in found.notes[0]
    assert all(note.isprintable() for note in found.notes)


# --- duplicates -------------------------------------------------------------------------------------------------------


def test_one_image_in_two_classes_is_named(folder):
    shutil.copy(folder / "cat" / "3.png", folder / "dog" / "copy.png")
    notes = read(folder).notes
    assert "1 image (cat/3.png = dog/copy.png) is in two classes" in notes
    with pytest.raises(InputError, match="is in two classes; remove one of each"):
        read(folder, strict=True)


def test_one_image_to_train_and_to_test_with_is_named(tmp_path, folder):
    split = tmp_path / "split"
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            shutil.copytree(folder / name, split / part / name)
    for name in ("cat", "dog"):
        for number in range(1, 10):
            (split / "test" / name / f"{number}.png").unlink()
    notes = read(split).notes
    said = "(train/cat/0.png = test/cat/0.png; train/dog/0.png = test/dog/0.png) are both to train and to test with"
    assert f"2 images {said}" in notes


# --- identity ---------------------------------------------------------------------------------------------------------


def test_the_digest_is_of_contents_and_classes(folder, tmp_path):
    """The same names and sizes say nothing: BMP files of one size, and two class folders that changed places."""
    first = read(folder).digest
    assert read(folder).digest == first
    copy = tmp_path / "elsewhere"
    shutil.copytree(folder, copy, ignore=lambda place, names: [name for name in names if name == "elsewhere"])
    assert read(copy).digest == first  # where the folder is makes no difference
    (copy / "cat").rename(copy / "other"), (copy / "dog").rename(copy / "cat"), (copy / "other").rename(copy / "dog")
    assert read(copy).digest != first
    for name in ("cat", "dog"):
        for number in range(10):
            path = folder / name / f"{number}.png"
            with Image.open(path) as image:
                image.save(path.with_suffix(".bmp"))
            path.unlink()
    before, size = read(folder).digest, (folder / "cat" / "0.bmp").stat().st_size
    Image.new("RGB", (8, 8), "white").save(folder / "cat" / "0.bmp")
    assert (folder / "cat" / "0.bmp").stat().st_size == size and read(folder).digest != before
    assert isinstance(read(folder).train[0][0], torch.Tensor)
