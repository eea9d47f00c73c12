"""The outputs of the frozen prefix, computed once for every image, stored, and trained from.

A folder holds them: `outputs` (one record of fixed size for each image), `index` (a checksum of each image, and its
label), `prefix` (the weights that only the prefix needs; the network reads them from there from now on, so that they
take no memory while it trains) and `manifest.json`, what the rest was made with. Records are only ever added, an
image's checksum after its output, so that filling can be stopped at any time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cached_property
from hashlib import blake2b
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn
from torch.utils.data import DataLoader, Dataset, RandomSampler

from ..errors import InputError
from ..reading import read_file
from ..step.cache import record_bytes, scales
from ..step.regions import regions
from ..step.schedule import Schedule
from ..step.sizes import names_before
from ..units import BYTES_PER_ELEMENT
from .applied import Applied
from .pieces import Filled
from .replacing import TrainingPlan
from .scheduled import ScheduledPass

_CHECKSUM_BYTES = 16
_INDEX = np.dtype([("checksum", f"V{_CHECKSUM_BYTES}"), ("label", "<i8")])
_TORCH = {"float32": torch.float32, "float16": torch.float16, "int8": torch.int8}
_LARGEST = {"float16": 1, "int8": 127}  # what the largest value is stored as


class _Manifest(BaseModel):
    """What a cache was made with. largest_error: relative to the largest value of an image."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: str
    dtype: str
    shape: tuple[int, ...]
    largest_error: float = Field(default=0.0, ge=0, le=1)


class CachedImages(Dataset):
    """The outputs of the frozen prefix, image by image, in the order of the loader that filled the cache.

    An item is (output in float32, label). largest_error: how much a stored value is off at most, relative to the
    largest value of its image.
    """

    def __init__(self, folder: Path, manifest: _Manifest):
        self.folder, self.shape, self.dtype = folder, manifest.shape, manifest.dtype
        self.largest_error = manifest.largest_error
        self.bytes_per_image = record_bytes(self.shape, self.dtype)

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        record = torch.from_numpy(np.array(self._outputs[number]))
        label, split = int(self._index["label"][number]), prod(self.shape) * BYTES_PER_ELEMENT[self.dtype]
        values = record[:split].view(_TORCH[self.dtype])
        if self.dtype == "float32":
            return values.reshape(self.shape), label
        steps = record[split:].clone().view(torch.float32)
        return (values.reshape(len(steps), -1) * steps[:, None]).reshape(self.shape), label

    def __getstate__(self) -> dict[str, Any]:
        """Leave the mapped files out: a worker maps them itself."""
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}

    @cached_property
    def _index(self) -> np.ndarray:
        return np.fromfile(self.folder / "index", _INDEX)

    @cached_property
    def _outputs(self) -> np.ndarray:
        if not len(self):
            return np.empty((0, self.bytes_per_image), np.uint8)
        return np.memmap(self.folder / "outputs", np.uint8, "r", shape=(len(self), self.bytes_per_image))


def cached_prefix(
    model: nn.Module,
    schedule: Schedule,
    loader: DataLoader | Iterable[tuple[torch.Tensor, torch.Tensor]],
    storage: str | os.PathLike[str],
    progress: Callable[[int], None] = lambda images: None,
) -> CachedImages:
    """Fill a cache with what the frozen prefix gives for each image, and return the data set to train from.

    model: applied with `schedule`, whose `cache` names the type of what is stored. From then on it takes the data set's
    items in training mode, and images in eval mode; it is the same network, with the same parameters and state dict.
    loader: gives (images [n, channels, height, width], integer labels [n]) in an order that stays, unshuffled and not
    augmented. storage: a folder for the cache; one that was begun goes on where it stopped, after each image was
    compared with what is there. progress: called with the number of images that are done.

    Errors: InputError for a model or schedule that has no cache, a folder whose cache is of another network or of other
    images, and images of another size than the model was applied for.
    """
    if not isinstance(model, Applied) or model.training_plan.schedule != schedule or schedule.cache is None:
        raise InputError(
            "cached_prefix needs a model that was applied with this schedule, and a schedule with a cache: "
            "costmodel.apply(model, way, schedule=schedule), schedule = Schedule(cache='float32')"
        )
    if isinstance(loader, DataLoader) and isinstance(loader.sampler, RandomSampler):
        raise InputError("the loader shuffles, but a cache needs one order; make it with shuffle=False")
    plan, folder = model.training_plan, Path(storage)
    folder.mkdir(parents=True, exist_ok=True)
    output = regions(plan.required, schedule).prefix_output
    assert output is not None  # what is cached
    network = _checksum_of_prefix(model, plan)
    made = _Manifest(network=network, dtype=schedule.cache, shape=tuple(output.shape[1:]))
    writer = _Writer(folder, _manifest(folder, made))
    was_training = model.training
    model.train()
    try:
        writer.fill(model, loader, schedule.prefix_batch or 1, progress)
    finally:
        model.train(was_training)
        writer.close()
    _map_prefix(model, plan, folder)
    return CachedImages(folder, writer.manifest)


class _Writer:
    """Adds records to a cache's files."""

    def __init__(self, folder: Path, manifest: _Manifest):
        self.folder, self.manifest = folder, manifest
        size = record_bytes(manifest.shape, manifest.dtype)
        files = [folder / "outputs", folder / "index"]
        lengths = [path.stat().st_size if path.exists() else 0 for path in files]
        count = min(lengths[0] // size, lengths[1] // _INDEX.itemsize)  # what was half written is written again
        self.checksums = np.fromfile(files[1], _INDEX, count)["checksum"] if count else np.empty(0, "V16")
        self.outputs, self.index = (open(path, "ab") for path in files)  # noqa: SIM115  # closed by `close`
        self.outputs.truncate(count * size)
        self.index.truncate(count * _INDEX.itemsize)
        self._note()

    def fill(self, model: Applied, loader: Iterable, piece: int, progress: Callable[[int], None]) -> None:
        """Add the images that are not there; compare those that are."""
        done = 0
        for images, labels in loader:
            self._check(model, images)
            checksums = [_checksum(image) for image in images]
            there = min(max(0, len(self.checksums) - done), len(images))
            for number in range(there):
                if self.checksums[done + number].tobytes() != checksums[number]:
                    raise InputError(
                        f"image {done + number} differs from the one that the cache in {self.folder} was filled "
                        "with; give the loader the same images in the same order, unaugmented, or another folder"
                    )
            for start in range(there, len(images), piece):
                part = slice(start, min(start + piece, len(images)))
                self._add(_prefix_output(model, images[part]), checksums[part], labels[part].tolist())
            done += len(images)
            progress(done)
        if done < len(self.checksums):
            raise InputError(
                f"the cache in {self.folder} holds {len(self.checksums)} images, but the loader gave {done}; give the "
                "loader the same images, or another folder"
            )

    def _check(self, model: Applied, images: torch.Tensor) -> None:
        expected = model.training_plan.required.graph.input.shape[1:]
        if tuple(images.shape[1:]) != tuple(expected):
            raise InputError(
                f"images are {tuple(images.shape[1:])} in size, but the model was applied for {tuple(expected)}; apply "
                "it with resolution= of the images"
            )

    def _add(self, output: torch.Tensor, checksums: list[bytes], labels: list[int]) -> None:
        if tuple(output.shape[1:]) != self.manifest.shape:
            raise InputError(f"the prefix gave {tuple(output.shape[1:])}, but should give {self.manifest.shape}")
        records, error = _records(output.cpu(), self.manifest.dtype)
        if error > self.manifest.largest_error:
            self.manifest = self.manifest.model_copy(update={"largest_error": error})
            self._note()
        records.tofile(self.outputs)
        self.outputs.flush()
        index = np.empty(len(labels), _INDEX)
        index["checksum"], index["label"] = [np.void(each) for each in checksums], labels
        self.index.write(index.tobytes())
        self.index.flush()

    def _note(self) -> None:
        beside = self.folder / "manifest.json.part"
        beside.write_text(self.manifest.model_dump_json())
        beside.replace(self.folder / "manifest.json")

    def close(self) -> None:
        """Close the files."""
        self.outputs.close()
        self.index.close()


def _records(output: torch.Tensor, dtype: str) -> tuple[np.ndarray, float]:
    """Return outputs as they are stored, [images, bytes], and by how much a value is off at most."""
    output = output.float().contiguous()
    if dtype == "float32":
        return output.view(len(output), -1).numpy().view(np.uint8), 0.0
    groups = output.view(len(output), scales(tuple(output.shape[1:]), dtype), -1)
    largest = groups.abs().amax(2)
    steps = (largest / _LARGEST[dtype]).clamp_min(torch.finfo(torch.float32).tiny)
    stored = groups / steps[..., None]
    stored = (stored.round_() if dtype == "int8" else stored).to(_TORCH[dtype])
    off = (stored * steps[..., None] - groups).abs().amax((1, 2))
    error = (off / largest.amax(1).clamp_min(torch.finfo(torch.float32).tiny)).max()
    values = stored.view(len(output), -1).numpy().view(np.uint8)
    return np.hstack([values, steps.numpy().view(np.uint8)]), float(error)


def _prefix_output(network: Applied, images: torch.Tensor) -> torch.Tensor:
    """Return what the frozen prefix gives for images, [n, ...]; nothing behind it runs."""
    plan = network.training_plan
    try:
        with ScheduledPass(network, plan, plan.replacements, ((images,), {}), fills=True):
            super(Applied, network).forward(images)
    except Filled as filled:
        return filled.output
    raise AssertionError("the prefix ends before the network does")


def _manifest(folder: Path, made: _Manifest) -> _Manifest:
    """Return what the cache in a folder was made with. Errors: InputError if that is something else."""
    path = folder / "manifest.json"
    if not path.exists():
        if any(folder.iterdir()):
            raise InputError(f"{folder} is not a cache of this program, and not empty; give another folder")
        return made
    with suppress(ValidationError):
        there = _Manifest.model_validate_json(read_file(path, "manifest"))
        if there.model_copy(update={"largest_error": 0.0}) == made:
            return there
    raise InputError(
        f"the cache in {folder} was made by another network, with other weights, or in another type; give another "
        "folder, or delete this one"
    )


def _checksum(image: torch.Tensor) -> bytes:
    return blake2b(image.detach().cpu().contiguous().numpy().tobytes(), digest_size=_CHECKSUM_BYTES).digest()


def _checksum_of_prefix(model: nn.Module, plan: TrainingPlan) -> str:
    """Return a checksum of the weights that the prefix computes with, and of where it ends."""
    end = plan.regions.prefix
    found = blake2b(f"{plan.required.graph.model} {end}".encode(), digest_size=_CHECKSUM_BYTES)
    modules = {layer.module for layer in plan.required.graph.layers[:end]}
    for name, tensor in model.state_dict().items():
        if name.rpartition(".")[0] in modules:
            found.update(name.encode())
            found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def _map_prefix(model: nn.Module, plan: TrainingPlan, folder: Path) -> None:
    """Have the weights that only the prefix needs read from a file, where they take no memory until they are used."""
    names = [name for each in names_before(plan.required, plan.regions.prefix) for name in each]
    state = model.state_dict(keep_vars=True)
    if any(state[name].device.type != "cpu" for name in names):
        return
    path = folder / "prefix"
    if not path.exists():
        torch.save({name: state[name].detach() for name in names}, folder / "prefix.part")
        (folder / "prefix.part").replace(path)
    for name, mapped in torch.load(path, mmap=True, weights_only=True).items():
        state[name].data = mapped
