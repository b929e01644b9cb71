"""What a run says of itself: while it runs, in one line and in its owner's note; at its end, as a report."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from ray_sink.errors import SinkError
from ray_sink.events import ReportMissed, RunEnded, emit
from ray_sink.manifest import run_path
from ray_sink.measures import RunMeasures
from ray_sink.records import RunInfo, RunStatus
from ray_sink.stores.base import SmallObjects

REPORT = "report.json"
_WINDOW_S = 10.0
_NOTED = 20
"""Failures and writers that an owner's note has room for."""
_PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, slots=True)
class Live:
    """How a run is doing now.

    Attributes:
        accepted: outputs that this driver's producers have handed over.
        staged: outputs that are staged and not uploaded.
        uploaded: outputs uploaded, in all lives of the run.
        bytes: what writers have written, as tensors, in bytes.
        outputs_per_s: outputs that got a receipt a second, lately.
        staged_bytes_per_s: bytes of tensors that were staged a second, lately.
        uploaded_bytes_per_s: bytes that were uploaded a second, lately.
        waited_s: seconds that producers have waited, by reason.
        failed: number of failures.
        failures: reason by key, of some of them.
        writers: of some writers name, outputs, bytes and batches.
    """

    accepted: int
    staged: int
    uploaded: int
    bytes: int
    outputs_per_s: float
    staged_bytes_per_s: float
    uploaded_bytes_per_s: float
    waited_s: dict[str, float]
    failed: int
    failures: dict[str, str]
    writers: list[dict[str, Any]]

    def to_json(self) -> str:
        """As an owner's note holds it."""
        return json.dumps(asdict(self), ensure_ascii=False)

    def line(self) -> str:
        """As people read it."""
        staged, uploaded = (rate / 1e9 for rate in (self.staged_bytes_per_s, self.uploaded_bytes_per_s))
        waited = ", ".join(f"{reason} {seconds:.1f} s" for reason, seconds in self.waited_s.items())
        failed = f"; {self.failed} FAILED" if self.failed else ""
        return (
            f"sink: {self.accepted} accepted, {self.staged} staged, {self.uploaded} uploaded;"
            f" {self.outputs_per_s:.1f}/s, {staged:.2f} GB/s staged, {uploaded:.2f} GB/s uploaded;"
            f" producers waited: {waited}{failed}"
        )


class Pace:
    """Turns measures into `Live`: rates are those of the last ten seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, RunMeasures]] = deque()

    def live(self, now: RunMeasures, at_s: float) -> Live:
        """How the run is doing.

        Args:
            now: what was measured.
            at_s: when, on a monotonic clock, seconds.
        """
        self._seen.append((at_s, now))
        while len(self._seen) > 2 and self._seen[1][0] <= at_s - _WINDOW_S:
            self._seen.popleft()
        since_s, before = self._seen[0]

        def rate(name: str) -> float:
            if at_s <= since_s:
                return 0.0
            # a coordinator that was started again knows less for a moment
            gained = max(0, getattr(now, name) - getattr(before, name))
            return round(float(gained) / (at_s - since_s), 1)

        return Live(
            accepted=now.producers.accepted,
            staged=now.staged,
            uploaded=now.uploaded,
            bytes=now.written_bytes,
            outputs_per_s=rate("outputs"),
            staged_bytes_per_s=rate("written_bytes"),
            uploaded_bytes_per_s=rate("uploaded_bytes"),
            waited_s={reason: round(seconds, 3) for reason, seconds in now.producers.waited_s.items()},
            failed=now.failed,
            failures=dict(now.failures),
            writers=[
                {"name": w.name, "outputs": w.outputs, "bytes": w.bytes, "batches": w.batches}
                for w in now.writers[-_NOTED:]
            ],
        )


@dataclass(frozen=True, slots=True)
class Report:
    """What one driver's part of a run came to. Whatever an earlier driver did is in the manifest alone.

    Attributes:
        run: the run.
        epoch: the driver's epoch.
        wall_s: from the start of the sink until its last output was committed, seconds.
        measures: what its processes counted.
        status: how it ended.
    """

    run: RunInfo
    epoch: int
    wall_s: float
    measures: RunMeasures
    status: RunStatus

    def document(self) -> dict[str, Any]:
        """As ``report.json`` holds it; times in seconds."""
        measured, wall_s = self.measures, max(self.wall_s, 1e-9)
        return {
            "version": 1,
            "run_id": self.run.run_id,
            "epoch": self.epoch,
            "wall_s": round(self.wall_s, 3),
            "outputs": measured.outputs,
            "bytes": measured.written_bytes,
            "uploaded_files": sum(uploader.files for uploader in measured.uploaders),
            "uploaded_bytes": measured.uploaded_bytes,
            "outputs_per_s": round(measured.outputs / wall_s, 3),
            "bytes_per_s": round(measured.written_bytes / wall_s, 1),
            "uploaded_bytes_per_s": round(measured.uploaded_bytes / wall_s, 1),
            "producers": {
                "count": measured.producer_count,
                "accepted": measured.producers.accepted,
                "bytes": measured.producers.bytes,
                "waited_s": {reason: round(s, 6) for reason, s in measured.producers.waited_s.items()},
            },
            "stages": {
                name: {
                    "count": timings.count,
                    "total_s": round(timings.total_s, 6),
                    **{f"p{percent}_s": timings.percentile_s(percent) for percent in _PERCENTILES},
                    "longest_s": timings.longest_s if timings.count else None,
                }
                for name, timings in measured.stages().items()
            },
            "retries": {"uploads": measured.upload_retries, "outputs": self._output_retries()},
            "failures": len(self.status.failures),
            "peak_bytes": {
                "object_store": measured.peak_in_flight_bytes,
                "staging": measured.peak_staged_bytes,
                "upload": max((uploader.peak_bytes for uploader in measured.uploaders), default=0),
            },
            "writers": [
                {"name": w.name, "batches": w.batches, "outputs": w.outputs, "bytes": w.bytes} for w in measured.writers
            ],
        }

    def _output_retries(self) -> int:
        return self.status.conflicts.retries + self.status.conflicts.retries_differing

    def to_json(self) -> bytes:
        """As ``report.json`` holds it."""
        return json.dumps(self.document(), indent=1, ensure_ascii=False).encode() + b"\n"

    def event(self) -> RunEnded:
        """The least of it, for the log."""
        measured = self.measures
        waited = measured.producers
        return RunEnded(
            self.run.run_id,
            self.epoch,
            measured.outputs,
            measured.written_bytes,
            round(self.wall_s, 3),
            round(waited.copy_s, 3),
            round(waited.device_s, 3),
            round(waited.credit_s, 3),
            round(waited.receipt_s, 3),
            measured.upload_retries,
            len(self.status.failures),
        )

    def keep(self, store: SmallObjects) -> None:
        """Write ``report.json``; where that fails, it is said in the log."""
        try:
            store.put_bytes(run_path(self.run.run_id, REPORT), self.to_json(), replace=True)
        except (SinkError, OSError) as error:
            emit(ReportMissed(self.run.run_id, str(error)))

    def rows(self) -> Iterator[tuple[str, str]]:
        """The same, as people read it: a name and its value."""
        said = self.document()
        yield "outputs", f"{said['outputs']}, {said['outputs_per_s']:.1f}/s in {said['wall_s']:.1f} s"
        yield "staged", f"{said['bytes'] / 1e9:.3f} GB, {said['bytes_per_s'] / 1e9:.3f} GB/s"
        yield "uploaded", f"{said['uploaded_bytes'] / 1e9:.3f} GB, {said['uploaded_bytes_per_s'] / 1e9:.3f} GB/s"
        yield "producers waited", ", ".join(f"{r} {s:.2f} s" for r, s in said["producers"]["waited_s"].items())
        for name, stage in said["stages"].items():
            if stage["count"]:
                shown = ", ".join(f"p{p} {stage[f'p{p}_s'] * 1e3:.3g} ms" for p in _PERCENTILES)
                yield name, f"{shown}, longest {stage['longest_s'] * 1e3:.3g} ms"
        yield "retries", ", ".join(f"{name} {number}" for name, number in said["retries"].items())
        yield "failures", str(said["failures"])
        yield "peak", ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in said["peak_bytes"].items())
