"""Taking away what dead runs left in a staging folder and at its destination. A live owner's is never touched."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ray_sink.catalogue import read_book
from ray_sink.filesystem import PosixFilesystem, temp_for
from ray_sink.heart import Heart
from ray_sink.keys import RESERVED
from ray_sink.ledger import Ledger, LedgerOptions
from ray_sink.probes import is_probe
from ray_sink.records import MultipartUpload, RunInfo
from ray_sink.recovery import claimed
from ray_sink.staging import Staging
from ray_sink.standing import tally_of
from ray_sink.stores.base import Store


@dataclass(frozen=True, slots=True)
class Leavings:
    """What a run left.

    Attributes:
        run_id: the run.
        temps: temps of attempts that nobody will finish, below the run's folder.
        unpublished: temps of decided outputs: those are published, never removed.
        folders: folders of temps, of terms that have ended.
        probes: what somebody who only tried the folder out left behind, below ``_ray_sink/``.
        multiparts: uploads in parts that the journal knows of and that were not ended.
        bytes: size of `temps` and `probes` together.
    """

    run_id: str
    temps: tuple[str, ...]
    unpublished: tuple[str, ...]
    folders: tuple[str, ...]
    probes: tuple[str, ...]
    multiparts: tuple[MultipartUpload, ...]
    bytes: int

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.temps or self.unpublished or self.folders or self.probes or self.multiparts)


def leavings(root: Path, run_id: str) -> Leavings:
    """What there is to take away. Looks, and touches nothing; a live owner's temps are among it."""
    fs = PosixFilesystem()
    staging = Staging(fs, root, run_id)
    temps = staging.temps()
    # a decided temp keeps its name in whichever folder a fence has moved it to
    entries = read_book(fs, root, run_id).entries.pending() if temps else ()
    decided = {temp.temp for entry in entries for temp in entry.proposal.files}
    known = {name: "/".join(name.split("/")[-2:]) in decided for name in temps}
    unpublished = tuple(name for name in temps if known[name])
    lost = tuple(name for name in temps if not known[name])
    ours = root / RESERVED
    probes = tuple(name for name in fs.list(ours) if is_probe(name)) + tuple(
        f"_owner/{name}" for name in fs.list(ours / "_owner") if temp_for(name) is not None
    )
    sizes = [fs.size(staging.run_dir / name) or 0 for name in lost] + [fs.size(ours / name) or 0 for name in probes]
    return Leavings(
        run_id=run_id,
        temps=lost,
        unpublished=unpublished,
        folders=tuple(staging.terms.folders()),
        probes=probes,
        multiparts=tuple(tally_of(root, run_id).multiparts.values()),
        bytes=sum(sizes),
    )


def sweep(root: Path, info: RunInfo, store: Store, *, takeover_s: float) -> None:
    """Take away what a dead run left: its temps, probes, and uploads in parts that were begun.

    Claims the run's roots as its own driver would, begins a new life of its ledger, which fences the older ones and
    publishes what they decided, and leaves in good order. Staged outputs stay. May be repeated.

    Args:
        root: the staging folder.
        info: the run, from `ray_sink.recovery.journaled_run`.
        store: its destination, or its staging folder where it has none.
        takeover_s: how long a dead owner's counter must stand still, in seconds.

    Raises:
        RunOwnedError: a live driver owns the run's roots; nothing was changed.
        StoreError: the destination cannot be reached, or an upload in parts cannot be aborted.
        OSError: something cannot be removed.
    """
    owned = claimed(root, info, store, takeover_s)
    try:
        store.sweep()
        staging = Staging(PosixFilesystem(), root, info.run_id)
        ledger = Ledger.open(staging, info, owned.epoch, LedgerOptions(keep_staged=True))
        heart = Heart(owned, takeover_s, ledger.fence)
        try:
            for begun in ledger.abandoned_multiparts:
                store.abort(begun)
                ledger.multipart_aborted(begun)
            ledger.close()
            staging.sweep(ledger.term, finished=True)
        finally:
            heart.stop()
            ledger.close()
    finally:
        owned.release()
