"""Uploading what an AsyncWriter has finished, without Ray and without a ledger."""

from __future__ import annotations

import os
import queue
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from ray_sink.errors import ConfigError, SinkClosedError
from ray_sink.records import UploadOutcome
from ray_sink.uploader import Uploader, raise_all

# Ends a queue, by identity: a queue of paths stays one, and nobody else can put this one.
_END = Path("end of the queue")


class Drain:
    """Takes finished paths off a queue and uploads each under its path below the uploader's root.

    Both ends together; the writer leaves first and the uploader last::

        paths: queue.Queue[Path] = queue.Queue(maxsize=256)
        store = open_store("s3://bucket/outputs", UploadOptions())
        with (
            Uploader(store, Path("out"), "my-run", UploadOptions()) as uploader,
            Drain(uploader, paths),
            AsyncWriter("out", upload_queue=paths) as writer,
        ):
            writer.write("case_1", tensor)

    An object that is there is replaced; uploads of one path never overlap, so that the newest file lands last. Files
    stay where they are. A failed upload stops nothing: `close` raises it.

    Args:
        uploader: knows the store and the root.
        paths: absolute, or relative to the working directory; all below the root.
    """

    def __init__(self, uploader: Uploader, paths: queue.Queue[Path]) -> None:
        self._uploader = uploader
        self._paths = paths
        self._root = Path(os.path.abspath(uploader.root))
        self._changed = threading.Condition()
        self._running: set[str] = set()
        self._again: set[str] = set()
        self._failures: list[Exception] = []
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="drain", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Upload all that was queued before, and end; a second call does nothing.

        Raises:
            SinkError: an upload failed; an ExceptionGroup when several did.
        """
        with self._changed:
            if self._closed:
                return
            self._closed = True
        self._paths.put(_END)
        self._thread.join()
        with self._changed:
            self._changed.wait_for(lambda: not self._running)
            failures, self._failures = self._failures, []
        raise_all(f"{len(failures)} uploads failed", failures)

    def __enter__(self) -> Self:
        """Return self."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _run(self) -> None:
        # it must reach the end of the queue whatever happens: a writer may be waiting for room in it
        while (path := self._paths.get()) is not _END:
            try:
                self._take(path)
            except (ConfigError, SinkClosedError) as error:
                with self._changed:
                    self._failures.append(error)

    def _take(self, path: Path) -> None:
        full = Path(os.path.abspath(path))
        if not full.is_relative_to(self._root) or full == self._root:
            raise ConfigError(f"{path} is not below {self._root} and was not uploaded")
        name = full.relative_to(self._root).as_posix()
        with self._changed:
            if name in self._running:
                self._again.add(name)
                return
            self._running.add(name)
        try:
            self._uploader.submit_as_found(name, lambda outcome: self._done(name, outcome))
        except SinkClosedError:
            with self._changed:
                self._running.discard(name)
                self._changed.notify_all()
            raise

    def _done(self, name: str, outcome: UploadOutcome) -> None:
        while True:
            with self._changed:
                if outcome.error is not None:
                    self._failures.append(outcome.error)
                if name not in self._again:
                    self._running.discard(name)
                    self._changed.notify_all()
                    return
                self._again.discard(name)
            # here and not through the pool: this is one of its threads, and it must not wait for itself
            outcome = self._uploader.upload_as_found(name)
