"""The driver looks at its run once a second: for the display, the metrics, and the note that its claim carries."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import ray
from ray.exceptions import RayError

from ray_sink.display import Display, Lines, Nothing, OneLine
from ray_sink.errors import SinkError
from ray_sink.measures import RunMeasures
from ray_sink.report import Live, Pace
from ray_sink.runtime.calls import result
from ray_sink.runtime.metrics import Metrics

_EVERY_S = 1.0
_ANSWER_S = 5.0


class Bar:
    """A line among Ray Data's own bars."""

    def __init__(self) -> None:
        from ray.experimental import tqdm_ray

        self._bar: Any = tqdm_ray.tqdm(desc="sink", total=None)

    def show(self, live: Live, at_s: float) -> None:
        """See `Display.show`."""
        self._bar.set_description(live.line())
        self._bar.refresh()

    def close(self) -> None:
        """See `Display.close`."""
        self._bar.close()


class Progress:
    """A thread that asks the coordinator how the run is doing, until `stop`.

    Args:
        coordinator: its actor handle.
        run_id: for the metrics.
        shown: whether there is a display.
    """

    def __init__(self, coordinator: Any, run_id: str, *, shown: bool) -> None:
        self._coordinator = coordinator
        self._metrics = Metrics(run_id)
        self._pace = Pace()
        self._kind: Callable[[], Callable[[], Display]] = _kind if shown else lambda: Nothing
        self._display: Display = Nothing()
        self._made: Callable[[], Display] = Nothing
        self._note = ""
        self._last = RunMeasures()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ray_sink-progress", daemon=True)
        self._thread.start()

    def note(self) -> str:
        """What was seen last, for `ray_sink.ownership.Claim.beat`."""
        return self._note

    def stop(self) -> RunMeasures:
        """End the thread and the display; returns what was measured, once more if that can be had."""
        if not self._stop.is_set():
            self._stop.set()
            self._thread.join(_ANSWER_S)
            if not self._thread.is_alive():
                self._look()
                self._display.close()
        return self._last

    def _run(self) -> None:
        while not self._stop.wait(_EVERY_S):
            self._look()

    def _look(self) -> None:
        if not ray.is_initialized():
            return  # a call would start Ray anew
        try:
            self._last = result(self._coordinator.measured.remote(), timeout_s=_ANSWER_S)
        except (RayError, SinkError):
            return  # it is being started again, or the run is over: whoever writes hears of it
        now_s = time.monotonic()
        live = self._pace.live(self._last, now_s)
        self._note = live.to_json()
        self._metrics.hand_on(self._last)
        kind = self._kind()
        if kind is not self._made:
            self._display.close()
            self._display, self._made = kind(), kind
        self._display.show(live, now_s)


def _one_line() -> Display:
    return OneLine(sys.stderr)


def _lines() -> Display:
    return Lines(sys.stderr)


def _kind() -> Callable[[], Display]:
    """Which display goes with what Ray Data shows; that may change while the run goes on."""
    if not sys.stderr.isatty():
        return _lines
    if "ray.data" not in sys.modules or not sys.stdout.isatty():
        return _one_line
    from ray.data import DataContext

    context = DataContext.get_current()
    if not context.enable_progress_bars or (context.use_ray_tqdm and find_spec("tqdm") is None):
        return _one_line
    # its rich bars own the terminal
    return Bar if context.use_ray_tqdm else _lines
