"""Progress bars on standard error, for what takes long and may be asked to stop."""

from __future__ import annotations

import signal
import threading
from typing import Any, Self

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from costmodel.interface.running import terminal


class ProgressBars:
    """Bars by name, and lines above them; in a `with` block signals to stop come here."""

    def __init__(self):
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=terminal(stderr=True),
        )
        self.tasks: dict[str, TaskID] = {}
        self.stopped = False
        self.before: dict[int, Any] = {}  # what signals did

    def __enter__(self) -> Self:
        """Show the bars, once there is one, and listen to those who ask to stop; nohup keeps its own answer."""
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                if (number := getattr(signal, name, None)) and signal.getsignal(number) != signal.SIG_IGN:
                    self.before[number] = signal.signal(number, self.stop)
        return self

    def __exit__(self, *_) -> None:
        """Leave the bars as they are."""
        for number, answer in self.before.items():
            signal.signal(number, answer)
        if self.tasks:
            self.progress.stop()

    def stop(self, *_) -> None:
        """Stop: now, or where `stopped` is looked at if the interruption is lost. Errors: KeyboardInterrupt."""
        self.stopped = True
        raise KeyboardInterrupt

    def show(self, bar: str, text: str, done: float, total: float, anew: bool = False) -> None:
        """Set a bar, which is made if there is none of that name. anew: its time starts now."""
        if not self.tasks:
            self.progress.start()
        if bar not in self.tasks:
            self.tasks[bar] = self.progress.add_task(text, total=total)
        elif anew:
            self.progress.reset(self.tasks[bar])
        self.progress.update(self.tasks[bar], description=text, completed=done, total=total)

    def line(self, text: str) -> None:
        """Write a line above the bars."""
        self.progress.console.print(Text(text))

    def notes(self, text: str) -> None:
        """Write a note above the bars."""
        self.line(f"note: {text}")
