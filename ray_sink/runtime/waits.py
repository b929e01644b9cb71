"""Who waits for what to happen to which keys; looked at only when something has happened to one of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(slots=True)
class _Wait:
    left: set[str]
    over: asyncio.Future[None]


class Waits:
    """On one event loop."""

    def __init__(self) -> None:
        self._by_key: dict[str, list[_Wait]] = {}

    async def until_met(self, keys: Iterable[str]) -> None:
        """Wait until each of `keys` was `met`, counted from this call."""
        wait = _Wait(set(keys), asyncio.get_running_loop().create_future())
        if not wait.left:
            return
        for key in wait.left:
            self._by_key.setdefault(key, []).append(wait)
        try:
            await wait.over
        finally:
            for key in wait.left:
                self._forget(key, wait)

    def met(self, keys: Iterable[str]) -> None:
        """What `keys` were waited for has happened."""
        for key in keys:
            for wait in self._by_key.pop(key, ()):
                wait.left.discard(key)
                if not wait.left and not wait.over.done():
                    wait.over.set_result(None)

    def _forget(self, key: str, wait: _Wait) -> None:
        waits = [other for other in self._by_key.get(key, ()) if other is not wait]
        if waits:
            self._by_key[key] = waits
        else:
            self._by_key.pop(key, None)
