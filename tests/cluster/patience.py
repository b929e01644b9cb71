"""Waiting for what takes many seconds of CPU, on a machine that may have other things to do."""

from __future__ import annotations

from collections.abc import Callable

from tests.waiting import until

PATIENCE_S = 1200


def eventually(condition: Callable[[], bool], *, deadline_s: float = PATIENCE_S) -> None:
    """Return when `condition`, which costs something to look at, holds."""
    until(condition, deadline_s=deadline_s, every_s=0.2)
