"""What a run measures of itself: counted where it happens, in bounded memory, and sent along with calls made anyway.

Each producer, writer and uploader counts from its own beginning and says all of it every time, so that a message may be
lost, come twice or come late. Nothing here decides anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

BOUNDS_S: Final[tuple[float, ...]] = tuple(round(10.0 ** (step / 5), 6) for step in range(-25, 16))
"""Upper bounds of a histogram's buckets, seconds: five a decade, from 10 µs to 1000 s; above is one more."""


@dataclass(frozen=True, slots=True)
class Timings:
    """How long something took, each time.

    Attributes:
        counts: how often, by bucket: `BOUNDS_S`, and one more.
        total_s: all of it together, seconds.
        longest_s: the longest, seconds.
    """

    counts: tuple[int, ...] = (0,) * (len(BOUNDS_S) + 1)
    total_s: float = 0.0
    longest_s: float = 0.0

    @property
    def count(self) -> int:
        """How often."""
        return sum(self.counts)

    def __add__(self, other: Timings) -> Timings:
        """Both together."""
        counts = tuple(mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True))
        return Timings(counts, self.total_s + other.total_s, max(self.longest_s, other.longest_s))

    def percentile_s(self, percent: float) -> float | None:
        """The time that `percent` of all stayed below, seconds, to a fifth of a decade; None where there was none."""
        wanted, below = self.count * percent / 100, 0
        for bound, count in zip((*BOUNDS_S, self.longest_s), self.counts, strict=True):
            below += count
            if count and below >= wanted:
                return min(bound, self.longest_s)
        return None


@dataclass(frozen=True, slots=True)
class ProducerMeasures:
    """What a handle has counted.

    Attributes:
        name: whose it is.
        accepted: outputs for which a ticket was issued.
        bytes: their size as tensors, in bytes.
        copy_s: time that callers spent until their tensors were copied and handed over, seconds.
        device_s: time that they waited because copies of outputs left no room on a GPU, seconds.
        credit_s: time that they waited for room in the object store or among the outputs under way, seconds.
        receipt_s: time that they waited for receipts, in ``Ticket.result``, ``flush`` and ``close``, seconds.
    """

    name: str = ""
    accepted: int = 0
    bytes: int = 0
    copy_s: float = 0.0
    device_s: float = 0.0
    credit_s: float = 0.0
    receipt_s: float = 0.0

    @property
    def waited_s(self) -> dict[str, float]:
        """Seconds by reason."""
        return {"copy": self.copy_s, "device": self.device_s, "credit": self.credit_s, "receipt": self.receipt_s}

    def __add__(self, other: ProducerMeasures) -> ProducerMeasures:
        """Both together, without a name."""
        return ProducerMeasures(
            "",
            self.accepted + other.accepted,
            self.bytes + other.bytes,
            self.copy_s + other.copy_s,
            self.device_s + other.device_s,
            self.credit_s + other.credit_s,
            self.receipt_s + other.receipt_s,
        )


@dataclass(frozen=True, slots=True)
class WriterMeasures:
    """What a writer has counted.

    Attributes:
        name: whose it is: host and process.
        batches: batches written.
        outputs: outputs that got a receipt.
        bytes: size of the outputs as tensors, in bytes.
        encode: value to bytes, of each file.
        stage: bytes to a file in the staging folder, synced, of each file.
        decide: asking the ledger, of each batch.
        publish: final names, synced, and the ledger told, of each batch.
    """

    name: str = ""
    batches: int = 0
    outputs: int = 0
    bytes: int = 0
    encode: Timings = field(default_factory=Timings)
    stage: Timings = field(default_factory=Timings)
    decide: Timings = field(default_factory=Timings)
    publish: Timings = field(default_factory=Timings)


@dataclass(frozen=True, slots=True)
class UploaderMeasures:
    """What an uploader has counted.

    Attributes:
        name: whose it is.
        files: files that are in the store.
        bytes: their size, in bytes.
        retries: tries that failed and were followed by another.
        failures: outputs given up.
        upload: from the first try to the store's answer, of each file.
        concurrency: objects in flight that are allowed now.
        peak_bytes: most file contents that were in memory at once, in bytes.
    """

    name: str = ""
    files: int = 0
    bytes: int = 0
    retries: int = 0
    failures: int = 0
    upload: Timings = field(default_factory=Timings)
    concurrency: int = 0
    peak_bytes: int = 0


@dataclass(frozen=True, slots=True)
class RunMeasures:
    """All that a run's processes have said, and how far its outputs have come.

    Attributes:
        producers: of all handles together.
        producer_count: how many handles.
        writers: each writer that there was.
        uploaders: each uploader.
        decided: outputs decided, in all lives of the run.
        staged: of them, published and not uploaded.
        uploaded: of them, uploaded.
        staged_bytes: bytes of decided outputs that are not uploaded.
        failed: outputs that failed.
        failures: reason by key, of some of them.
        in_flight_bytes: room in the object stores that producers hold, in bytes.
        peak_in_flight_bytes: the most that they held.
        peak_staged_bytes: the most of `staged_bytes`.
    """

    producers: ProducerMeasures = field(default_factory=ProducerMeasures)
    producer_count: int = 0
    writers: tuple[WriterMeasures, ...] = ()
    uploaders: tuple[UploaderMeasures, ...] = ()
    decided: int = 0
    staged: int = 0
    uploaded: int = 0
    staged_bytes: int = 0
    failed: int = 0
    failures: Mapping[str, str] = field(default_factory=dict)
    in_flight_bytes: int = 0
    peak_in_flight_bytes: int = 0
    peak_staged_bytes: int = 0

    @property
    def outputs(self) -> int:
        """Outputs that writers have brought to a receipt."""
        return sum(writer.outputs for writer in self.writers)

    @property
    def written_bytes(self) -> int:
        """Their size as tensors, in bytes."""
        return sum(writer.bytes for writer in self.writers)

    @property
    def uploaded_bytes(self) -> int:
        """Bytes that uploaders have brought to the store."""
        return sum(uploader.bytes for uploader in self.uploaders)

    @property
    def upload_retries(self) -> int:
        """Tries to upload that failed and were followed by another."""
        return sum(uploader.retries for uploader in self.uploaders)

    def stages(self) -> dict[str, Timings]:
        """How long each stage took, by its name, in the order of the way of an output."""
        found = {
            name: sum((getattr(writer, name) for writer in self.writers), Timings())
            for name in ("encode", "stage", "decide", "publish")
        }
        return {**found, "upload": sum((uploader.upload for uploader in self.uploaders), Timings())}


class Gathered:
    """What has come in so far: of each process the most it has said. On one thread."""

    def __init__(self) -> None:
        self._producers: dict[str, ProducerMeasures] = {}
        self._writers: dict[str, WriterMeasures] = {}
        self._uploaders: dict[str, UploaderMeasures] = {}
        self._peak_in_flight_bytes = self._peak_staged_bytes = 0

    def producer(self, said: ProducerMeasures) -> None:
        """A handle's; it may have been overtaken by a later one."""
        known = self._producers.get(said.name)
        if known is None or (said.accepted, said.receipt_s) >= (known.accepted, known.receipt_s):
            self._producers[said.name] = said

    def writer(self, said: WriterMeasures) -> None:
        """A writer's."""
        known = self._writers.get(said.name)
        if known is None or said.batches >= known.batches:
            self._writers[said.name] = said

    def uploader(self, said: UploaderMeasures) -> None:
        """An uploader's."""
        known = self._uploaders.get(said.name)
        if known is None or (said.files, said.retries) >= (known.files, known.retries):
            self._uploaders[said.name] = said

    def holds(self, *, in_flight_bytes: int = 0, staged_bytes: int = 0) -> None:
        """What is held now, for the peaks."""
        self._peak_in_flight_bytes = max(self._peak_in_flight_bytes, in_flight_bytes)
        self._peak_staged_bytes = max(self._peak_staged_bytes, staged_bytes)

    def run(self, counts: RunMeasures) -> RunMeasures:
        """All of it; what the ledger counts is taken from `counts`."""
        return replace(
            counts,
            producers=sum(self._producers.values(), ProducerMeasures()),
            producer_count=len(self._producers),
            writers=tuple(self._writers.values()),
            uploaders=tuple(self._uploaders.values()),
            peak_in_flight_bytes=max(self._peak_in_flight_bytes, counts.in_flight_bytes),
            peak_staged_bytes=max(self._peak_staged_bytes, counts.staged_bytes),
        )
