"""How a run is doing, seen from outside: its journal, its owner's counter, its seal. Looks, and touches nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from ray_sink.book import read_into
from ray_sink.filesystem import PosixFilesystem
from ray_sink.journal_objects import JournalObjects
from ray_sink.manifest import Seal
from ray_sink.ownership import Sighting, beat_path, owner_of
from ray_sink.records import ConflictCounts, RowCounts
from ray_sink.staging import Staging
from ray_sink.stores.base import SmallObjects
from ray_sink.tally import Tally

_POLL_S = 0.05
_RECENT_S = 20.0
"""An owner beats eight times in ``takeover_s``, by default every 7.5 s."""


class Life(StrEnum):
    """What is known of an owner."""

    ALIVE = "alive"
    """Its counter moved while it was watched."""
    RECENT = "recent"
    """Its counter was moved some seconds ago, by the file's date."""
    SILENT = "silent"
    """No sign of life for longer, or none that could be seen: it may be dead."""
    LEFT = "left"
    """It left in good order."""


class Stand(StrEnum):
    """The one word for a run."""

    SEALED = "sealed"
    """Complete: ``_SUCCESS`` is at the destination."""
    PARTIAL = "partial"
    """Sealed without the outputs that failed."""
    RUNNING = "running"
    """Its owner is alive."""
    COMMITTED = "committed"
    """All is uploaded and the seal was begun; whether it is there only the destination can tell."""
    STOPPED = "stopped"
    """Nobody works on it, and it is not complete."""


@dataclass(frozen=True, slots=True)
class OwnerSeen:
    """Who owns a run.

    Attributes:
        host: where its driver runs.
        pid: the driver's process id there.
        epoch: its epoch.
        life: what is known of it.
        silent_s: age of its last sign of life in seconds, by the file's date; None where there is no date.
    """

    host: str
    pid: int
    epoch: int
    life: Life
    silent_s: float | None


@dataclass(frozen=True, slots=True)
class Standing:
    """How a run is doing.

    Attributes:
        run_id: the run.
        dest: its destination; None where staging is.
        staging: its staging folder; None where it is not known.
        state: the one word for it.
        outputs: keys decided.
        bytes: their size, in bytes.
        staged: of them, outputs that wait for their upload; where staging is the destination, all.
        staged_bytes: their size, in bytes.
        uploaded: outputs uploaded.
        uploaded_bytes: their size, in bytes.
        kept: keys under which another run's output stayed.
        failures: reason by key.
        unfinished: why it cannot be sealed yet, besides outputs under way.
        conflicts: how often the sink had to choose.
        rows: rows of datasets.
        owner: who claimed it last.
        live: what its owner said last, while it runs; see `ray_sink.measures.Live`.
    """

    run_id: str
    dest: str | None
    staging: str | None
    state: Stand
    outputs: int
    bytes: int
    staged: int = 0
    staged_bytes: int = 0
    uploaded: int = 0
    uploaded_bytes: int = 0
    kept: int = 0
    failures: Mapping[str, str] = field(default_factory=dict)
    unfinished: tuple[str, ...] = ()
    conflicts: ConflictCounts = field(default_factory=ConflictCounts)
    rows: RowCounts = field(default_factory=RowCounts)
    owner: OwnerSeen | None = None
    live: Mapping[str, Any] | None = None

    @property
    def is_well(self) -> bool:
        """Nothing failed, and what is not complete is being worked on."""
        return not self.failures and self.state is not Stand.STOPPED


class Onlooker:
    """Looks at the owner of a root: once when it is made, and again in `seen`.

    Args:
        store: the root.
        clock: monotonic, seconds.
        wall: seconds since 1970. It is shown and decides nothing that matters.
        folder: the root as a folder, where it is one: its files have dates.

    Attributes:
        sighting: the owner as it was seen first.
        note: what it said last.
    """

    def __init__(
        self,
        store: SmallObjects,
        *,
        clock: Callable[[], float],
        wall: Callable[[], float],
        folder: Path | None = None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._wall = wall
        self._folder = folder
        self._since_s = clock()
        self.sighting = owner_of(store)
        self.note: Mapping[str, Any] | None = self.sighting.note if self.sighting is not None else None

    def seen(self, watch_s: float, sleep: Callable[[float], None]) -> OwnerSeen | None:
        """Who owns the root; a counter is watched until it moves, for at most `watch_s` since this was made."""
        first = self.sighting
        if first is None:
            return None
        life = Life.LEFT if first.released else Life.SILENT
        while life is Life.SILENT:
            if self._moved(first):
                life = Life.ALIVE
            elif self._clock() - self._since_s >= watch_s:
                break
            else:
                sleep(_POLL_S)
        silent_s = self._silent_s(first)
        if life is Life.SILENT and silent_s is not None and silent_s < _RECENT_S:
            life = Life.RECENT
        owner = first.owner
        return OwnerSeen(owner.host, owner.pid, first.epoch, life, silent_s)

    def _moved(self, first: Sighting) -> bool:
        now = owner_of(self._store)
        if now is None or (now.epoch, now.beat) == (first.epoch, first.beat):
            return False
        self.note = now.note
        return True

    def _silent_s(self, sighting: Sighting) -> float | None:
        if self._folder is None:
            return None
        try:
            moved = (self._folder / beat_path(sighting.epoch)).stat().st_mtime
        except OSError:
            return None
        return round(max(0.0, self._wall() - moved), 1)


def tally_of(root: Path, run_id: str) -> Tally:
    """What a run's journal counts, while somebody may be writing it."""
    fs = PosixFilesystem()
    return read_into(Tally(), fs, Staging(fs, root, run_id).journal_dir, live=True).book


def tally_at(store: SmallObjects, run_id: str) -> Tally | None:
    """What a run's journal at its destination counts; None where it has none there."""
    journals = JournalObjects(store, run_id)
    found = read_into(Tally(), journals, Path(run_id), live=True)
    return found.book if found.names else None


def staged_standing(
    root: Path | None,
    run_id: str,
    tally: Tally,
    seal: Seal | None,
    owner: OwnerSeen | None,
    live: Mapping[str, Any] | None,
) -> Standing:
    """How a run that has a journal is doing.

    Args:
        root: the staging folder; None where each node has its own.
        run_id: the run.
        tally: from `tally_of` or `tally_at`.
        seal: its seal, as far as somebody looked for it.
        owner: its owner.
        live: what the owner said last.
    """
    info = tally.info
    told = info.staging if info is not None else None
    running = owner is not None and owner.life in (Life.ALIVE, Life.RECENT)
    failures = tally.uncommitted_failures()
    if root is not None:
        failures |= _set_aside(root, run_id, tally.epoch)
    if live is not None and running:
        failures |= live.get("failures", {})
    if seal is not None:
        state = Stand.PARTIAL if seal.failures else Stand.SEALED
    elif running:
        state = Stand.RUNNING
    else:
        state = Stand.COMMITTED if tally.sealing and not failures else Stand.STOPPED
    return Standing(
        run_id=run_id,
        dest=info.dest if info is not None else None,
        staging=str(root) if root is not None else told,
        state=state,
        outputs=tally.decided,
        bytes=tally.decided_bytes,
        staged=tally.decided - tally.uploaded,
        staged_bytes=tally.decided_bytes - tally.uploaded_bytes,
        uploaded=tally.uploaded,
        uploaded_bytes=tally.uploaded_bytes,
        kept=len(tally.kept),
        failures=failures,
        unfinished=tuple(tally.unfinished()) if info is not None else ("its journal has no record yet",),
        conflicts=tally.conflicts,
        rows=tally.rows(),
        owner=owner,
        live=live if running else None,
    )


def _set_aside(root: Path, run_id: str, epoch: int) -> dict[str, str]:
    """What the present epoch went on without: uploads that failed are in no journal."""
    fs = PosixFilesystem()
    try:
        note = fs.read(Staging(fs, root, run_id).run_dir / "failed" / f"{epoch:06d}.json")
        found: dict[str, str] = json.loads(note)
    except (FileNotFoundError, ValueError):
        return {}
    return found


def sealed_standing(seal: Seal, owner: OwnerSeen | None) -> Standing:
    """How a run stands whose seal is at its destination."""
    return Standing(
        run_id=seal.run.run_id,
        dest=seal.run.dest,
        staging=seal.run.staging,
        state=Stand.PARTIAL if seal.failures else Stand.SEALED,
        outputs=seal.outputs,
        bytes=seal.total_bytes,
        uploaded=seal.outputs if seal.run.dest is not None else 0,
        uploaded_bytes=seal.total_bytes if seal.run.dest is not None else 0,
        failures=seal.failures,
        conflicts=seal.conflicts,
        rows=seal.rows,
        owner=owner,
    )


def claimed_standing(run_id: str, dest: str, owner: OwnerSeen, live: Mapping[str, Any] | None) -> Standing:
    """How a run stands of which the destination has a claim and no seal: what its owner said last, if anything."""
    running = owner.life in (Life.ALIVE, Life.RECENT)
    said = live or {}
    uploaded, staged = int(said.get("uploaded", 0)), int(said.get("staged", 0))
    return Standing(
        run_id=run_id,
        dest=dest,
        staging=None,
        state=Stand.RUNNING if running else Stand.STOPPED,
        outputs=staged + uploaded,
        bytes=int(said.get("bytes", 0)),
        staged=staged,
        uploaded=uploaded,
        failures=said.get("failures", {}),
        unfinished=() if running and live else ("only its journal, in its staging folder, can tell what is left",),
        owner=owner,
        live=live if running else None,
    )
