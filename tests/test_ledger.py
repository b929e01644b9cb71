"""The ledger: what it knows after each life, and what it lets nobody do twice."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ray_sink.book import DatasetState
from ray_sink.errors import RunFencedError, StagingError, StoreError
from ray_sink.keys import hash_keys
from ray_sink.records import MultipartUpload, RowCounts, State, UploadOutcome, Verification
from tests.ledgers import INFO, Bench, taken, verified


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_what_is_decided_is_published_by_the_next_life(bench: Bench) -> None:
    old = bench.open()
    winner = old.decide([bench.stage(old, "a", ["a_x.npy", "d/a_y.npy"])])[0].winner
    assert winner is not None
    new = bench.open()
    receipt = new.receipt("a")
    assert receipt is not None
    assert (receipt.attempt, receipt.state) == (winner.attempt, State.STAGED)
    assert bench.disk.finals() == {"a_x.npy": b"data", "d/a_y.npy": b"data"}
    assert bench.staging.temps() == []


def test_what_a_fenced_life_decides_counts_for_nobody(bench: Bench) -> None:
    old = bench.open()
    late = bench.stage(old, "a")
    new = bench.open(epoch=2)
    decision = old.decide([late])[0]
    assert decision.winner is not None
    assert bench.staging.publish([decision.winner]) == ["a"]
    with pytest.raises(RunFencedError):
        old.publish_rest()
    assert old.receipt("a") is None
    assert list(new.keys()) == []
    assert list(bench.open(epoch=3).keys()) == []


def test_a_fenced_writer_does_not_take_the_next_lifes_file_for_its_own(bench: Bench) -> None:
    old = bench.open()
    late = bench.stage(old, "a", data=b"1")
    new = bench.open(epoch=2)
    bench.publish(new, new.decide([bench.stage(new, "a", data=b"2")]))
    decision = old.decide([late])[0]
    assert decision.winner is not None
    assert bench.staging.publish([decision.winner]) == ["a"]


def test_uploads_are_journaled_against_their_decision_through_many_lives(bench: Bench) -> None:
    ledger = bench.open()
    bench.commit(ledger, "a", "b", "c")
    tasks = taken(ledger)
    freed = ledger.uploaded(verified(tasks[:1]))
    assert [file.path for file in freed] == [file.path for file in tasks[0].files]
    for _ in range(3):
        ledger = bench.open()
    assert ledger.is_uploaded(tasks[0].key)
    assert {task.key for task in taken(ledger)} == {task.key for task in tasks[1:]}
    assert ledger.status().uploaded == 1


def test_uploads_are_shared_out_by_key_and_stay_with_their_uploader(bench: Bench) -> None:
    ledger = bench.open(uploaders=3)
    keys = [f"k{number}" for number in range(30)]
    bench.commit(ledger, *keys)
    shares = [{task.key for task in taken(ledger, uploader)} for uploader in range(3)]
    assert all(shares)
    assert set.union(*shares) == set(keys)
    assert sum(map(len, shares)) == 30
    again = bench.open(uploaders=3)
    assert [{task.key for task in taken(again, uploader)} for uploader in range(3)] == shares


def test_an_uploader_that_starts_anew_gets_its_predecessors_work(bench: Bench) -> None:
    ledger = bench.open()
    bench.commit(ledger, "a", "b")
    first = taken(ledger)
    assert taken(ledger, holding=frozenset({"a", "b"})) == []
    assert {task.key for task in taken(ledger, holding=frozenset({"a"}))} == {"b"}
    assert sorted(taken(ledger), key=lambda task: task.key) == sorted(first, key=lambda task: task.key)
    assert ledger.has_unfinished_uploads()


def test_uploads_are_handed_out_by_bytes_and_at_least_one(bench: Bench) -> None:
    ledger = bench.open()
    bench.commit(ledger, "a", "b", "c")
    assert len(ledger.take_uploads(0, holding=frozenset(), max_outputs=9, max_bytes=1)) == 1
    held = frozenset(task.key for task in taken(ledger)[:1])
    assert len(ledger.take_uploads(0, holding=held, max_outputs=9, max_bytes=8)) == 2


def test_a_failed_upload_is_a_failure_until_it_succeeds(bench: Bench) -> None:
    ledger = bench.open()
    bench.commit(ledger, "a")
    task = taken(ledger)[0]
    assert ledger.uploaded([UploadOutcome("a", task.attempt, error=StoreError("no"))]) == []
    assert ledger.status().failures == {"a": "no"}
    assert len(ledger.uploaded(verified([task]))) == 1
    assert ledger.status().failures == {}


def test_a_report_whose_answer_was_lost_gets_it_again(bench: Bench) -> None:
    ledger = bench.open()
    bench.commit(ledger, "a", "b")
    outcomes = verified(taken(ledger))
    files = ledger.uploaded(outcomes)
    assert sorted(file.path for file in files) == ["a.npy", "b.npy"]
    assert ledger.uploaded(outcomes) == files
    assert (ledger.status().uploaded, ledger.staged_bytes) == (2, 0)


def test_what_a_given_up_uploader_says_late_changes_nothing(bench: Bench) -> None:
    ledger = bench.open()
    bench.commit(ledger, "a")
    task = taken(ledger)[0]
    assert len(ledger.uploaded([*verified([task]), *verified([task])])) == 1
    assert ledger.uploaded([UploadOutcome("a", task.attempt, error=StoreError("staged file is missing"))]) == []
    assert ledger.uploaded([UploadOutcome("who", "t9", error=StoreError("x"))]) == []
    # by a writer that gave it its name once more, behind its uploader's back: it is not to stay there
    assert ledger.published([("a", task.attempt)]) == list(task.files)
    status = ledger.status()
    assert (status.failures, status.uploaded, status.staged, status.staged_bytes) == ({}, 1, 0, 0)
    assert not ledger.has_unfinished_uploads()


def test_a_result_for_another_attempt_is_none_for_this_one(bench: Bench) -> None:
    ledger = bench.open()
    bench.commit(ledger, "a")
    assert ledger.uploaded([UploadOutcome("a", "other", Verification.VERIFIED)]) == []
    assert not ledger.is_uploaded("a")


def test_multipart_uploads_that_nobody_finished_are_known_to_the_next_life(bench: Bench) -> None:
    ledger = bench.open()
    bench.commit(ledger, "a", "b")
    for path in ("a.npy", "b.npy"):
        ledger.multipart_started(MultipartUpload(path, f"id-{path}"))
    ledger.uploaded(verified([task for task in taken(ledger) if task.key == "a"]))
    assert bench.open().abandoned_multiparts == (MultipartUpload("b.npy", "id-b.npy"),)


def test_while_a_seal_is_under_way_no_life_takes_new_keys(bench: Bench) -> None:
    ledger = bench.open()
    bench.commit(ledger, "a")
    ledger.begin_sealing()
    ledger.begin_sealing()
    for epoch in (1, 2):
        life = ledger if epoch == 1 else bench.open(epoch=2)
        known, new = life.decide([bench.stage(life, "a"), bench.stage(life, "b")])
        assert known.receipt is not None
        assert type(new.error).__name__ == "RunSealedError"


def test_an_owner_that_was_taken_over_cannot_begin_to_seal(bench: Bench) -> None:
    old = bench.open()
    new = bench.open(epoch=2)
    with pytest.raises(RunFencedError):
        old.begin_sealing()
    assert new.decide([bench.stage(new, "b")])[0].winner is not None


def test_receipts_are_by_key_and_want_everything_published(bench: Bench) -> None:
    ledger = bench.open()
    bench.commit(ledger, "b", "a")
    assert [receipt.key for receipt in ledger.receipts()] == ["a", "b"]
    ledger.decide([bench.stage(ledger, "c")])
    with pytest.raises(StagingError, match="'c'"):
        list(ledger.receipts())
    ledger.publish_rest()
    assert [receipt.key for receipt in ledger.receipts()] == ["a", "b", "c"]


def test_staged_files_that_are_gone_are_failures_where_staging_is_the_destination() -> None:
    bench = Bench(replace(INFO, dest=None))
    ledger = bench.open()
    proposal = bench.stage(ledger, "a")
    ledger.decide([proposal])
    bench.staging.drop([proposal])
    ledger.publish_rest()
    assert "gone" in ledger.status().failures["a"]
    assert ledger.receipt("a") is None


def test_a_life_keeps_the_temps_of_its_own_writers_and_sweeps_all_others(bench: Bench) -> None:
    old = bench.open()
    bench.stage(old, "a")
    new = bench.open()
    assert bench.staging.temps() == []
    bench.stage(new, "b")
    bench.staging.sweep(old.term, finished=True)
    assert len(bench.staging.temps()) == 1
    bench.staging.sweep(new.term, finished=True)
    assert bench.staging.temps() == []


def test_goodbyes_datasets_and_failures_say_what_is_unfinished(bench: Bench) -> None:
    ledger = bench.open()
    assert ledger.status().unfinished == ()
    ledger.producer_opened("p")
    ledger.dataset("d", DatasetState.OPEN)
    assert ledger.status().open_producers == ("p",)
    assert len(ledger.status().unfinished) == 2
    ledger.producer_closed("p", 3, {"k": "broke"})
    ledger.rows("d", "1", RowCounts(3, 2, 1))
    ledger.rows("d", "1", RowCounts(3, 2, 1))
    ledger.dataset("d", DatasetState.COMPLETE)
    status = bench.open().status()
    assert (status.unfinished, status.failures, status.rows) == ((), {"k": "broke"}, RowCounts(3, 2, 1))


def test_a_failure_is_forgotten_once_its_key_is_decided_or_kept(bench: Bench) -> None:
    ledger = bench.open()
    ledger.producer_closed("p", 2, {"a": "broke", "b": "broke"})
    ledger = bench.open(epoch=2, on_conflict="keep", foreign={"b.npy": 1})
    ledger.decide([bench.stage(ledger, "a"), bench.stage(ledger, "b")])
    assert ledger.status().failures == {}


def test_what_an_older_epoch_left_open_counts_until_this_one_worked(bench: Bench) -> None:
    bench.open().producer_opened("p")
    ledger = bench.open(epoch=2)
    assert any("earlier driver" in reason for reason in ledger.status().unfinished)
    ledger.producer_opened("q")
    ledger.producer_closed("q", 0, {})
    assert ledger.status().unfinished == ()


def test_what_a_driver_has_answered_for_at_its_end_is_asked_of_none_after_it(bench: Bench) -> None:
    ledger = bench.open()
    ledger.producer_opened("p")
    ledger.dataset("d", DatasetState.OPEN)
    ledger = bench.open(epoch=2)
    ledger.dataset("e", DatasetState.COMPLETE)
    ledger.closing()
    ledger = bench.open(epoch=3)
    assert ledger.status().unfinished == (), "a sealed run is opened and closed again"
    ledger.dataset("f", DatasetState.OPEN)
    assert any("earlier driver" in reason for reason in bench.open(epoch=4).status().unfinished)


def test_staging_again_under_a_name_leaves_the_first_file_which_may_be_decided(bench: Bench) -> None:
    ledger = bench.open()
    proposal = bench.stage(ledger, "a")
    ledger.decide([proposal])
    bench.count -= 1
    with pytest.raises(StagingError, match="already"):
        bench.stage(ledger, "a", data=b"other")
    ledger.publish_rest()
    assert bench.disk.finals() == {"a.npy": b"data"}


def test_a_fenced_writer_leaves_no_folder_where_another_key_belongs(bench: Bench) -> None:
    old = bench.open()
    late = bench.stage(old, "x.npy/g")
    new = bench.open(epoch=2)
    decision = old.decide([late])[0]
    assert decision.winner is not None
    assert bench.staging.publish([decision.winner]) == ["x.npy/g"]
    bench.commit(new, "x")
    assert bench.disk.finals() == {"x.npy": b"data"}


def test_an_empty_folder_in_the_way_of_a_decided_file_goes(bench: Bench) -> None:
    ledger = bench.open()
    bench.staging.fs.make_dirs(bench.disk.root / "x.npy", below=bench.disk.root)
    bench.commit(ledger, "x")
    assert bench.disk.finals() == {"x.npy": b"data"}


def test_what_was_uploaded_and_not_freed_is_freed_by_the_next_life_if_it_is_still_that() -> None:
    bench = Bench()
    ledger = bench.open()
    for keys in (["freed"], ["left", "changed"]):
        bench.commit(ledger, *keys)
        files = ledger.uploaded(verified(taken(ledger)))
        if "freed" in keys:
            bench.staging.free(files)
    root = bench.disk.root
    bench.staging.fs.replace_with(root / "changed.npy", b"else")
    assert sorted(file.path for file in ledger.unfreed(0)) == ["changed.npy", "left.npy"]
    bench.open(2, keep_staged=True)
    assert bench.staging.fs.size(root / "left.npy") == 4
    ledger = bench.open(3)
    assert bench.staging.fs.size(root / "left.npy") is None
    assert bench.staging.fs.size(root / "changed.npy") == 4
    assert ledger.unfreed(0) == []


def test_closed_sources_are_known_to_the_next_life(bench: Bench) -> None:
    first = bench.open()
    first.close_sources(["i1", "i2"])
    first.close_sources(["i2", "i3"])
    second = bench.open(epoch=2)
    found = second.closed_sources()
    hashes = {found[at : at + 16] for at in range(0, len(found), 16)}
    assert hashes == {hash_keys([name]).tobytes() for name in ("i1", "i2", "i3")}
