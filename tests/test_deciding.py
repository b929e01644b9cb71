"""Who wins a key, and who is told what."""

from __future__ import annotations

import pytest

from ray_sink.errors import DestinationConflict, DuplicateKeyError, PathConflict, RunFencedError
from ray_sink.records import State
from tests.ledgers import Bench


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_the_first_attempt_wins_and_a_later_one_hears_of_it(bench: Bench) -> None:
    ledger = bench.open()
    one, two, three = (bench.stage(ledger, "a", data=data) for data in (b"1", b"2", b"1"))
    assert ledger.decide([one])[0].winner == one
    again = ledger.decide([two, three])
    assert [decision.winner for decision in again] == [one, one]
    assert [decision.receipt for decision in again] == [None, None]
    bench.publish(ledger, again[:1])
    receipt = ledger.decide([two])[0].receipt
    assert receipt is not None
    assert (receipt.attempt, receipt.state) == (one.attempt, State.STAGED)
    assert (ledger.status().conflicts.retries, ledger.status().conflicts.retries_differing) == (1, 2)


def test_the_same_attempt_asked_twice_is_no_retry(bench: Bench) -> None:
    ledger = bench.open()
    one = bench.stage(ledger, "a")
    assert ledger.decide([one]) == ledger.decide([one])
    assert ledger.status().conflicts.retries == 0


def test_two_attempts_in_one_batch_have_one_winner(bench: Bench) -> None:
    ledger = bench.open()
    one, two = bench.stage(ledger, "a"), bench.stage(ledger, "a")
    assert [decision.winner for decision in ledger.decide([one, two])] == [one, one]


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize(
    ("one", "other", "path"),
    [
        (("a", ["a_b_c.npy"]), ("a_b", ["a_b_c.npy"]), "a_b_c.npy"),
        (("a", ["x.npy"]), ("x.npy/b", ["x.npy/b.npy"]), "x.npy"),
        (("x.npy/b", ["x.npy/b.npy"]), ("x", ["x.npy"]), "x.npy"),
        (("x/y/z", ["x/y/z.npy"]), ("w", ["ok.npy", "x/y"]), "x/y"),
    ],
)
def test_two_keys_that_want_one_path_are_an_error_that_names_both(
    bench: Bench, one: tuple[str, list[str]], other: tuple[str, list[str]], path: str, together: bool
) -> None:
    ledger = bench.open()
    first, second = bench.stage(ledger, *one), bench.stage(ledger, *other)
    decisions = ledger.decide([first, second]) if together else [*ledger.decide([first]), *ledger.decide([second])]
    assert decisions[0].winner == first
    error = decisions[1].error
    assert isinstance(error, PathConflict)
    assert error.keys == (one[0], other[0])
    assert error.path == path
    assert list(ledger.keys()) == [one[0]]


def test_a_key_whose_own_files_are_in_each_others_way_is_refused(bench: Bench) -> None:
    ledger = bench.open()
    error = ledger.decide([bench.stage(ledger, "a", ["a_x", "a_x/y"])])[0].error
    assert isinstance(error, PathConflict)
    assert list(ledger.keys()) == []


def test_two_rows_of_one_dataset_under_one_key_are_an_error(bench: Bench) -> None:
    ledger = bench.open()
    one, two = bench.stage(ledger, "a", source="d1/7"), bench.stage(ledger, "a", source="d1/8")
    error = ledger.decide([one, two])[1].error
    assert isinstance(error, DuplicateKeyError)
    assert error.keys == ("a",)
    assert "d1/7" in str(error)
    assert "d1/8" in str(error)


@pytest.mark.parametrize("source", ["d1/7", "d2/9", None])
def test_the_same_row_or_one_that_cannot_be_compared_is_a_retry(bench: Bench, source: str | None) -> None:
    ledger = bench.open()
    one, two = bench.stage(ledger, "a", source="d1/7"), bench.stage(ledger, "a", source=source)
    assert ledger.decide([one, two])[1].winner == one


def test_another_runs_output_is_a_conflict_by_default(bench: Bench) -> None:
    ledger = bench.open(foreign={"a.npy": 3})
    error = ledger.decide([bench.stage(ledger, "a")])[0].error
    assert isinstance(error, DestinationConflict)
    assert error.keys == ("a",)


def test_another_runs_output_is_kept_when_asked_for_and_that_outlives_the_ledger(bench: Bench) -> None:
    ledger = bench.open(on_conflict="keep", foreign={"a.npy": 3})
    decision = ledger.decide([bench.stage(ledger, "a")])[0]
    assert decision.winner is None
    assert decision.receipt is not None
    assert decision.receipt.state is State.KEPT
    assert (decision.receipt.files[0].bytes, decision.receipt.files[0].uri) == (3, "s3://bucket/x/a.npy")
    assert bench.open().receipt("a") == decision.receipt
    assert ledger.status().conflicts.kept == 1


def test_a_keep_behind_the_fence_is_no_answer(bench: Bench) -> None:
    old = bench.open(on_conflict="keep", foreign={"a.npy": 3})
    late = bench.stage(old, "a")
    bench.open(epoch=2)
    with pytest.raises(RunFencedError):
        old.decide([late])


def test_another_runs_output_is_replaced_when_asked_for(bench: Bench) -> None:
    ledger = bench.open(on_conflict="replace", foreign={"a.npy": 3})
    bench.commit(ledger, "a")
    assert ledger.status().conflicts.replaced == 1
    tasks = ledger.take_uploads(0, holding=frozenset(), max_outputs=1, max_bytes=1)
    assert tasks[0].replace


def test_what_the_journal_knows_is_not_foreign(bench: Bench) -> None:
    bench.commit(bench.open(), "a")
    ledger = bench.open(epoch=2, foreign={"a.npy": 4})
    assert ledger.decide([bench.stage(ledger, "a")])[0].receipt is not None


def test_an_attempt_staged_for_an_older_ledger_is_refused(bench: Bench) -> None:
    old = bench.open()
    late = bench.stage(old, "a")
    error = bench.open().decide([late])[0].error
    assert isinstance(error, RunFencedError)
