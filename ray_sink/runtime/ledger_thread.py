"""The one thread on which a ledger works, and whoever waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import ParamSpec, TypeVar

from ray_sink.filesystem import Filesystem
from ray_sink.patience import silence
from ray_sink.silence import WatchedFilesystem

_P = ParamSpec("_P")
_T = TypeVar("_T")

_GLANCE_S = 1.0
"""How long a glance waits for the thread, until it looks beside it."""


class LedgerThread:
    """Runs calls one after the other; all file operations of the thread go through `fs`.

    A thread inside a file operation that does not come back cannot be stopped. Whoever waits for it is told after
    `wait_s`; what it writes all the same later on is answered to nobody.

    Args:
        wait_s: how long a single file operation is waited for, seconds.
        fs: does the work.
    """

    def __init__(self, wait_s: float, fs: Filesystem) -> None:
        self.fs = WatchedFilesystem(fs)
        self._wait_s = wait_s
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ledger")

    def first(self, call: Callable[[], _T]) -> _T:
        """`run`, for whoever has no event loop yet."""
        running = self._pool.submit(call)
        while not wait([running], self._left_s()).done:
            self._check_silence()
        return running.result()

    async def run(self, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Return what `call` returns.

        Raises:
            StagingError: `ray_sink.patience.is_silence`: an operation of this call, or of one before it, hangs.
        """
        running = asyncio.get_running_loop().run_in_executor(self._pool, lambda: call(*args, **kwargs))
        while not (await asyncio.wait([running], timeout=self._left_s()))[0]:
            self._check_silence()
        return running.result()

    async def glance(self, read: Callable[[], _T]) -> _T:
        """`run`, but does not wait while the thread is inside a file operation; `read` must only read."""
        asked = asyncio.ensure_future(self.run(read))
        while not (await asyncio.wait([asked], timeout=_GLANCE_S))[0]:
            with self.fs.held() as doing:
                if doing:
                    asked.cancel()
                    return read()
        return asked.result()

    def _left_s(self) -> float:
        return max(0.0, self._wait_s - self.fs.silent_s)

    def _check_silence(self) -> None:
        with self.fs.held() as doing:
            hangs = doing
        if hangs and not self._left_s():
            raise silence(hangs, self._wait_s)
