"""One line about a run that is kept up to date in a terminal, or comes again at intervals; and a table at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TextIO

from ray_sink.report import Live, Report

if TYPE_CHECKING:
    from rich.console import Console

_EVERY_S = 30.0


class Display(Protocol):
    """Where a run's progress is shown. On one thread."""

    def show(self, live: Live, at_s: float) -> None:
        """Show how the run is doing, as of `at_s` on a monotonic clock, seconds."""

    def close(self) -> None:
        """Show no more."""


class Nothing:
    """Shows nothing."""

    def show(self, live: Live, at_s: float) -> None:
        """See `Display.show`."""

    def close(self) -> None:
        """See `Display.close`."""


class Lines:
    """A line every half minute, for a log."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last_s: float | None = None

    def show(self, live: Live, at_s: float) -> None:
        """See `Display.show`."""
        if self._last_s is None:
            self._last_s = at_s  # short runs say nothing
        elif at_s - self._last_s >= _EVERY_S:
            self._last_s = at_s
            self._stream.write(live.line() + "\n")
            self._stream.flush()

    def close(self) -> None:
        """See `Display.close`."""


class OneLine:
    """A line at the bottom of a terminal."""

    def __init__(self, stream: TextIO) -> None:
        from rich.live import Live as LiveText

        self._live = LiveText(console=_console(stream), transient=True, auto_refresh=False)
        self._live.start()

    def show(self, live: Live, at_s: float) -> None:
        """See `Display.show`."""
        from rich.text import Text

        self._live.update(Text(live.line()), refresh=True)

    def close(self) -> None:
        """See `Display.close`."""
        self._live.stop()


def show_report(report: Report, stream: TextIO) -> None:
    """A run's report as a table."""
    from rich import box
    from rich.table import Table

    table = Table(title=f"run {report.run.run_id}", title_justify="left", box=box.SIMPLE_HEAD, show_header=False)
    for name, value in report.rows():
        table.add_row(name, value)
    _console(stream).print(table)


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    # keys may hold what rich would read as markup
    return Console(file=stream, markup=False, highlight=False, emoji=False)
