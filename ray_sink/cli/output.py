"""What the commands print: text through rich, or one JSON document."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from itertools import chain, islice, repeat
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

SHOWN_PROBLEMS = 20


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


@contextmanager
def progress(description: str, total_bytes: int | None) -> Iterator[tuple[Progress, Any]]:
    """A progress bar on standard error, where that is a terminal; warnings of the library are shown above it."""
    from rich.logging import RichHandler
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

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
        with Progress(*columns, console=shown, disable=not shown.is_terminal, transient=True) as bar:
            yield bar, bar.add_task(description, total=total_bytes)
    finally:
        logger.removeHandler(handler)
