"""Waiting for a condition, with a deadline: nothing here sleeps and hopes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


def until(condition: Callable[[], bool], *, deadline_s: float = 10.0, every_s: float = 0.02) -> None:
    """Return when `condition` holds, looked at every so many seconds.

    Raises:
        TimeoutError: it did not within `deadline_s` seconds.
    """
    end = time.monotonic() + deadline_s
    pause = threading.Event()
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {deadline_s:g} s")
        pause.wait(every_s)
