"""The coordinator as a plain object, where no actor is needed to see it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from ray_sink import Limits, SaveFormat, UploadOptions, WriterOptions
from ray_sink.config import MiB
from ray_sink.errors import RunFencedError, StagingError
from ray_sink.filesystem import PosixFilesystem
from ray_sink.keys import hash_keys
from ray_sink.ledger import LedgerOptions
from ray_sink.measures import ProducerMeasures, UploaderMeasures, WriterMeasures
from ray_sink.records import Proposal, RunInfo, UploadOutcome, Verification
from ray_sink.runtime.coordinator import Coordinator
from ray_sink.runtime.lease import Lease
from ray_sink.runtime.messages import RosterNews, RunSpec, WriterInfo
from ray_sink.staging import Staging


def made(
    tmp_path: Path, dest: str | None = None, *, keep_staged: bool = False, limits: Limits | None = None
) -> Coordinator:
    info = RunInfo(
        run_id="run",
        dest=dest,
        staging=str(tmp_path),
        save_format=SaveFormat.PYTORCH_PT,
        dict_mode="single",
        fingerprint=None,
    )
    spec = RunSpec(
        info=info,
        epoch=1,
        format=SaveFormat.PYTORCH_PT,
        ack="staged",
        writers=WriterOptions(),
        upload=UploadOptions(keep_staged=keep_staged),
        limits=limits or Limits(),
    )
    return Coordinator(spec, LedgerOptions(), {})


@pytest.fixture
def coordinator(tmp_path: Path) -> Coordinator:
    return made(tmp_path)


def fail(*_: object, **__: object) -> NoReturn:
    raise ZeroDivisionError("nobody foresaw it")


def test_whatever_breaks_a_decision_reaches_all_who_wait_for_it(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator._ledger, "decide", fail)

    async def together() -> list[object]:
        waiting = [coordinator.decide([]) for _ in range(5)]
        return list(await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 10))

    assert [type(outcome) for outcome in asyncio.run(together())] == [ZeroDivisionError] * 5


def test_temps_that_cannot_be_swept_are_said_and_end_nothing(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise PermissionError("not yours")

    monkeypatch.setattr(coordinator._staging, "sweep", refuse)
    with pytest.raises(StagingError, match="not yours"):
        asyncio.run(coordinator.stop(True))


@pytest.mark.parametrize("keep_staged", [False, True])
def test_what_an_uploader_was_told_to_free_and_did_not_is_gone_when_the_run_is_sealed(
    tmp_path: Path, keep_staged: bool
) -> None:
    coordinator = made(tmp_path, "memory://bucket", keep_staged=keep_staged)
    staging = Staging(PosixFilesystem(), tmp_path, "run")

    async def run() -> None:
        term = await coordinator.ready()
        temp = staging.stage(term, "attempt.0", "key.pt", [b"value"])
        proposal = Proposal("key", "attempt", (temp,))
        (decision,) = await coordinator.decide([proposal])
        assert decision.winner == proposal
        staging.publish([proposal])
        await coordinator.published([("key", "attempt")])
        tasks = await coordinator.take_uploads(0, frozenset(), 10, 2**20)
        assert tasks is not None
        outcomes = [UploadOutcome(task.key, task.attempt, verification=Verification.VERIFIED) for task in tasks]
        await coordinator.uploaded(0, outcomes, UploaderMeasures())  # the answer never comes to anybody
        assert (tmp_path / "key.pt").exists()
        await coordinator.stop(True)

    asyncio.run(run())
    assert (tmp_path / "key.pt").exists() is keep_staged


def test_what_is_uploaded_takes_its_room_in_staging_until_it_is_freed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray_sink.runtime.coordinator._POLL_S", 0.01)
    coordinator = made(tmp_path, "memory://bucket", limits=Limits(staging_bytes=2**20))
    staging = Staging(PosixFilesystem(), tmp_path, "run")

    async def run() -> None:
        temp = staging.stage(await coordinator.ready(), "attempt.0", "key.pt", [b"x" * 2**20])
        await coordinator.decide([Proposal("key", "attempt", (temp,))])
        assert not await coordinator.reserve("writer", "next", 1)
        done = UploadOutcome("key", "attempt", verification=Verification.VERIFIED)
        (file,) = await coordinator.uploaded(0, [done], UploaderMeasures())
        assert file == temp.file
        assert not await coordinator.reserve("writer", "next", 1), "it is still there"
        await coordinator.freed(0)
        assert await coordinator.reserve("writer", "next", 1)

    asyncio.run(run())


def test_a_batch_above_a_nodes_whole_budget_is_not_passed_by_for_ever(tmp_path: Path) -> None:
    coordinator = made(tmp_path, limits=Limits(object_store_bytes=4 * MiB))

    async def run() -> None:
        granted = {"first": await coordinator.acquire("first", "node", 0, 0, MiB)}
        order = []

        async def ask(name: str, need_bytes: int) -> None:
            granted[name] = await coordinator.acquire(name, "node", 0, 0, need_bytes)
            order.append(name)

        asking = [asyncio.create_task(ask("large", 100 * MiB))]
        await asyncio.sleep(0)
        asking += [asyncio.create_task(ask(f"small-{n}", 1)) for n in range(3)]
        await asyncio.sleep(0.1)
        assert order == [], "there is room for the small ones, but they were not there first"
        assert await coordinator.acquire("small-9", "elsewhere", 0, 0, 1), "another node's room is another's"
        for name in ("first", "large"):
            await coordinator.hold("node", 0, granted[name], ProducerMeasures(name))
            await asyncio.sleep(0.1)
        await asyncio.wait_for(asyncio.gather(*asking), 10)
        assert order == ["large", "small-0", "small-1", "small-2"]

    asyncio.run(run())


def test_who_waits_hears_of_it_when_it_happens_and_not_at_the_next_poll(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray_sink.runtime.coordinator._POLL_S", 1000.0)
    coordinator = made(tmp_path, "memory://bucket", limits=Limits(staging_bytes=2**20))
    staging = Staging(PosixFilesystem(), tmp_path, "run")

    async def begun(call: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(call)
        await asyncio.sleep(0.05)
        assert not task.done()
        return task

    async def run() -> None:
        wish = await begun(coordinator.sync_roster(RosterNews((), {})))
        writers = await begun(coordinator.writers("node"))
        assert (await asyncio.wait_for(wish, 10)).missing == {"node": 1}
        wish = await begun(coordinator.sync_roster(RosterNews((WriterInfo("w", "node", actor="it"),), {})))
        assert [writer.name for writer in await asyncio.wait_for(writers, 10)] == ["w"]
        other = await begun(coordinator.writers("node", "w"))
        assert (await asyncio.wait_for(wish, 10)).failed == ("w",)

        assert await coordinator.reserve("w", "first", 2**20)
        second = await begun(coordinator.reserve("w", "second", 1))
        await coordinator.batch_done("w", "first", WriterMeasures("w"), ProducerMeasures("p"))
        assert await asyncio.wait_for(second, 10)
        await coordinator.batch_done("w", "second", WriterMeasures("w"), ProducerMeasures("p"))

        temp = staging.stage(await coordinator.ready(), "attempt.0", "key.pt", [b"x" * 2**20])
        await coordinator.decide([Proposal("key", "attempt", (temp,))])
        tasks = await begun(coordinator.take_uploads(0, frozenset(), 10, 2**30))
        await coordinator.published([("key", "attempt")])
        assert [task.key for task in await asyncio.wait_for(tasks, 10)] == ["key"]
        drained = await begun(coordinator.drain(None))
        third = await begun(coordinator.reserve("w", "third", 1))
        done = UploadOutcome("key", "attempt", verification=Verification.VERIFIED)
        await coordinator.uploaded(0, [done], UploaderMeasures())
        assert (await asyncio.wait_for(drained, 10)).uploaded == 1
        assert not third.done()
        await coordinator.freed(0)
        assert await asyncio.wait_for(third, 10)
        other.cancel()

    asyncio.run(run())


def test_who_waits_hears_of_a_goodbye_a_fence_and_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_sink.runtime.coordinator._POLL_S", 1000.0)
    limits = Limits(staging_bytes=2**20, object_store_bytes=2**20)

    async def run() -> None:
        coordinator = made(tmp_path / "fenced", "memory://bucket", limits=limits)
        assert await coordinator.acquire("first", "node", 0, 0, 2**20)
        credit = asyncio.create_task(coordinator.acquire("second", "node", 0, 0, 1))
        assert await coordinator.reserve("w", "first", 2**20)
        room = asyncio.create_task(coordinator.reserve("w", "second", 1))
        await asyncio.sleep(0.05)
        assert not credit.done()
        await coordinator.producer_closed("node", ProducerMeasures("first"), {})
        assert await asyncio.wait_for(credit, 10)
        assert not room.done()
        await coordinator.fence("somebody")
        with pytest.raises(RunFencedError):
            await asyncio.wait_for(room, 10)

        coordinator = made(tmp_path / "ended", "memory://bucket", limits=limits)
        tasks = asyncio.create_task(coordinator.take_uploads(0, frozenset(), 10, 2**30))
        await asyncio.sleep(0.05)
        await coordinator.stop(False)
        assert await asyncio.wait_for(tasks, 10) is None

    for name in ("fenced", "ended"):
        (tmp_path / name).mkdir()
    asyncio.run(run())


@pytest.mark.parametrize("shared", [False, True])
def test_rows_that_share_a_source_keep_a_dataset_open_however_often_its_end_is_said(
    coordinator: Coordinator, shared: bool
) -> None:
    async def run() -> None:
        await coordinator.dataset_opened("ds")
        for execution in ("first", "second"):
            for place in ("0-0", "0-2", "0-2"):  # a task that is run again says the same again
                sources = ["a" if shared else place, f"b{place}"]
                await coordinator.sources_seen("ds", execution, place, hash_keys(sources))
        for _ in range(2):
            await coordinator.dataset_closed("ds", True)

    asyncio.run(run())
    unfinished = asyncio.run(coordinator.status()).unfinished
    assert [reason for reason in unfinished if "1 row(s) whose source is another row's" in reason] == list(unfinished)
    assert bool(unfinished) is shared


def test_what_is_committed_or_closed_is_told_as_sorted_hashes(coordinator: Coordinator) -> None:
    assert len(asyncio.run(coordinator.committed_keys())) == 0
    assert len(asyncio.run(coordinator.closed_sources())) == 0
    names = [f"init {number}" for number in range(1000)]
    for some in (names[:700], names[300:]):
        asyncio.run(coordinator.close_sources(some))
    assert np.array_equal(asyncio.run(coordinator.closed_sources()), np.sort(hash_keys(names)))


def test_a_producer_of_small_outputs_asks_once_for_many(coordinator: Coordinator) -> None:
    asked = 0

    def acquire(held: int, granted: int, need: int) -> int:
        nonlocal asked
        asked += 1
        return asyncio.run(coordinator.acquire("producer", "node", held, granted, need))

    lease = Lease(4096, acquire)
    for _ in range(1000):
        lease.take(1, 4096)
    assert asked == 1
