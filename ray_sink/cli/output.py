"""What the commands print: text through rich, or one JSON document."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from datetime import timedelta
from itertools import chain, islice, repeat
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar

SHOWN_PROBLEMS: Final = 20
_LINE_EVERY_S: Final = 30.0


def console(*, stderr: bool = False) -> Console:
    """A console that takes every text as it is: keys may hold what rich would read as markup."""
    from rich.console import Console

    made = Console(stderr=stderr, markup=False, highlight=False, emoji=False)
    if not made.is_terminal:
        made.width = max(made.width, 160)  # a file or a pipe has no edge
    return made


def table(*columns: str, title: str | None = None, right: Iterable[str] = ()) -> Any:
    """An empty table; `right` names the columns of numbers."""
    from rich import box
    from rich.table import Table

    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    numbers = set(right)
    for name in columns:
        made.add_column(name, justify="right" if name in numbers else "left", overflow="fold")
    return made


def size(n_bytes: int) -> str:
    """A size as people read it."""
    from rich.filesize import decimal

    return decimal(n_bytes)


def print_json(document: object) -> None:
    """One JSON document on standard output."""
    click.echo(json.dumps(document, default=_plain, ensure_ascii=False, indent=2))


def print_lines(lines: Iterable[str]) -> None:
    """Lines on standard output, many at a time: each write is flushed."""
    rest = iter(lines)
    while chunk := list(islice(rest, 1000)):
        click.echo("\n".join(chunk))


def print_json_rows(head: dict[str, object], name: str, rows: Iterable[object]) -> None:
    """`head` with one more list under `name`, whose items are printed as they come."""
    begin = json.dumps(head, default=_plain, ensure_ascii=False)[:-1]
    click.echo(f"{begin}{', ' if head else ''}{json.dumps(name)}: [", nl=False)
    separators = chain(("\n",), repeat(",\n"))
    texts = (
        separator + json.dumps(row, default=_plain, ensure_ascii=False)
        for separator, row in zip(separators, rows, strict=False)
    )
    while chunk := list(islice(texts, 1000)):
        click.echo("".join(chunk), nl=False)
    click.echo("\n]}")


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


class Progress:
    """Bytes that are done, on standard error: a bar in a terminal, else a line now and then, for a log. Thread-safe.

    Args:
        description: what is done with them.
        bar: counts them, and shows itself where there is a terminal.
        shown: where lines go.
    """

    def __init__(self, description: str, bar: Bar, shown: Console) -> None:
        self._bar, self._shown = bar, shown
        self._task = bar.add_task(description, total=None)
        self._next_s = time.monotonic() + _LINE_EVERY_S  # short ones say nothing
        self._lock = threading.Lock()

    def update(self, *, total: int | None = None, completed: int | None = None, advance: int | None = None) -> None:
        """Tell of bytes: all there are, those done so far, or some more done."""
        self._bar.update(self._task, total=total, completed=completed, advance=advance)
        with self._lock:
            if self._shown.is_terminal or time.monotonic() < self._next_s:
                return
            self._next_s = time.monotonic() + _LINE_EVERY_S
        (task,) = self._bar.tasks
        of = f" of {size(int(task.total))}" if task.total is not None else ""
        speed = f", {size(int(task.speed))}/s" if task.speed else ""
        left = f", {timedelta(seconds=task.time_remaining)} left" if task.time_remaining else ""
        self._shown.print(f"{task.description}: {size(int(task.completed))}{of}{speed}{left}")


@contextmanager
def progress(description: str) -> Iterator[Progress]:
    """Shows bytes that are done; warnings of the library are shown among it."""
    from rich.logging import RichHandler
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    shown = console(stderr=True)
    handler = RichHandler(console=shown, show_path=False, level=logging.WARNING)
    logger = logging.getLogger("ray_sink")
    logger.addHandler(handler)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    try:
        with Bar(*columns, console=shown, disable=not shown.is_terminal, transient=True) as bar:
            yield Progress(description, bar, shown)
    finally:
        logger.removeHandler(handler)
