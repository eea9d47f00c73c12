"""What a program takes of a process's memory, measured: a delegate has weights and working memory of its own.

As a script it loads a program as the runner does, trains one step and writes to a file by how many bytes the process's
own memory (anonymous pages) grew. The arguments are the program, the batch, the resolution and that file.
"""

# pyright: reportMissingImports=false
# The types of the runtime's package are checked where the extra is installed.
from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from ..accounting.executorch import CALL_BYTES, RUNTIME_BYTES

_PAGES = Path("/proc/self/smaps_rollup")
# Pages of libexecutorch_backend_xnnpack.so. Source: /proc/PID/smaps of the runner on x86-64, three programs of
# MobileNetV2 and MCUNet; executorch 1.5.1. Assumption: as many on Arm.
_LIBRARY_BYTES = {"xnnpack": 1_340_000}


def process_bytes(program: bytes, calls: int, batch: int, resolution: int, delegate: str) -> int | None:
    """Return the memory of a runner's process with a delegate; None where it cannot be measured.

    program: what was exported. calls: of a step. The program's own memory is measured by a step in another process,
    since a delegate says nothing of its own before it runs; libraries and structures of calls are added.
    """
    if not _PAGES.exists():
        return None
    with tempfile.TemporaryDirectory() as folder:
        file, grown = Path(folder, "program.pte"), Path(folder, "bytes")
        file.write_bytes(program)
        words = [sys.executable, "-m", __name__, str(file), str(batch), str(resolution), str(grown)]
        if subprocess.run(words, capture_output=True, check=False).returncode:
            return None
        own = int(grown.read_text())
    return RUNTIME_BYTES + _LIBRARY_BYTES[delegate] + CALL_BYTES * calls + own


def _anonymous_bytes() -> int:
    found = re.search(r"^Anonymous:\s+(\d+) kB", _PAGES.read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


def main(file: str, batch: str, resolution: str, grown: str) -> None:
    """Write by how many bytes a step lets this process grow."""
    import torch
    from executorch.runtime import Runtime

    images = torch.zeros(int(batch), 3, int(resolution), int(resolution))
    labels, rate = torch.zeros(int(batch), dtype=torch.int64), torch.tensor(0.0)
    runtime = Runtime.get()
    before = _anonymous_bytes()
    program = runtime.load_program(file)
    step, _state = (program.load_method(name) for name in ("step", "state"))
    step.execute([images, labels, rate])
    Path(grown).write_text(str(_anonymous_bytes() - before))


if __name__ == "__main__":
    main(*sys.argv[1:])
