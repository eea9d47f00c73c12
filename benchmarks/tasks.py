"""A small, real transfer task that needs no download: from rendered letters to handwritten digits.

A network is pre-trained on letters, rendered from the fonts that matplotlib ships and distorted at random, and then
transferred to the handwritten digits of scikit-learn, of which it has seen none: a few labelled images per class from
the first half of the data; the second half, written by others, is the test set. All images are 3 x 32 x 32.

Pre-training is deterministic given its seed (on one machine, number of threads and versions) and its result is cached.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from pickle import UnpicklingError

import torch
import torch.nn.functional as F
from torch import nn

from costmodel.errors import InputError, unknown
from planner.campaign.fine_tuning import Recipe, classify, train_epochs

RESOLUTION = 32
# Letters whose upper and lower case look alike are one class: the 15 merges of EMNIST's "balanced" split.
# Source: Cohen et al.: EMNIST (arXiv 1702.05373), section II.
_MERGED = "cijklmopsuvwxyz"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ" + "".join(c for c in "abcdefghijklmnopqrstuvwxyz" if c not in _MERGED)
_STYLES = ("", "-Bold", "-Oblique", "-BoldOblique")
_FONTS = (
    *(f"DejaVu{family}{style}" for family in ("Sans", "SansMono") for style in _STYLES),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
    *("cmr10", "cmb10", "cmss10", "cmtt10", "cmti10", "cmmi10"),
)
_VERSION = 2  # of the rendering, the networks and the pre-training: another one asks for another cache file


# --- networks ---------------------------------------------------------------------------------------------------------


def mobilenet_v2(classes: int = 10, **more) -> nn.Module:
    """Return torchvision's MobileNetV2 at width 0.35, its strides fitted to 32 x 32: the last maps are 4 x 4."""
    from torchvision.models import MobileNetV2

    # expansion, channels, blocks, stride; torchvision's has a stride of 2 in the second and the sixth row too
    setting = [
        [1, 16, 1, 1], [6, 24, 2, 1], [6, 32, 3, 2], [6, 64, 4, 2], [6, 96, 3, 1], [6, 160, 3, 1], [6, 320, 1, 1],
    ]  # fmt: skip
    return MobileNetV2(classes, 0.35, setting, **more)


def mobilenet_v3_small(classes: int = 10) -> nn.Module:
    """Return torchvision's MobileNetV3-Small at width 0.35, its strides fitted to 32 x 32: the last maps are 4 x 4."""
    from torchvision.models import mobilenet_v3_small

    network = mobilenet_v3_small(num_classes=classes, width_mult=0.35)
    for block, layer in ((1, 0), (9, 1)):
        network.features[block].block[layer][0].stride = (1, 1)
    return network


class StandardizedConv2d(nn.Conv2d):
    """A convolution whose weight has mean 0 and deviation 1 in every output channel.

    Source: Qiao et al.: Weight Standardization (arXiv 1903.10520); written as in timm's StdConv2d.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve x (N x C x H x W) with the standardised weight."""
        rows = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(rows, None, None, training=True, eps=1e-5).reshape_as(self.weight)
        return self._conv_forward(x, weight, self.bias)


def mobilenet_v2_group_norm(classes: int = 10) -> nn.Module:
    """Return `mobilenet_v2` as TinyTL has its networks: group norm, 8 channels each, and standardised weights."""
    network = mobilenet_v2(classes, norm_layer=lambda channels: nn.GroupNorm(channels // 8, channels))
    for module in network.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = StandardizedConv2d
    return network


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    build.__name__: build for build in (mobilenet_v2, mobilenet_v3_small, mobilenet_v2_group_norm)
}


# --- images -----------------------------------------------------------------------------------------------------------


@cache
def _glyphs() -> tuple[torch.Tensor, torch.Tensor]:
    """Return every letter in every font, white on black (G x 1 x 64 x 64, 0 to 1), and its class."""
    import matplotlib
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    folder, size = Path(matplotlib.get_data_path(), "fonts", "ttf"), 64
    images, classes = [], []
    for name in _FONTS:
        font = ImageFont.truetype(folder / f"{name}.ttf", 40, layout_engine=ImageFont.Layout.BASIC)
        for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz":
            image = Image.new("L", (size, size))
            left, top, right, bottom = font.getbbox(letter)
            corner = ((size - left - right) / 2, (size - top - bottom) / 2)
            ImageDraw.Draw(image).text(corner, letter, fill=255, font=font)
            images.append(np.asarray(image))
            classes.append(LETTERS.index(letter if letter in LETTERS else letter.upper()))
    return torch.from_numpy(np.stack(images)).float().div(255).unsqueeze(1), torch.tensor(classes)


def letters(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `count` distorted letters (N x 3 x 32 x 32) and their classes.

    Each is rotated, sheared, scaled and bent, its stroke thickened or not.
    """
    glyphs, classes = _glyphs()
    draw = torch.Generator().manual_seed(seed)
    which = torch.randint(len(glyphs), (count,), generator=draw)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.rand(count, *shape, generator=draw) * (high - low) + low

    angle, shear = uniform(-0.3, 0.3), uniform(-0.3, 0.3)
    across, down = uniform(0.4, 0.8), uniform(0.42, 0.7)
    cosine, sine = angle.cos(), angle.sin()
    rows = [
        torch.stack([across * cosine, across * (shear * cosine - sine), uniform(-0.1, 0.1)], 1),
        torch.stack([down * sine, down * (shear * sine + cosine), uniform(-0.1, 0.1)], 1),
    ]
    where = F.affine_grid(torch.stack(rows, 1), [count, 1, RESOLUTION, RESOLUTION], align_corners=False)
    bend = F.interpolate(uniform(-0.12, 0.12, 2, 4, 4), (RESOLUTION, RESOLUTION), mode="bicubic", align_corners=True)
    images = F.grid_sample(glyphs[which], where + bend.permute(0, 2, 3, 1), align_corners=False)
    thick = torch.rand(count, generator=draw) < 0.5
    images[thick] = F.max_pool2d(images[thick], 3, 1, 1)
    return _normalised(images), classes[which]


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Return scikit-learn's 1,797 handwritten digits (N x 3 x 32 x 32) and their classes, in their order."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.images).float().unsqueeze(1) / 16
    return _normalised(_upsampled(images)), torch.from_numpy(data.target).long()


def _upsampled(images: torch.Tensor) -> torch.Tensor:
    return F.interpolate(images, (RESOLUTION, RESOLUTION), mode="bilinear", align_corners=False)


def _normalised(images: torch.Tensor) -> torch.Tensor:
    return ((images - 0.5) / 0.5).repeat(1, 3, 1, 1)


# --- the task ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """A pre-trained network with a new head, and the images it is to learn: what `training.fine_tune` takes."""

    model: nn.Module
    train: tuple[torch.Tensor, torch.Tensor]
    test: tuple[torch.Tensor, torch.Tensor]
    resolution: int = RESOLUTION


def glyphs_to_digits(
    network: str = "mobilenet_v2",
    images_per_class: int = 5,
    seed: int = 0,
    *,
    rendered: int = 15_000,
    epochs: int = 6,
    pretraining_seed: int = 0,
    folder: Path | None = None,
    progress: Callable[[str], None] = lambda stage: None,
) -> Task:
    """Return the task: a network pre-trained on letters, and digits to transfer it to.

    network: a name in `NETWORKS`. images_per_class: labelled digits per class, the first ones of the data's first half.
    seed: of the new head. rendered, epochs, pretraining_seed: of the pre-training. folder: where its result is kept;
    the user's cache if None. progress: called with what is being done.

    Errors: InputError for an unknown network, or more images per class than there are.
    """
    if network not in NETWORKS:
        raise unknown("network", network, NETWORKS)
    images, labels = digits()
    half = len(images) // 2
    of_class = [torch.nonzero(labels[:half] == digit).flatten() for digit in range(10)]
    most = min(map(len, of_class))
    if not 1 <= images_per_class <= most:
        raise InputError(f"images_per_class must be 1 to {most}, not {images_per_class!r}")
    chosen = torch.cat([found[:images_per_class] for found in of_class])
    model = NETWORKS[network](len(LETTERS))
    model.load_state_dict(_pretrained(network, rendered, epochs, pretraining_seed, folder, progress))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Linear(model.classifier[-1].in_features, 10)
        nn.init.normal_(head.weight, std=0.01)
        nn.init.zeros_(head.bias)
    model.classifier[-1] = head
    return Task(model, (images[chosen], labels[chosen]), (images[half:], labels[half:]))


def _pretrained(
    network: str, rendered: int, epochs: int, seed: int, folder: Path | None, progress: Callable[[str], None]
) -> dict[str, torch.Tensor]:
    """Return the weights after pre-training, from the cache if they are there."""
    from platformdirs import user_cache_path

    folder = user_cache_path("finetune-planner") if folder is None else Path(folder)
    path = folder / f"{network}-{rendered}-letters-{epochs}-epochs-seed-{seed}-version-{_VERSION}.pt"
    if path.exists():
        try:
            return torch.load(path, weights_only=True)
        except (OSError, RuntimeError, EOFError, UnpicklingError):
            progress(f"{path} cannot be read; pre-training again")
    weights = _pretrain(network, rendered, epochs, seed, progress)
    _write(weights, path, progress)
    return weights


def _pretrain(
    network: str, rendered: int, epochs: int, seed: int, progress: Callable[[str], None]
) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = NETWORKS[network](len(LETTERS))
        train, test = letters(rendered, seed), letters(-(-rendered // 15), seed + 1)
        progress(f"pre-training {network} on {rendered} letters")
        for epoch in train_epochs(model, train, Recipe(epochs, 3e-3, 64, RESOLUTION, "adam"), seed):
            progress(f"pre-training {network}: epoch {epoch} of {epochs}")
        right = sum(classify(model, test))
        progress(f"pre-trained {network}: {right} of {len(test[0])} new letters right")
    return model.state_dict()


def _write(weights: dict[str, torch.Tensor], path: Path, progress: Callable[[str], None]) -> None:
    """Write the weights all at once, so that nobody ever reads half a file; a full disk costs only the next time."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            temporary = Path(file.name)
            torch.save(weights, file)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        progress(f"the pre-trained weights could not be kept in {path.parent}: {error}")
        if temporary is not None:
            temporary.unlink(missing_ok=True)
