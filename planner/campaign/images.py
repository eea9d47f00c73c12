"""A folder of images, one subfolder per class -> training and test images as tensors.

Either the folder has a split of its own (train, and test or val), or a fifth of each class is for testing: the images
whose names' digests are the lowest. So the split is the same on every machine, and stays when images are added.

An image is kept in 8 bits, three bytes a pixel (see `decoding`); the network gets (x / 255 - mean) / deviation per
channel. A file that is none is named and left out. Hidden files and folders, and `__MACOSX`, are none of the data.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.data import Dataset

from costmodel.errors import InputError, one_line
from costmodel.units import counted

from .decoding import SUFFIXES, UNREADABLE, read_image

TEST_SHARE = 0.2
_SHOWN = 5  # names in a message
MOST_FILES = 2_000_000  # Assumption: more than ImageNet has, whose tensors no memory of today would hold here

# Source: torchvision.transforms._presets.ImageClassification, the means and deviations of ImageNet.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
Change = Callable[[torch.Tensor], torch.Tensor]


def unchanged(pixels: torch.Tensor) -> torch.Tensor:
    """Return an image as it is."""
    return pixels


class Images(Dataset):
    """Images in 8 bits with their labels; an item is a normalised image (3 x R x R, float32) and its label.

    augment: what is made of an image's pixels each time that it is asked for.
    """

    def __init__(self, normalisation: Normalisation = IMAGENET, augment: Change = unchanged):
        self.pixels: list[torch.Tensor] = []
        self.labels: list[int] = []
        self.augment = augment
        self.mean, self.deviation = (torch.tensor(part).reshape(3, 1, 1) for part in normalisation)

    def add(self, pixels: torch.Tensor, label: int) -> None:
        """Add an image, 3 x R x R of uint8."""
        self.pixels.append(pixels)
        self.labels.append(label)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Return an image and its label."""
        return self.normalised(self.augment(self.pixels[index])), self.labels[index]

    def normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return what the network gets of an image of uint8."""
        return (pixels.float() / 255 - self.mean) / self.deviation


class File(NamedTuple):
    """An image's file. for_training: None where the folder has no split."""

    path: Path
    label: str
    for_training: bool | None


@dataclass(frozen=True)
class Folder:
    """A folder's image files, class by class; others: files that are not images by their names."""

    root: Path
    classes: tuple[str, ...]
    files: tuple[File, ...]
    others: tuple[Path, ...] = ()

    @property
    def images_per_class(self) -> int:
        """How many training images a class has on average; of a folder without a split, as many as it would have."""
        training = [for_training for *_, for_training in self.files if for_training is not False]
        share = 1.0 if any(training) else 1 - TEST_SHARE
        return max(1, round(share * len(training) / len(self.classes)))

    @property
    def name(self) -> str:
        """What the data set is called."""
        return one_line(self.root.resolve().name) or "root"

    def shown(self, path: Path) -> str:
        """Return a file's name for people."""
        return one_line(path.relative_to(self.root).as_posix())


@dataclass(frozen=True)
class DataSet:
    """The images to train and to test with; skipped: what could not be read; notes: what is odd.

    digest: of every image's content, class and part, in the order in which they are used.
    """

    train: Images
    test: Images
    skipped: tuple[str, ...]
    notes: tuple[str, ...]
    digest: str


class _Read(NamedTuple):
    """An image of a folder that was read."""

    file: File
    pixels: torch.Tensor
    digest: bytes
    animated: bool


def list_folder(folder: str | Path) -> Folder:
    """Return what a folder holds, nothing read yet.

    Errors: InputError for a folder that is not there, has fewer than two classes, or tests a class that it does not
    train.
    """
    root = Path(folder)
    if str(folder).startswith("~") and "HOME" in os.environ:
        root = root.expanduser()
    test = next((part for part in ("test", "val") if _is_folder(root / "train") and _is_folder(root / part)), None)
    places = {part: _classes(root / part) for part in (("train", test) if test else ("",))}
    classes = places["train" if test else ""]
    if test and (more := sorted(set(places[test]) - set(classes))):
        raise InputError(
            f"{root / test} has the class {more[0]!r}, which {root / 'train'} does not have; give both the same classes"
        )
    if len(classes) < 2:
        raise InputError(f"{root} has {len(classes)} class; images of two classes or more are needed")
    files, others = [], []
    for part, names in places.items():
        for name in names:
            for path in _walk(root / part / name):
                if path.suffix.lower() in SUFFIXES:
                    files.append(File(path, name, part == "train" if test else None))
                else:
                    others.append(path)
                if len(files) + len(others) > MOST_FILES:
                    raise InputError(f"{root} has more than {MOST_FILES:,} files; give a part of it")
    return Folder(root, tuple(classes), tuple(files), tuple(others))


def read_folder(
    folder: Folder,
    resolution: int,
    normalisation: Normalisation = IMAGENET,
    strict: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    augment: Change = unchanged,
    keep: Change = unchanged,
) -> DataSet:
    """Return the images of a folder.

    strict: an image that cannot be read, one that is there twice where it must not, and a class that cannot be both
    trained and tested, are errors. progress: called with how many files were read, of how many. augment: as `Images`
    takes it, for those to train with. keep: returns where an image's pixels are kept, which is in memory by default.

    Errors: InputError if there is no image to train or to test with, and what strict says.
    """
    read, skipped = _read_all(folder, resolution, progress, keep)
    train, test, notes = Images(normalisation, augment), Images(normalisation), []
    parts: dict[Path, str] = {}
    digest = hashlib.sha256()
    for label, name in enumerate(folder.classes):
        images = [one for one in read if one.file.label == name]
        for_testing = _for_testing(name, [one.file for one in images])
        for one in images:
            part = "test" if one.file.path in for_testing else "train"
            (test if part == "test" else train).add(one.pixels, label)
            parts[one.file.path] = part
            digest.update(b"%s %s %s\n" % (os.fsencode(name), part.encode(), one.digest))
        if not 0 < len(for_testing) < len(images):
            notes.append(
                f"class {one_line(name)!r} has {len(images) - len(for_testing)} images to train and "
                f"{len(for_testing)} to test with"
            )
    if strict and skipped:
        raise InputError(f"{_some(skipped, 'image')} cannot be read; repair or remove, or leave out --strict to skip")
    if strict and notes:
        raise InputError(f"{notes[0]}; add some or remove the class, or leave out --strict to go on")
    doubled = list(_duplicates(folder, read, parts))
    if strict and doubled:
        raise InputError(f"{doubled[0]}; remove one of each, or leave out --strict to go on")
    if not len(train) or not len(test):
        raise InputError(
            f"{folder.root} has {counted(len(train), 'image')} to train and {len(test)} to test with; add some"
        )
    if skipped:
        notes.insert(0, f"{_some(skipped, 'image')} cannot be read; left out")
    notes += [*doubled, *_left_out(folder, read)]
    return DataSet(train, test, tuple(skipped), tuple(notes), digest.hexdigest()[:16])


def _read_all(
    folder: Folder, resolution: int, progress: Callable[[int, int], None], keep: Change
) -> tuple[list[_Read], list[str]]:
    """Return the images, and the names of those that are none, with the reason."""
    read, skipped = [], []
    for number, file in enumerate(folder.files):
        progress(number, len(folder.files))
        try:
            picture = read_image(file.path, resolution)
        except InputError as error:
            reason = str(error).removeprefix(f"{UNREADABLE} {str(file.path)!r}: ")
            skipped.append(f"{folder.shown(file.path)}: {reason}")
        else:
            read.append(_Read(file, keep(picture.pixels), picture.digest, picture.animated))
    progress(len(folder.files), len(folder.files))
    return read, skipped


def _duplicates(folder: Folder, read: Sequence[_Read], parts: dict[Path, str]) -> Iterator[str]:
    """Yield what is odd about images whose files are the same, byte for byte."""
    groups: defaultdict[bytes, list[File]] = defaultdict(list)
    for one in read:
        groups[one.digest].append(one.file)
    several = [group for group in groups.values() if len(group) > 1]
    for what, differs in (
        ("in two classes", lambda file: file.label),
        ("both to train and to test with", lambda file: parts[file.path]),
    ):
        found = [group for group in several if len(set(map(differs, group))) > 1]
        if found:
            names = [" = ".join(folder.shown(file.path) for file in group[:_SHOWN]) for group in found]
            yield f"{_some(names, 'image')} {'are' if len(names) > 1 else 'is'} {what}"


def _left_out(folder: Folder, read: Sequence[_Read]) -> Iterator[str]:
    """Yield what else was not used."""
    if animated := [folder.shown(one.file.path) for one in read if one.animated]:
        yield f"of {_some(animated, 'animation')} only the first frame is used"
    if folder.others:
        names = [folder.shown(path) for path in folder.others]
        yield f"{_some(names, 'file')} left out: the names do not end in {', '.join(sorted(SUFFIXES))}"


def _for_testing(name: str, files: Sequence[File]) -> set[Path]:
    """Return which images of a class are for testing; one alone is for training."""
    if files and files[0].for_training is not None:
        return {file.path for file in files if not file.for_training}
    ordered = sorted((file.path for file in files), key=lambda path: _digest(f"{name}/{path.name}"))
    return set(ordered[: max(1, round(TEST_SHARE * len(ordered)))] if len(ordered) > 1 else ())


def _digest(text: str) -> bytes:
    return hashlib.sha256(os.fsencode(text)).digest()


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # links that loop, a NUL
        return False


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _classes(folder: Path) -> list[str]:
    """Return the names of the subfolders, in their order. Errors: InputError if there are none."""
    try:
        found = [entry.name for entry in os.scandir(folder) if entry.is_dir() and not _is_hidden(entry.name)]
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} is not a readable folder; give one with a subfolder for each class") from error
    if not found:
        raise InputError(f"{folder} has no subfolder; give a folder with a subfolder of images for each class")
    return sorted(found)


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder in order, each folder once even where links lead back to it."""

    def refuse(error: OSError) -> None:
        raise InputError(f"cannot read the folder {str(error.filename)!r}: {error.strerror}") from error

    seen: set[tuple[int, int]] = set()
    for place, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        yield from (Path(place, name) for name in sorted(names) if not _is_hidden(name))


def _some(names: Sequence[str], what: str) -> str:
    """Return how many there are, and the first ones' names."""
    more = f"; and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} {what}{'s' if len(names) > 1 else ''} ({'; '.join(names[:_SHOWN])}{more})"
