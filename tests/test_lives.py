"""The beginning of a ledger's life, with older ones that do not know yet that theirs has ended."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ray_sink.errors import RunError, RunFencedError, RunMismatchError
from ray_sink.ledger import Ledger
from ray_sink.records import Proposal
from tests.ledgers import INFO, Bench
from tests.model.disk import Fault
from tests.model.script import Process


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_ledger_that_slept_while_it_started_hurts_nobody(bench: Bench) -> None:
    bench.commit(bench.open(), "before")
    operations = bench.disk.script.ops
    bench.open(epoch=2)
    operations = bench.disk.script.ops - operations
    for number in range(1, operations):
        fresh = Bench()
        first = fresh.open()
        fresh.commit(first, "before")
        half = fresh.stage(first, "half")
        first.decide([half])
        newer: list[Ledger] = []

        def take_over(process: Process, fresh: Bench = fresh, newer: list[Ledger] = newer) -> None:
            newer.append(fresh.open(epoch=3))
            newer[0].decide([fresh.stage(newer[0], "after")])

        fresh.disk.script.plan[fresh.disk.script.ops + number] = take_over
        try:
            fresh.open(epoch=2)
        except RunFencedError:
            pass
        newer[0].publish_rest()
        assert set(fresh.disk.finals()) == {"before.npy", "half.npy", "after.npy"}, number
        assert {receipt.key for receipt in fresh.open(epoch=4).receipts()} == {"before", "half", "after"}


def test_a_record_that_was_read_before_its_fsync_survives_the_power_cut_after(bench: Bench) -> None:
    old = bench.open()
    process = Process("old")
    proposal = bench.stage(old, "a")
    # the old life ends between the write and the fsync of its record
    bench.disk.faults["sync"] = Fault(after=False, times=1)
    with pytest.raises(OSError, match="error"):
        old.decide([proposal])
    assert process.alive
    assert list(bench.open().keys()) == ["a"]
    bench.disk.power_cut(lambda n: 0)
    again = bench.open()
    assert list(again.keys()) == ["a"]
    assert bench.open().receipt("a") == again.receipt("a")


def test_names_that_a_dead_writer_did_not_sync_are_synced_by_the_next_life() -> None:
    bench = Bench(replace(INFO, dest=None))
    old = bench.open()
    decision = old.decide([bench.stage(old, "d/a")])[0]
    assert decision.winner is not None
    bench.staging.fs.make_dirs(bench.disk.root / "d", below=bench.disk.root)
    temp = decision.winner.files[0].temp
    bench.staging.fs.rename(bench.staging.run_dir / "tmp" / temp, bench.disk.root / "d/a.npy")
    bench.open().begin_sealing()
    assert bench.disk.finals(durable=True) == {"d/a.npy": b"data"}


@pytest.mark.parametrize(
    ("name", "value"), [("dest", "s3://other/x"), ("save_format", "pt"), ("dict_mode", "split"), ("fingerprint", None)]
)
def test_another_runs_id_is_refused_with_both_values(bench: Bench, name: str, value: str | None) -> None:
    bench.open().close()
    before = bench.disk.script.ops
    bench.info = replace(INFO, **{name: value})  # type: ignore[arg-type]
    with pytest.raises(RunMismatchError) as caught:
        bench.open(epoch=2)
    assert repr(getattr(INFO, name)) in str(caught.value)
    assert repr(value) in str(caught.value)
    assert not any(str(step[2]).startswith(("create", "rename", "make")) for step in _since(bench, before))
    bench.info = INFO
    bench.open(epoch=2)


def _since(bench: Bench, ops: int) -> list[tuple[object, ...]]:
    return [step for step in bench.disk.script.trace if isinstance(step[0], int) and step[0] > ops]


def test_an_older_epoch_cannot_open_and_a_fenced_ledger_says_no(bench: Bench) -> None:
    ledger = bench.open(epoch=2)
    with pytest.raises(RunFencedError, match="epoch 2"):
        bench.open(epoch=1)
    ledger.fence("epoch 3")
    for call in (lambda: ledger.decide([]), lambda: ledger.uploaded([]), lambda: ledger.producer_opened("p")):
        with pytest.raises(RunFencedError, match="epoch 3"):
            call()


def test_a_ledger_that_dies_for_ever_stops_at_some_time(bench: Bench) -> None:
    bench.open()
    bench.staging.fs.create(bench.staging.journal_dir / "000001.999")
    with pytest.raises(RunError, match="999 times"):
        bench.open()
    bench.open(epoch=2)


def test_what_the_old_life_still_publishes_while_the_new_one_starts_is_known_to_the_new_one() -> None:
    number = 0
    acknowledged = set()
    while True:
        number += 1
        bench = Bench()
        old = bench.open()
        late = bench.stage(old, "a")
        vanished: list[str] = []

        def go_on(
            process: Process, bench: Bench = bench, old: Ledger = old, late: Proposal = late, out: list[str] = vanished
        ) -> None:
            old.decide([late])
            out += bench.staging.publish([late])

        bench.disk.script.plan[bench.disk.script.ops + number] = go_on
        new = bench.open(epoch=2)
        if not bench.disk.script.happened:
            break
        if not vanished:
            acknowledged.add(number)
            assert new.receipt("a") is not None, number
        assert ("a.npy" in bench.disk.finals()) == ("a" in new.keys()), number  # noqa: SIM118
    assert 1 < len(acknowledged) < number - 1
