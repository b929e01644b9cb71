"""One thread that a user's model lives on: it is constructed, called, iterated and dropped there."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

_T = TypeVar("_T")


class ModelThread:
    """Runs calls one after the other, in the order in which they come.

    Models need not be safe under threads, and what they set for their thread (the CUDA device, autograd's mode) holds
    for all of their calls. With `asynchronous` the thread runs an event loop, on which calls take turns where they
    await.
    """

    def __init__(self, make: Callable[[], Any], *, asynchronous: bool) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._loop = asyncio.new_event_loop() if asynchronous else None
        self._model: Any = None
        # a daemon: an actor that is told to go must not wait for a model
        self._thread = threading.Thread(target=self._run, name="ray_sink-model", daemon=True)
        self._thread.start()
        made: Future[None] = Future()
        self._calls.put(lambda: _settle(made, lambda: self._make(make)))
        if asynchronous:
            self._calls.put(None)  # from then on the loop takes the calls
        try:
            made.result()
        except BaseException:
            self.stop()
            raise

    def submit(self, call: Callable[[Any], _T]) -> Future[_T]:
        """Have `call(model)` run on the thread."""
        future: Future[_T] = Future()
        self._calls.put(lambda: _settle(future, lambda: call(self._model)))
        return future

    def submit_async(self, call: Callable[[Any], Coroutine[Any, Any, _T]]) -> Future[_T]:
        """Have the coroutine `call(model)` run on the thread's event loop."""
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(call(self._model), self._loop)

    def stop(self) -> None:
        """Let the model go, on its thread, after the calls that came before."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._calls.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _make(self, make: Callable[[], Any]) -> None:
        self._model = make()

    def _run(self) -> None:
        self._serve()
        if self._loop is not None:
            asyncio.set_event_loop(self._loop)
            self._loop.run_forever()
            self._loop.close()
        self._model = None

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
            del call  # its batch must not live until the next call comes


def _settle(future: Future[_T], call: Callable[[], _T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(call())
    except BaseException as error:  # noqa: BLE001 -- the caller gets it, whatever it is
        future.set_exception(error)
