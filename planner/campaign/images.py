"""A folder of images, one subfolder per class -> training and test images as tensors.

Either the folder has a split of its own (train, and test or val), or a fifth of each class is for testing: the images
whose names' digests are the lowest. So the split is the same on every machine, and stays when images are added.

An image is scaled so that its shorter side has the resolution, cropped to the middle square, and kept in 8 bits, three
bytes a pixel; the network gets (x / 255 - mean) / deviation per channel.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from costmodel.errors import InputError

TEST_SHARE = 0.2
_SHOWN = 5  # names in a message

# Source: torchvision.transforms._presets.ImageClassification, the means and deviations of ImageNet.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
Normalisation = tuple[tuple[float, ...], tuple[float, ...]]


class Images(Dataset):
    """Images in 8 bits with their labels; an item is a normalised image (3 x R x R, float32) and its label."""

    def __init__(self, normalisation: Normalisation = IMAGENET):
        self.pixels: list[torch.Tensor] = []
        self.labels: list[int] = []
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
        return (self.pixels[index].float() / 255 - self.mean) / self.deviation, self.labels[index]


@dataclass(frozen=True)
class Folder:
    """A folder's image files: (path, class, whether it is for training; None where the folder has no split).

    digest: of the files' names and sizes.
    """

    root: Path
    classes: tuple[str, ...]
    files: tuple[tuple[Path, str, bool | None], ...]
    digest: str

    @property
    def images_per_class(self) -> int:
        """How many training images a class has on average; of a folder without a split, as many as it would have."""
        training = [for_training for *_, for_training in self.files if for_training is not False]
        share = 1.0 if any(training) else 1 - TEST_SHARE
        return max(1, round(share * len(training) / len(self.classes)))

    @property
    def name(self) -> str:
        """What the data set is called."""
        return self.root.resolve().name


@dataclass(frozen=True)
class DataSet:
    """The images to train and to test with; skipped: what could not be read; notes: what is odd."""

    train: Images
    test: Images
    skipped: tuple[str, ...]
    notes: tuple[str, ...]


def list_folder(folder: str | Path) -> Folder:
    """Return what a folder holds, nothing read yet.

    Errors: InputError for a folder that is not there, has fewer than two classes, or tests a class that it does not
    train.
    """
    root = Path(folder).expanduser()
    test = next((part for part in ("test", "val") if (root / "train").is_dir() and (root / part).is_dir()), None)
    listed = {part: _list(root / part) for part in (("train", test) if test else ("",))}
    classes = listed["train" if test else ""].classes
    if test and (more := sorted(set(listed[test].classes) - set(classes))):
        raise InputError(f"{root / test} has the class {more[0]!r}, which {root / 'train'} has not; name classes alike")
    if len(classes) < 2:
        raise InputError(f"{root} has {len(classes)} class; images of two classes or more are needed")
    files = tuple(
        (Path(path), one.classes[label], part == "train" if test else None)
        for part, one in listed.items()
        for path, label in one.samples
    )
    told = "\n".join(sorted(f"{path.relative_to(root).as_posix()} {path.stat().st_size}" for path, *_ in files))
    return Folder(root, tuple(classes), files, hashlib.sha256(told.encode()).hexdigest()[:8])


def read_folder(
    folder: Folder,
    resolution: int,
    normalisation: Normalisation = IMAGENET,
    strict: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> DataSet:
    """Return the images of a folder.

    strict: an image that cannot be read, and a class that cannot be both trained and tested, are errors. progress:
    called with how many files were read, of how many.

    Errors: InputError if there is no image to train or to test with, and what strict says.
    """
    scale = v2.Compose([v2.Resize(resolution), v2.CenterCrop(resolution), v2.PILToTensor()])
    read: dict[str, list[tuple[Path, bool | None, torch.Tensor]]] = {name: [] for name in folder.classes}
    skipped = []
    for number, (path, name, for_training) in enumerate(folder.files):
        progress(number, len(folder.files))
        try:
            with Image.open(path) as image:
                read[name].append((path, for_training, scale(image.convert("RGB"))))
        except Exception as error:  # whatever a decoder makes of a broken file
            reason = " ".join(str(error).split())[:80] or type(error).__name__
            skipped.append(path.relative_to(folder.root).as_posix() + ("" if path.name in reason else f": {reason}"))
    progress(len(folder.files), len(folder.files))
    if strict and skipped:
        raise InputError(f"{_some(skipped)} cannot be read; mend or remove, or leave out --strict to skip")

    train, test, notes = Images(normalisation), Images(normalisation), []
    for label, (name, images) in enumerate(read.items()):
        for_testing = _for_testing(name, images)
        counts = [0, 0]
        for path, _, pixels in images:
            (test if path in for_testing else train).add(pixels, label)
            counts[path in for_testing] += 1
        if not all(counts):
            notes.append(f"class {name!r} has {counts[0]} images to train and {counts[1]} to test with")
    if strict and notes:
        raise InputError(f"{notes[0]}; add some or remove the class, or leave out --strict to go on")
    if not len(train) or not len(test):
        raise InputError(f"{folder.root} has {len(train)} images to train and {len(test)} to test with; add some")
    if skipped:
        notes.insert(0, f"{_some(skipped)} cannot be read and was left out")
    return DataSet(train, test, tuple(skipped), tuple(notes))


def _for_testing(name: str, images: Sequence[tuple[Path, bool | None, torch.Tensor]]) -> set[Path]:
    """Return which images of a class are for testing; one alone is for training."""
    if images and images[0][1] is not None:
        return {path for path, for_training, _ in images if not for_training}
    ordered = sorted((path for path, *_ in images), key=lambda path: _digest(f"{name}/{path.name}"))
    return set(ordered[: max(1, round(TEST_SHARE * len(ordered)))] if len(ordered) > 1 else ())


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _list(folder: Path) -> ImageFolder:
    try:
        return ImageFolder(str(folder), allow_empty=True)
    except OSError as error:
        what = "has no subfolder" if folder.is_dir() else "is no folder"
        raise InputError(f"{folder} {what}; give one with a subfolder of images for each class") from error


def _some(names: Sequence[str]) -> str:
    """Return how many images there are, and the first ones' names."""
    more = f"; and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} image{'s' if len(names) > 1 else ''} ({'; '.join(names[:_SHOWN])}{more})"
