"""What a run's journals add up to, and which of them count how far."""

from __future__ import annotations

import pytest

from ray_sink.book import Book, read_history
from ray_sink.entries import folders_of, proposal_from, record_of
from ray_sink.errors import JournalCorruptError
from ray_sink.records import FileRecord, Proposal, TempFile
from tests.ledgers import Bench


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_proposal_comes_back_from_its_record() -> None:
    files = (TempFile("t/1", FileRecord("a/b", 3, "crc64nvme:0")), TempFile("t/2", FileRecord("a/c", 0, "crc64nvme:1")))
    for proposal in (Proposal("k", "t1", files, "d/1", ("note",)), Proposal("k", "t1", ())):
        assert proposal_from(record_of(proposal)) == proposal


def test_folders_of_a_path_are_the_nearest_first() -> None:
    assert list(folders_of("a/b/c")) == ["a/b", "a"]
    assert list(folders_of("a")) == []


def test_unknown_records_are_damage_unless_they_say_that_they_may_be_skipped() -> None:
    book = Book()
    book.apply({"is": "x-note"}, 0)
    for name in ("note", None, 7):
        with pytest.raises(JournalCorruptError, match="unknown kind"):
            book.apply({"is": name}, 0)


def test_an_empty_folder_is_an_empty_history(bench: Bench) -> None:
    history = read_history(bench.staging.fs, bench.staging.journal_dir)
    assert (history.parts, history.names, history.again, history.book.info) == ([], [], None, None)


def test_the_newest_life_says_how_much_of_the_older_ones_counts(bench: Bench) -> None:
    old = bench.open()
    bench.commit(old, "a", "b")
    late = bench.stage(old, "late")
    new = bench.open(epoch=2)
    old.decide([late])
    bench.commit(new, "c")
    history = read_history(bench.staging.fs, bench.staging.journal_dir)
    assert list(history.book.entries) == ["a", "b", "c"]
    assert history.names == ["000001.001", "000002.001"]
    assert (history.book.epoch, history.book.term) == (2, "000002.001")


def test_a_life_that_died_before_its_first_word_cuts_nobody_off(bench: Bench) -> None:
    old = bench.open()
    bench.commit(old, "a")
    bench.staging.fs.create(bench.staging.journal_dir / "000002.001")
    bench.commit(old, "b")
    assert list(bench.open(epoch=3).keys()) == ["a", "b"]


def test_lives_without_a_decision_neither_grow_nor_lose_anything(bench: Bench) -> None:
    bench.commit(bench.open(), "a")
    sizes = []
    for _ in range(6):
        term = bench.open().term
        sizes.append(len(bench.staging.fs.read(bench.staging.journal_dir / term)))
    assert len(set(sizes)) == 1
    assert list(bench.open().keys()) == ["a"]


def test_a_journal_that_is_missing_or_shorter_than_before_is_said_so(bench: Bench) -> None:
    old = bench.open()
    bench.commit(old, "a")
    bench.commit(old, "b")
    bench.open(epoch=2)
    bench.staging.fs.remove(bench.staging.journal_dir / old.term)
    with pytest.raises(JournalCorruptError, match=old.term):
        bench.open(epoch=3)
    bench.staging.fs.create(bench.staging.journal_dir / old.term)
    with pytest.raises(JournalCorruptError, match="were there before"):
        bench.open(epoch=3)
