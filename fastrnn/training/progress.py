"""The progress bar of fit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol


class Bar(Protocol):
    """What fit calls after every step."""

    def start(self, epoch: int, total: int) -> None: ...
    def advance(self, loss: float) -> None: ...
    def done(self, record: dict[str, Any]) -> None: ...


class _Silent:
    def start(self, epoch: int, total: int) -> None: ...

    def advance(self, loss: float) -> None: ...

    def done(self, record: dict[str, Any]) -> None: ...


class _Rich:
    """A bar for the running epoch, a line for each that is over, on standard error."""

    def __init__(self, progress: Any, epochs: int) -> None:
        self._progress, self._epochs, self._width = progress, epochs, len(str(epochs))
        self._task = progress.add_task("", total=None, loss="")

    def start(self, epoch: int, total: int) -> None:
        label = f"epoch {epoch:{self._width}d}/{self._epochs}"
        self._progress.reset(self._task, total=total, description=label, loss="")

    def advance(self, loss: float) -> None:
        self._progress.update(self._task, advance=1, loss=f"loss {loss:.4f}")

    def done(self, record: dict[str, Any]) -> None:
        words = [f"epoch {record['epoch']:{self._width}d}/{self._epochs}"]
        words += [
            f"{key.replace('_', ' ')} {record[key]:.4f}"
            for key in ("loss", "validation_loss", "score")
            if key in record
        ]
        words.append(f"{record['seconds']:.1f} s")
        self._progress.console.print("  ".join(words), highlight=False)


@contextmanager
def progress_bar(shown: bool, epochs: int) -> Iterator[Bar]:
    """A silent one, or one of rich, which the extra "cli" brings: ImportError without it."""
    if not shown:
        yield _Silent()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield _Rich(progress, epochs)
