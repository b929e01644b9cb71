"""A ledger on a simulated disk, for the tests of what it decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ray_sink.config import OnConflict
from ray_sink.ledger import Ledger, LedgerOptions
from ray_sink.records import Decision, Proposal, RunInfo, UploadOutcome, UploadTask, Verification
from ray_sink.staging import Staging
from tests.model.disk import Disk
from tests.model.script import Process, Script

INFO = RunInfo("run", "s3://bucket/x", "/disk", "numpy_npy", "single", "abc")


class Bench:
    """One run's ledger and the writer in front of it."""

    def __init__(self, info: RunInfo = INFO) -> None:
        self.disk = Disk(Script())
        self.info = info
        self.staging = Staging(self.disk.view(Process("all")), self.disk.root, info.run_id)
        self.count = 0

    def open(
        self,
        epoch: int = 1,
        *,
        on_conflict: OnConflict = "error",
        foreign: Mapping[str, int] | None = None,
        uploaders: int = 1,
        keep_staged: bool = False,
    ) -> Ledger:
        options = LedgerOptions(
            on_conflict=on_conflict, foreign=foreign or {}, uploaders=uploaders, keep_staged=keep_staged
        )
        return Ledger.open(self.staging, self.info, epoch, options)

    def stage(
        self, ledger: Ledger, key: str, paths: Sequence[str] = (), *, data: bytes = b"data", source: str | None = None
    ) -> Proposal:
        """A staged attempt that has not been decided."""
        self.count += 1
        name = f"t{self.count}"
        temps = tuple(
            self.staging.stage(ledger.term, f"{name}.{number}", path, [data])
            for number, path in enumerate(paths or [f"{key}.npy"])
        )
        self.staging.sync_temps(ledger.term)
        return Proposal(key, name, temps, source)

    def publish(self, ledger: Ledger, decisions: Sequence[Decision]) -> None:
        winners = [decision.winner for decision in decisions if decision.winner is not None]
        assert self.staging.publish(winners) == []
        ledger.published([(winner.key, winner.attempt) for winner in winners])

    def commit(self, ledger: Ledger, *keys: str) -> None:
        self.publish(ledger, ledger.decide([self.stage(ledger, key) for key in keys]))


def taken(ledger: Ledger, uploader: int = 0, holding: frozenset[str] = frozenset()) -> list[UploadTask]:
    return ledger.take_uploads(uploader, holding=holding, max_outputs=100, max_bytes=2**30)


def verified(tasks: Sequence[UploadTask]) -> list[UploadOutcome]:
    return [UploadOutcome(task.key, task.attempt, Verification.VERIFIED) for task in tasks]
