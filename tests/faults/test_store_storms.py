"""Rows 24 and 36: a store that asks for less, and one that is away for a while."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Literal

import pytest

from ray_sink.errors import StoreUnavailableError
from ray_sink.records import UploadOutcome
from ray_sink.stores import obstore_objects, open_store, s3_objects
from tests.faults.s3_bench import ENGINES, bench_at, events
from tests.faults.s3_proxy import Request, answer
from tests.servers import S3Server
from tests.waiting import until


class Rate:
    """Says yes to what comes faster than so many a second; a short burst is allowed."""

    def __init__(self, per_s: float, burst: int) -> None:
        self._per_s, self._burst = per_s, float(burst)
        self._tokens = self._burst
        self._filled_s = time.monotonic()

    def __call__(self, request: Request) -> bool:
        now_s = time.monotonic()
        self._tokens = min(self._burst, self._tokens + (now_s - self._filled_s) * self._per_s)
        self._filled_s = now_s
        if self._tokens < 1:
            return True
        self._tokens -= 1
        return False


@pytest.mark.row(24)
@pytest.mark.parametrize("engine", ENGINES)
def test_in_a_storm_concurrency_falls_and_afterwards_it_recovers(
    s3_server: S3Server, tmp_path: Path, engine: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ray_sink")
    with bench_at(s3_server, engine=engine) as bench, bench.case(tmp_path) as case:
        storm = case.proxy.on("PutObject", answer(503, "SlowDown"), when=Rate(20, 4), times=None)
        outcomes: list[UploadOutcome] = []
        with case.uploader(attempts=40) as uploader:
            for number in range(50):
                uploader.submit(case.task(f"{number}"), outcomes.append)
            until(lambda: len(outcomes) == 50, deadline_s=60)
            fired = storm.fired
            lowest = min(event["after"] for event in events(caplog, "upload_concurrency_changed"))
            storm.lift()
            for number in range(50, 110):
                uploader.submit(case.task(f"{number}"), outcomes.append)
            until(lambda: len(outcomes) == 110, deadline_s=60)
            recovered = uploader.gate.allowed
        assert fired > 5
        assert lowest <= 4
        assert recovered == 8
        # each try that failed is one that was told of, and nobody tried besides
        told = [event for event in events(caplog, "upload_retried") if event["slow_down"]]
        assert len(told) == storm.fired
        assert len(case.proxy.seen("PutObject")) == 110 + storm.fired
        case.check(outcomes)


@pytest.mark.row(36)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ["refusing", "silent"])
def test_a_store_that_is_away_for_a_while_is_waited_for(
    s3_server: S3Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    engine: str,
    kind: Literal["refusing", "silent"],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(obstore_objects, "_BASE_TIMEOUT_S", 1)
    monkeypatch.setattr(obstore_objects, "_SLOWEST_BYTES_PER_S", 2**30)
    monkeypatch.setattr(s3_objects, "_READ_TIMEOUT_S", 1)
    with bench_at(s3_server, engine=engine) as bench, bench.case(tmp_path) as case:
        cut = threading.Event()

        def is_tenth(request: Request) -> bool:
            return len(case.proxy.seen("PutObject")) == 10

        def part(exchange: object) -> None:
            case.proxy.partition(kind)
            cut.set()

        fault = case.proxy.on("PutObject", part, when=is_tenth)
        outcomes: list[UploadOutcome] = []
        with case.uploader(attempts=200) as uploader:
            for number in range(16):
                uploader.submit(case.task(f"{number}"), outcomes.append)
            assert cut.wait(30)
            until(lambda: len(events(caplog, "upload_retried")) >= 16, deadline_s=60)
            away = len(outcomes)
            case.proxy.heal()
        assert fault.fired == 1
        assert away < 16
        assert kind == "refusing" or case.proxy.partitioned >= 8
        # whoever does not answer does not keep up
        assert kind == "refusing" or any(event["slow_down"] for event in events(caplog, "upload_retried"))
        case.check(outcomes)


@pytest.mark.row(36)
@pytest.mark.parametrize("engine", ENGINES)
def test_an_uploader_that_starts_anew_while_the_store_is_away_waits_for_it(
    s3_server: S3Server, tmp_path: Path, engine: str, caplog: pytest.LogCaptureFixture
) -> None:
    with bench_at(s3_server, engine=engine) as bench, bench.case(tmp_path) as case:
        tasks = [case.task(f"{number}") for number in range(3)]
        case.store = open_store(bench.bucket.url, bench.options)  # it does not know yet what the store can do
        outcomes: list[UploadOutcome] = []
        case.proxy.partition("refusing")
        with case.uploader(attempts=200) as uploader:
            for task in tasks:
                uploader.submit(task, outcomes.append)
            until(lambda: bool(events(caplog, "upload_retried") or outcomes), deadline_s=60)
            case.proxy.heal()
        case.store.close()
        case.check(outcomes)


@pytest.mark.row(36)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_small_object_of_one_that_starts_anew_is_put_when_the_store_is_back(
    s3_server: S3Server, tmp_path: Path, engine: str
) -> None:
    """It asks first what the store can do, which by itself is tried four times."""
    with bench_at(s3_server, engine=engine) as bench, bench.case(tmp_path) as case:
        away = case.proxy.on("ListObjectsV2", answer(503, "SlowDown"), times=5)
        store = open_store(bench.bucket.url, bench.options)
        store.put_bytes(f"{case.prefix}a", b"manifest", replace=False)
        assert away.fired == 5
        assert store.get_bytes(f"{case.prefix}a") == b"manifest"
        store.close()


@pytest.mark.row(36)
def test_a_store_that_stays_away_ends_after_bounded_tries_and_a_later_try_finds_it_again(
    s3_server: S3Server, tmp_path: Path
) -> None:
    with bench_at(s3_server) as bench, bench.case(tmp_path) as case:
        task = case.task("a")
        case.proxy.partition("refusing")
        outcome = case.uploader(attempts=4).upload(task)
        assert isinstance(outcome.error, StoreUnavailableError)
        assert "gave up after 4 tries" in outcome.error.__notes__[0]
        assert case.local("a").exists()
        case.proxy.heal()
        case.check([case.uploader(attempts=4).upload(task)])
