"""A ledger whose journal is at the destination: pieces that are put together, lost, put twice; lives that follow."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_sink.book import read_into
from ray_sink.checksum import checksum_of
from ray_sink.errors import (
    DuplicateKeyError,
    JournalCorruptError,
    ObjectExistsError,
    RunFencedError,
    RunSealedError,
    StoreUnavailableError,
)
from ray_sink.filesystem import NewFile
from ray_sink.journal import Journal, read_journal
from ray_sink.journal_objects import JournalObjects, JournalStaging
from ray_sink.keys import RESERVED
from ray_sink.ledger import Ledger, LedgerOptions
from ray_sink.records import FileRecord, Proposal, RunInfo, State, TempFile, Verification
from ray_sink.stores.folder import FolderStore
from ray_sink.tally import Tally

INFO = RunInfo("run", "s3://bucket/x", "/nvme", "numpy_npy", "single")
PREFIX = "_ray_sink/run/journal"


class Faulty(FolderStore):
    """A folder as a store, some of whose requests fail."""

    def __init__(self, root: Path) -> None:
        root.mkdir(exist_ok=True)
        super().__init__(str(root), root)
        self.deletes = True
        self.away: set[str] = set()

    def put_bytes(self, path: str, data: bytes, *, replace: bool) -> None:
        if "put" in self.away:
            raise StoreUnavailableError("503", path=path)
        super().put_bytes(path, data, replace=replace)

    def delete(self, path: str) -> None:
        if self.deletes:
            super().delete(path)

    @property
    def pieces(self) -> list[str]:
        return sorted(info.path.removeprefix(f"{PREFIX}/") for info in self.list(f"{PREFIX}/"))


@pytest.fixture
def store(tmp_path: Path) -> Faulty:
    return Faulty(tmp_path / "destination")


@pytest.fixture
def fs(store: Faulty) -> JournalObjects:
    return JournalObjects(store, "run")


FILE = Path("/_ray_sink/run/journal/000001.001")


def grown(fs: JournalObjects, syncs: int) -> NewFile:
    file = fs.create(FILE)
    for number in range(syncs):
        file.write(f"{number};".encode())
        file.sync()
    return file


def text(syncs: int) -> bytes:
    return "".join(f"{number};" for number in range(syncs)).encode()


@pytest.mark.parametrize("deletes", [True, False], ids=["deleted", "not deleted"])
@pytest.mark.parametrize("syncs", [1, 63, 64, 65, 200])
def test_what_was_synced_is_read_back_from_few_pieces(
    fs: JournalObjects, store: Faulty, syncs: int, deletes: bool
) -> None:
    store.deletes = deletes
    file = grown(fs, syncs)
    file.write(b"not synced")
    assert fs.read(FILE) == text(syncs)
    file.close()
    assert fs.read(FILE) == text(syncs)
    assert fs.list(FILE.parent) == ["000001.001"]
    if deletes:
        assert len(store.pieces) == -(-syncs // 64)


def test_nothing_is_appended_to_another_ones_journal(fs: JournalObjects, store: Faulty) -> None:
    grown(fs, 1)
    with pytest.raises(FileExistsError):
        fs.create(FILE)
    with pytest.raises(FileNotFoundError):
        fs.read(FILE.with_name("000001.002"))


def test_a_piece_that_is_there_already_is_ours_if_its_bytes_are(fs: JournalObjects, store: Faulty) -> None:
    file = grown(fs, 1)
    store.put_bytes(f"{PREFIX}/000001.001/{2:015d}-{5:015d}", b"ein", replace=False)
    file.write(b"ein")
    file.sync()  # the reply was lost, and somebody below us asked again
    store.put_bytes(f"{PREFIX}/000001.001/{5:015d}-{8:015d}", b"two", replace=False)
    file.write(b"one")
    with pytest.raises(OSError, match="journal at") as failed:
        file.sync()
    assert isinstance(failed.value.__cause__, ObjectExistsError)


def test_a_journal_without_one_of_its_pieces_is_damaged(fs: JournalObjects, store: Faulty) -> None:
    grown(fs, 3)
    store.delete(f"{PREFIX}/{store.pieces[1]}")
    with pytest.raises(JournalCorruptError, match="no piece that begins at byte 2"):
        fs.read(FILE)


def test_a_store_that_is_away_is_an_error_of_the_disk_and_what_was_there_stays(
    fs: JournalObjects, store: Faulty
) -> None:
    journal = Journal(fs, FILE)
    journal.append({"is": "x-one"})
    store.away.add("put")
    with pytest.raises(OSError, match="503"):
        journal.append({"is": "x-two"})
    store.away.clear()
    journal.close()
    assert [record.payload for record in read_journal(fs.read(FILE), name="j")] == [{"is": "x-one"}]


# -- the ledger over it -----------------------------------------------------------------------------------------------


def opened(store: Faulty, epoch: int = 1) -> Ledger:
    return Ledger.open(JournalStaging(JournalObjects(store, "run"), "run"), INFO, epoch, LedgerOptions())


def proposed(ledger: Ledger, key: str, attempt: str, *, source: str | None = None, data: bytes = b"x") -> Proposal:
    file = FileRecord(f"{key}.npy", len(data), checksum_of([data]))
    return Proposal(key, attempt, (TempFile(f"{ledger.term}/{attempt}", file),), source)


def committed(ledger: Ledger, *proposals: Proposal) -> list[object]:
    decisions = ledger.commit([(proposal, Verification.VERIFIED) for proposal in proposals])
    return [decision.error or decision.receipt for decision in decisions]


def test_what_is_committed_has_its_receipt_in_every_later_life(store: Faulty) -> None:
    first = opened(store)
    receipts = committed(first, proposed(first, "a", "t1"), proposed(first, "b", "t2"))
    assert [(r.state, r.attempt) for r in receipts] == [(State.UPLOADED, "t1"), (State.UPLOADED, "t2")]  # type: ignore[attr-defined]
    second = opened(store)
    third = opened(store, epoch=2)
    for ledger in (first, second, third):
        assert list(ledger.receipts()) == receipts
        assert (ledger.status().uploaded, ledger.staged_bytes, ledger.has_unfinished_uploads()) == (2, 0, False)
    tally = read_into(Tally(), JournalObjects(store, "run"), FILE.parent).book
    assert (tally.decided, tally.uploaded, tally.uploaded_bytes) == (2, 2, 2)


def test_the_first_to_be_committed_wins_and_everyone_gets_its_receipt(store: Faulty) -> None:
    ledger = opened(store)
    one, two = proposed(ledger, "a", "t1"), proposed(ledger, "a", "t2", data=b"other")
    # both are foreseen to win: nothing is decided before it is at the destination
    for proposal in (one, two):
        assert ledger.foresee([proposal])[0].winner == proposal
    assert committed(ledger, one) == committed(ledger, two) == [ledger.receipt("a")]
    assert ledger.foresee([two])[0].receipt == ledger.receipt("a")
    assert ledger.status().conflicts.retries_differing == 1


def test_a_commit_may_be_repeated(store: Faulty) -> None:
    ledger = opened(store)
    proposal = proposed(ledger, "a", "t1")
    assert committed(ledger, proposal) == committed(ledger, proposal)
    assert ledger.status().decided == 1


def test_what_must_not_be_is_foreseen_and_refused(store: Faulty) -> None:
    ledger = opened(store)
    committed(ledger, proposed(ledger, "a", "t1", source="x/1"))
    other = proposed(ledger, "a", "t2", source="x/2")
    assert isinstance(ledger.foresee([other])[0].error, DuplicateKeyError)
    assert isinstance(committed(ledger, other)[0], DuplicateKeyError)
    ledger.begin_sealing()
    assert isinstance(ledger.foresee([proposed(ledger, "new", "t3")])[0].error, RunSealedError)


def test_an_older_life_seals_nothing_and_what_it_still_writes_counts_for_nobody(store: Faulty) -> None:
    older = opened(store)
    newer = opened(store, epoch=2)
    committed(older, proposed(older, "late", "t1"))
    with pytest.raises(RunFencedError):
        older.begin_sealing()
    assert newer.receipt("late") is None
    assert opened(store, epoch=3).receipt("late") is None
    # what was encoded for the older one is encoded anew
    stale = proposed(older, "a", "t2")
    assert isinstance(newer.foresee([stale])[0].error, RunFencedError)


def test_the_journal_of_a_staging_folder_is_none_of_these(tmp_path: Path) -> None:
    """Seen as a store, a staging folder has files where a destination's journals have their pieces."""
    folder = tmp_path / RESERVED / "run" / "journal"
    folder.mkdir(parents=True)
    (folder / "000001.001").write_bytes(b"a journal")
    assert JournalObjects(FolderStore(str(tmp_path), tmp_path), "run").list(Path()) == []
