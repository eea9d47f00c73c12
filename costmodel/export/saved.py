"""What a runner saved, as weights for PyTorch. Needs torch, not the runtime."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError

PROGRAM, MANIFEST, WEIGHTS = "program.pte", "manifest.json", "weights.pt"
MANIFEST_VERSION = 1


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Return the manifest of an exported folder. Errors: InputError if there is none that this package reads."""
    path = Path(folder) / MANIFEST
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} is not an exported folder: cannot read {path}: {error}") from error
    if not isinstance(found, dict) or found.get("version") != MANIFEST_VERSION:
        raise InputError(f"{path} is not a manifest of version {MANIFEST_VERSION}; export the plan again")
    return found


MAGIC = b"FTPSTATE"
_DTYPES = {"float32": torch.float32, "int64": torch.int64}


def import_state(folder: str | Path, state: str | Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return what a runner wrote as a state dict of the whole network, and apart from it the optimizer's state.

    folder: what was exported. state: the runner's file: MAGIC, CRC-32 (4 bytes) and size (8 bytes) of the program, the
    tensors in the manifest's order, little-endian.

    Errors: InputError for a file that is none, is of another program, or has another length.
    """
    manifest = read_manifest(folder)
    try:
        content = Path(state).read_bytes()
        weights = torch.load(Path(folder) / WEIGHTS, weights_only=True)
    except (OSError, RuntimeError) as error:
        raise InputError(f"cannot read the file to import: {error}") from error
    head = MAGIC + struct.pack("<IQ", manifest["program"]["crc32"], manifest["program"]["bytes"])
    if not content.startswith(MAGIC):
        raise InputError(f"{state} was not written by a runner: it does not begin with {MAGIC.decode()}")
    if not content.startswith(head):
        raise InputError(f"{state} was written by the runner of another program than {folder}/{PROGRAM}")
    entries = [(entry["name"], torch.Size(entry["shape"]), _DTYPES[entry["dtype"]]) for entry in manifest["state"]]
    wanted = sum(shape.numel() * dtype.itemsize for _, shape, dtype in entries)
    if len(content) - len(head) != wanted:
        raise InputError(f"{state} has {len(content) - len(head):,} bytes of tensors, and {wanted:,} belong there")
    rest: dict[str, Tensor] = {}
    place = len(head)
    for name, shape, dtype in entries:
        size = shape.numel() * dtype.itemsize
        value = torch.frombuffer(bytearray(content[place : place + size]), dtype=dtype).view(shape)
        (weights if name in weights else rest)[name] = value
        place += size
    return weights, rest
