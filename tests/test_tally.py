from __future__ import annotations

import random
from dataclasses import asdict
from typing import Any

import pytest

from ray_sink.book import Book, open_record, read_history, read_into
from ray_sink.config import MiB
from ray_sink.entries import record_of
from ray_sink.errors import JournalCorruptError
from ray_sink.records import ConflictCounts, FileRecord, Proposal, TempFile, Verification
from ray_sink.tally import Tally
from tests.ledgers import INFO, Bench, taken, verified


def test_a_tally_counts_what_a_book_holds_over_several_lives() -> None:
    bench, choose = Bench(), random.Random(7)
    for epoch in range(1, 5):
        ledger = bench.open(epoch)
        for batch in range(4):
            bench.commit(ledger, *(f"k{epoch}-{batch}-{n}" for n in range(choose.randint(1, 3))))
        if tasks := ledger.take_uploads(0, max_outputs=choose.randint(1, 9), max_bytes=MiB):
            ledger.uploaded(verified(tasks))
        ledger.close()
    book = read_history(bench.staging.fs, bench.staging.journal_dir).book
    tally = read_into(Tally(), bench.staging.fs, bench.staging.journal_dir).book
    assert tally.decided == len(book.entries) > 0
    assert tally.uploaded == book.entries.uploaded > 0
    sizes = [sum(temp.file.bytes for temp in book.entries[n].proposal.files) for n in range(len(book.entries))]
    assert tally.decided_bytes == sum(sizes)
    pending = sum(sum(temp.file.bytes for temp in entry.proposal.files) for entry in book.entries.pending())
    assert tally.decided_bytes - tally.uploaded_bytes == pending
    assert (tally.info, tally.epoch, tally.unfinished()) == (book.info, book.epoch, book.unfinished())


def test_keys_that_are_looked_for_are_found_with_what_their_upload_proved() -> None:
    bench = Bench()
    ledger = bench.open()
    bench.commit(ledger, "a/1", "b/1", "a/2")
    (task,) = [task for task in taken(ledger) if task.key == "a/2"]
    ledger.uploaded(verified([task]))
    wanted = Tally(lambda key: key.startswith("a/"))
    found = read_into(wanted, bench.staging.fs, bench.staging.journal_dir).book.found
    assert [(one.proposal.key, one.uploaded) for one in found] == [("a/1", None), ("a/2", Verification.VERIFIED)]


def _decided(key: str) -> dict[str, Any]:
    proposal = Proposal(key, "t", (TempFile("000001.001/t.0", FileRecord(f"{key}.npy", 10, "c")),))
    return {"is": "decided", "batch": [record_of(proposal)], "conflicts": asdict(ConflictCounts())}


@pytest.mark.parametrize(("seq", "indices"), [(2, [0]), (1, [1])])
def test_an_upload_of_what_was_not_decided_is_damage(seq: int, indices: list[int]) -> None:
    tally, book = Tally(), Book()
    upload = {
        "is": "uploaded",
        "batch": [["000001.001", seq, indices, "verified"]],
        "uploader": 0,
        "conflicts": asdict(ConflictCounts()),
    }
    for one in (tally, book):
        one.apply({"is": "open", "run": asdict(INFO), "epoch": 1, "term": "000001.001", "parts": [], "again": None}, 0)
        one.apply(_decided("a"), 1)
        with pytest.raises(JournalCorruptError):
            one.apply(upload, 2)


def test_a_record_that_the_next_file_repeats_counts_once() -> None:
    bench = Bench()
    ledger = bench.open()
    bench.commit(ledger, "a", "b")
    ledger.close()
    history = read_history(bench.staging.fs, bench.staging.journal_dir)
    tally = read_into(Tally(), bench.staging.fs, bench.staging.journal_dir).book
    again = {"epoch": 1, "term": ledger.term, "seq": 1, "record": _decided("a")}
    tally.apply({**open_record(INFO, 2, "000002.001", history), "again": again}, 0)
    assert tally.decided == 2
