"""How far a step has come: a bar on a terminal, a line for each quarter in a log."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class Steps:
    """The demo's steps, each with a number of outputs to come; a context manager."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def begin(self, title: str, total: int) -> Callable[[int], None]:
        """Start a step; what it returns is to be called with the outputs done so far."""
        bar = self._bars.add_task(title, total=total)
        said = 0

        def show(done: int) -> None:
            nonlocal said
            self._bars.update(bar, completed=done)
            quarter = 4 * done // total
            if quarter > said and not self.console.is_terminal:
                said = quarter
                self.console.print(f"{title}: {done} of {total}")

        return show
