"""Counting where it happens: what a handle, a writer and an uploader measure of themselves, at a microsecond a time."""

from __future__ import annotations

import os
import socket
import threading
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, BinaryIO, Generic, TypeVar

from ray_sink.measures import BOUNDS_S, ProducerMeasures, Timings, UploaderMeasures, WriterMeasures
from ray_sink.records import Decision, Proposal, Receipt

if TYPE_CHECKING:
    from ray_sink.errors import SinkError
    from ray_sink.publishing import Encode, FileSlot, Prepared, Publishing, WorkT

FileT = TypeVar("FileT")
"""See `ray_sink.publishing.FileT`."""
Decide = Callable[[Sequence[Proposal]], Sequence[Decision]]
"""Asks the ledger; see `ray_sink.publishing.DecidedPublishing`."""


def process_name() -> str:
    """What this process is called in measures: host and process id."""
    return f"{socket.gethostname()}-{os.getpid()}"


class Histogram:
    """Collects `Timings`, from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = array("Q", bytes(8 * (len(BOUNDS_S) + 1)))
        self._total_s = self._longest_s = 0.0

    def add(self, took_s: float) -> None:
        """Something took so long."""
        bucket = bisect_left(BOUNDS_S, took_s)
        with self._lock:
            self._counts[bucket] += 1
            self._total_s += took_s
            self._longest_s = max(self._longest_s, took_s)

    def timings(self) -> Timings:
        """All so far."""
        with self._lock:
            return Timings(tuple(self._counts), self._total_s, self._longest_s)


class ProducerMeter:
    """Counts for one handle, from several threads.

    Args:
        name: see `ProducerMeasures.name`.
        device_waited_s: how long producers have waited for room on a device so far, as a part of `copying`, seconds.
        clock: seconds, monotonic.
    """

    def __init__(
        self, name: str, device_waited_s: Callable[[], float], clock: Callable[[], float] = perf_counter
    ) -> None:
        self._name = name
        self._device_waited_s = device_waited_s
        self._clock = clock
        self._lock = threading.Lock()
        self._accepted = self._bytes = 0
        self._copy_s = self._credit_s = self._receipt_s = 0.0

    def accepted(self, outputs: int) -> None:
        """Tickets were issued."""
        with self._lock:
            self._accepted += outputs

    def sent(self, n_bytes: int) -> None:
        """A batch is on its way to a writer."""
        with self._lock:
            self._bytes += n_bytes

    @contextmanager
    def copying(self) -> Iterator[None]:
        """The caller is held up by copying."""
        began_s = self._clock()
        yield
        with self._lock:
            self._copy_s += self._clock() - began_s

    @contextmanager
    def wanting_credit(self) -> Iterator[None]:
        """The caller is held up for want of room."""
        began_s = self._clock()
        yield
        with self._lock:
            self._credit_s += self._clock() - began_s

    def waited_for_receipts(self, took_s: float) -> None:
        """A caller was held up by waiting for receipts."""
        with self._lock:
            self._receipt_s += took_s

    def measures(self) -> ProducerMeasures:
        """All that was counted so far."""
        device_s = self._device_waited_s()
        with self._lock:
            copy_s = max(0.0, self._copy_s - device_s)
            return ProducerMeasures(
                self._name, self._accepted, self._bytes, copy_s, device_s, self._credit_s, self._receipt_s
            )


class WriterMeter:
    """Counts for one writer, from several threads.

    Args:
        name: see `WriterMeasures.name`.
        clock: seconds, monotonic.
    """

    def __init__(self, name: str, clock: Callable[[], float] = perf_counter) -> None:
        self.clock = clock
        self._name = name
        self._lock = threading.Lock()
        self._batches = self._outputs = self._bytes = 0
        self.encode, self.stage, self.decide, self.publish = Histogram(), Histogram(), Histogram(), Histogram()
        self._deciding = threading.local()

    def wrote(self, outputs: int, n_bytes: int) -> WriterMeasures:
        """A batch is written; all that was counted so far."""
        with self._lock:
            self._batches += 1
            self._outputs += outputs
            self._bytes += n_bytes
            return WriterMeasures(
                self._name,
                self._batches,
                self._outputs,
                self._bytes,
                *(each.timings() for each in (self.encode, self.stage, self.decide, self.publish)),
            )

    def deciding(self, decide: Decide) -> Decide:
        """`decide`, timed."""

        def timed(proposals: Sequence[Proposal]) -> Sequence[Decision]:
            began_s = self.clock()
            try:
                return decide(proposals)
            finally:
                self._deciding.took_s = self.clock() - began_s
                self.decide.add(self._deciding.took_s)

        return timed

    def decided_s(self) -> float:
        """How long the decision took that this thread has asked for since it was asked last, seconds."""
        took_s: float = getattr(self._deciding, "took_s", 0.0)
        self._deciding.took_s = 0.0
        return took_s


class MeasuredPublishing(Generic[FileT]):
    """A publish policy, timed; see `ray_sink.publishing.Publishing`."""

    def __init__(self, publishing: Publishing[FileT, Receipt], meter: WriterMeter) -> None:
        self._publishing = publishing
        self._meter = meter

    def prepare(self, slot: FileSlot, encode: Encode) -> FileT:
        """See `Publishing.prepare`."""
        encoded_s = 0.0

        def timed(file: BinaryIO) -> None:
            nonlocal encoded_s
            began_s = self._meter.clock()
            encode(file)
            encoded_s += self._meter.clock() - began_s

        began_s = self._meter.clock()
        made = self._publishing.prepare(slot, timed)
        self._meter.encode.add(encoded_s)
        self._meter.stage.add(self._meter.clock() - began_s - encoded_s)
        return made

    def together(self, work: Callable[[], WorkT]) -> WorkT:
        """See `Publishing.together`."""
        return self._publishing.together(work)

    def discard(self, files: Sequence[FileT]) -> None:
        """See `Publishing.discard`."""
        self._publishing.discard(files)

    def publish(self, outputs: Sequence[Prepared[FileT]]) -> list[Receipt | SinkError]:
        """See `Publishing.publish`."""
        began_s = self._meter.clock()
        done = self._publishing.publish(outputs)
        self._meter.publish.add(self._meter.clock() - began_s - self._meter.decided_s())
        return done


class UploadMeter:
    """Counts for one uploader, from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files = self._bytes = self._retries = self._failures = 0
        self._upload = Histogram()

    def uploaded(self, n_bytes: int, took_s: float) -> None:
        """A file is in the store."""
        self._upload.add(took_s)
        with self._lock:
            self._files += 1
            self._bytes += n_bytes

    def retried(self) -> None:
        """A try failed, and will be followed by another."""
        with self._lock:
            self._retries += 1

    def failed(self) -> None:
        """An output was given up."""
        with self._lock:
            self._failures += 1

    def measures(self, name: str, *, concurrency: int, peak_bytes: int) -> UploaderMeasures:
        """All that was counted so far."""
        with self._lock:
            counts = (self._files, self._bytes, self._retries, self._failures)
        return UploaderMeasures(name, *counts, self._upload.timings(), concurrency, peak_bytes)
