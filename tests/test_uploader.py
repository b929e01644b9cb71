from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from ray_sink.checksum import checksum_of
from ray_sink.config import UploadOptions
from ray_sink.drain import Drain
from ray_sink.errors import (
    ConfigError,
    DestinationConflict,
    SinkClosedError,
    StagedFileChangedError,
    StagingError,
    StoreUnavailableError,
)
from ray_sink.filesystem import PosixFilesystem
from ray_sink.records import FileRecord, MultipartUpload, UploadOutcome, UploadTask, Verification
from ray_sink.retry import Retry, RetryPolicy
from ray_sink.stores import Capabilities, ObjectInfo, Store, open_store
from ray_sink.stores.folder import FolderStore
from ray_sink.uploader import Uploader
from tests.faults.s3_proxy import Proxy, answer, lost
from tests.servers import S3Bucket
from tests.stores.conftest import sign_in, staged
from tests.waiting import until

MULTIPART_ABOVE = 5 * 2**20


class Wrapped:
    """A real store with something between it and its caller."""

    def __init__(self, store: Store) -> None:
        self.store, self.url = store, store.url
        self.puts: list[str] = []
        self.before: Callable[[FileRecord], None] = lambda file: None
        self.after: Callable[[FileRecord], None] = lambda file: None

    def put_file(
        self,
        local: Path,
        file: FileRecord,
        *,
        metadata: Mapping[str, str],
        replace: bool,
        on_multipart: Callable[[MultipartUpload], None],
    ) -> Verification:
        self.puts.append(file.path)
        self.before(file)
        proof = self.store.put_file(local, file, metadata=metadata, replace=replace, on_multipart=on_multipart)
        self.after(file)
        return proof

    def probe(self) -> Capabilities:
        return self.store.probe()

    def held_bytes(self, file: FileRecord) -> int:
        return file.bytes

    def put_bytes(self, path: str, data: bytes, *, replace: bool) -> None:
        self.store.put_bytes(path, data, replace=replace)

    def get_bytes(self, path: str) -> bytes:
        return self.store.get_bytes(path)

    def read_checksum(self, path: str) -> str:
        return self.store.read_checksum(path)

    def head(self, path: str) -> ObjectInfo | None:
        return self.store.head(path)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return self.store.list(prefix)

    def delete(self, path: str) -> None:
        self.store.delete(path)

    def abort(self, upload: MultipartUpload) -> None:
        self.store.abort(upload)

    def sweep(self) -> None:
        self.store.sweep()

    def sweep_probes(self) -> None:
        self.store.sweep_probes()

    def close(self) -> None:
        self.store.close()


def impatient(attempts: int = 5) -> Retry:
    return Retry(RetryPolicy(attempts=attempts), sleep=lambda _: None)


def once(error: Exception) -> Callable[[FileRecord], None]:
    fired: list[FileRecord] = []

    def fault(file: FileRecord) -> None:
        if not fired:
            fired.append(file)
            raise error

    return fault


class Bench:
    """An uploader over one destination, and the staging folder it reads from."""

    def __init__(self, store: Store, staging: Path) -> None:
        self.store, self.staging = Wrapped(store), staging
        staging.mkdir(exist_ok=True)
        self.options = UploadOptions(concurrency=4)

    def uploader(self, run_id: str = "run-1", attempts: int = 5) -> Uploader:
        return Uploader(self.store, self.staging, run_id, self.options, retry=impatient(attempts))

    def task(self, key: str, *contents: bytes, attempt: str = "attempt-1") -> UploadTask:
        files = [
            staged(self.staging, f"{key}_{number}.pt" if number else f"{key}.pt", data)[1]
            for number, data in enumerate(contents)
        ]
        return UploadTask(key, attempt, tuple(files))


@pytest.fixture(params=["folder", "s3-obstore", "s3-fsspec"])
def bench(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """One of each kind of destination: metadata on S3, none in a folder."""
    if request.param == "folder":
        return Bench(open_store(str(tmp_path / "destination"), UploadOptions()), tmp_path / "staging")
    bucket: S3Bucket = request.getfixturevalue("s3_bucket")
    sign_in(monkeypatch, bucket.server)
    engine = "auto" if request.param == "s3-obstore" else "fsspec"
    return Bench(open_store(bucket.url, UploadOptions(engine=engine)), tmp_path / "staging")  # type: ignore[arg-type]


@pytest.fixture
def folder_bench(tmp_path: Path) -> Bench:
    return Bench(open_store(str(tmp_path / "destination"), UploadOptions()), tmp_path / "staging")


def test_all_files_of_an_output_are_uploaded_and_stay_staged(bench: Bench) -> None:
    task = bench.task("deep/a ü", b"one", b"two")
    outcome = bench.uploader().upload(task)
    assert outcome == UploadOutcome("deep/a ü", "attempt-1", verification=Verification.VERIFIED)
    assert bench.store.get_bytes("deep/a ü.pt") == b"one"
    assert bench.store.get_bytes("deep/a ü_1.pt") == b"two"
    assert all((bench.staging / file.path).exists() for file in task.files)


def test_a_put_that_landed_and_lost_its_reply_is_our_own_success(bench: Bench) -> None:
    bench.store.after = once(StoreUnavailableError("reset", slow_down=False))
    assert bench.uploader().upload(bench.task("a", b"data")).verification is Verification.VERIFIED
    assert bench.store.puts == ["a.pt"]


def test_the_same_task_again_is_our_own_success(bench: Bench) -> None:
    task = bench.task("a", b"data")
    for _ in range(2):
        assert bench.uploader().upload(task).verification is Verification.VERIFIED


def test_a_put_that_did_not_land_is_made_again(bench: Bench) -> None:
    bench.store.before = once(StoreUnavailableError("503", slow_down=True))
    uploader = bench.uploader()
    assert uploader.upload(bench.task("a", b"data")).error is None
    assert bench.store.puts == ["a.pt", "a.pt"]
    # halved by the fault; the look and the second put brought a part of it back
    assert uploader.gate.allowed < 4


def test_a_staged_file_that_is_gone_while_its_object_matches_is_uploaded(bench: Bench) -> None:
    task = bench.task("a", b"data")
    assert bench.uploader().upload(task).error is None
    assert bench.uploader().free(task.files) == 4
    assert not (bench.staging / "a.pt").exists()
    assert bench.uploader().upload(task).verification is Verification.VERIFIED


def test_a_staged_file_that_is_gone_without_an_object_is_a_failure_that_names_it(bench: Bench) -> None:
    task = bench.task("a", b"data")
    (bench.staging / "a.pt").unlink()
    waited_s: list[float] = []
    retry = Retry(sleep=waited_s.append)
    outcome = Uploader(bench.store, bench.staging, "run-1", bench.options, retry=retry).upload(task)
    assert isinstance(outcome.error, StagingError)
    assert "a.pt is missing" in str(outcome.error)
    assert 90 <= sum(waited_s) < 150, "a new name may be seen a minute late"


def test_a_staged_file_that_appears_late_is_waited_for(folder_bench: Bench) -> None:
    task = folder_bench.task("a", b"data")
    hidden = (folder_bench.staging / "a.pt").rename(folder_bench.staging / "hidden")

    def appear(_: float) -> None:
        hidden.rename(folder_bench.staging / "a.pt")

    retry = Retry(sleep=appear)
    uploader = Uploader(folder_bench.store, folder_bench.staging, "run-1", folder_bench.options, retry=retry)
    assert uploader.upload(task).error is None


def test_a_staged_file_that_changed_is_a_failure_and_not_uploaded(bench: Bench) -> None:
    task = bench.task("a", b"data")
    (bench.staging / "a.pt").write_bytes(b"dota")
    assert isinstance(bench.uploader().upload(task).error, StagedFileChangedError)
    assert bench.store.head("a.pt") is None


def test_another_runs_object_is_a_conflict_and_stays(bench: Bench) -> None:
    bench.uploader("run-0").upload(bench.task("a", b"theirs"))
    outcome = bench.uploader("run-1").upload(bench.task("a", b"ours"))
    assert isinstance(outcome.error, DestinationConflict)
    assert outcome.error.keys == ("a",)
    assert bench.store.get_bytes("a.pt") == b"theirs"


def test_another_attempts_object_is_a_conflict_where_the_store_can_tell(bench: Bench) -> None:
    assert bench.uploader().upload(bench.task("a", b"same bytes", attempt="attempt-1")).error is None
    outcome = bench.uploader().upload(bench.task("a", b"same bytes", attempt="attempt-2"))
    if bench.store.probe().metadata:
        assert isinstance(outcome.error, DestinationConflict)
    else:  # the very bytes that were to be there
        assert outcome.verification is Verification.VERIFIED


def test_another_attempts_object_is_taken_where_the_task_says_so(bench: Bench) -> None:
    first = bench.task("a", b"first", attempt="attempt-1")
    bench.uploader().upload(first)
    second = replace(bench.task("a", b"second", attempt="attempt-2"), adopt=True)
    outcome = bench.uploader().upload(second)
    if bench.store.probe().metadata:
        told = (outcome.attempt, outcome.verification, outcome.file)
        assert told == ("attempt-1", Verification.VERIFIED, first.files[0])
    else:  # nothing says whose it is
        assert isinstance(outcome.error, DestinationConflict)
    assert bench.store.get_bytes("a.pt") == b"first"
    foreign = bench.uploader("run-0").upload(second)
    assert isinstance(foreign.error, DestinationConflict)


def test_a_file_may_lie_anywhere(bench: Bench) -> None:
    task = bench.task("a", b"data")
    (bench.staging / "a.pt").rename(bench.staging / "elsewhere")
    assert bench.uploader().upload(replace(task, at=str(bench.staging / "elsewhere"))).error is None
    assert bench.store.get_bytes("a.pt") == b"data"


def test_an_object_without_our_metadata_is_judged_by_its_bytes(bench: Bench) -> None:
    bench.store.put_bytes("same.pt", b"data", replace=False)
    bench.store.put_bytes("other.pt", b"dota", replace=False)
    uploader = bench.uploader()
    assert uploader.upload(bench.task("same", b"data")).verification is Verification.VERIFIED
    assert isinstance(uploader.upload(bench.task("other", b"data")).error, DestinationConflict)


def test_a_task_that_replaces_replaces_also_after_a_lost_reply(bench: Bench) -> None:
    bench.uploader("run-0").upload(bench.task("a", b"theirs"))
    bench.store.after = once(StoreUnavailableError("reset"))
    bench.store.puts.clear()
    outcome = bench.uploader().upload(replace(bench.task("a", b"ours"), replace=True))
    assert outcome.error is None
    assert bench.store.get_bytes("a.pt") == b"ours"
    assert bench.store.puts == ["a.pt"]


def test_a_store_that_stays_away_is_a_failure_after_bounded_tries(bench: Bench) -> None:
    def away(file: FileRecord) -> None:
        raise StoreUnavailableError("no answer")

    bench.store.before = away
    outcome = bench.uploader(attempts=4).upload(bench.task("a", b"data"))
    assert isinstance(outcome.error, StoreUnavailableError)
    assert "gave up after 4 tries" in outcome.error.__notes__[0]
    assert len(bench.store.puts) == 4
    assert (bench.staging / "a.pt").exists()


def test_a_key_too_long_for_metadata_is_left_to_the_path(bench: Bench) -> None:
    key = "/".join(["数" * 60] * 5)
    assert bench.uploader().upload(bench.task(key, b"data")).error is None
    assert bench.uploader().upload(bench.task(key, b"data")).error is None


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("engine", ["auto", "fsspec"])
def test_on_the_wire_a_lost_reply_is_our_own_success(
    s3_bucket: S3Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, large: bool
) -> None:
    sign_in(monkeypatch, s3_bucket.server)
    with Proxy(s3_bucket.server) as proxy:
        options = UploadOptions(
            engine=engine,  # type: ignore[arg-type]
            multipart_above_bytes=MULTIPART_ABOVE,
            storage_options={"endpoint_url": proxy.endpoint},
        )
        store = open_store(s3_bucket.url, options)
        store.probe()
        uploads: list[MultipartUpload] = []
        uploader = Uploader(store, tmp_path, "run-1", options, on_multipart=uploads.append, retry=impatient())
        data = os.urandom(MULTIPART_ABOVE + 1 if large else 1000)
        _, file = staged(tmp_path, "a.pt", data)
        # the object is complete, and what its client hears is an error
        if large:
            fault = proxy.on("CompleteMultipartUpload", lost(answer(500, "InternalError")))
        else:
            fault = proxy.on("PutObject", lost(answer(503, "SlowDown")))
        outcome = uploader.upload(UploadTask("a", "attempt-1", (file,)))
        assert fault.fired == 1
        assert outcome.verification is Verification.VERIFIED
        assert len(uploads) == int(large)
        assert s3_bucket.read("a.pt") == data
        assert len(proxy.seen("PutObject UploadPart", "a.pt")) == 1
        store.close()


def test_the_pool_stays_within_count_and_bytes(folder_bench: Bench) -> None:
    folder_bench.options = UploadOptions(concurrency=8, buffer_bytes=2**20)
    all_in = threading.Event()
    inside = 0
    lock = threading.Lock()

    def hold(file: FileRecord) -> None:
        nonlocal inside
        with lock:
            inside += 1
            if inside == 2:
                all_in.set()
        all_in.wait(10)

    folder_bench.store.before = hold
    outcomes: list[UploadOutcome] = []
    with folder_bench.uploader() as uploader:
        for number in range(20):
            uploader.submit(folder_bench.task(f"{number}", b"x" * 400_000), outcomes.append)
    assert [outcome.error for outcome in outcomes] == [None] * 20
    assert uploader.gate.peak_bytes == 800_000
    assert uploader.gate.peak == 2


def test_submitting_waits_while_twice_the_concurrency_is_under_way(folder_bench: Bench) -> None:
    release = threading.Event()

    def hold(file: FileRecord) -> None:
        release.wait(30)

    folder_bench.store.before = hold
    uploader = folder_bench.uploader()
    outcomes: list[UploadOutcome] = []
    submitted: list[int] = []

    def submit() -> None:
        for number in range(12):
            uploader.submit(folder_bench.task(f"{number}", b"x"), outcomes.append)
            submitted.append(number)

    thread = threading.Thread(target=submit)
    thread.start()
    until(lambda: len(submitted) == 8)
    thread.join(0.2)
    assert len(submitted) == 8
    release.set()
    thread.join()
    uploader.close()
    assert len(outcomes) == 12


def test_close_waits_for_what_was_submitted_and_raises_what_callbacks_raised(folder_bench: Bench) -> None:
    def broken(outcome: UploadOutcome) -> None:
        raise RuntimeError(outcome.key)

    uploader = folder_bench.uploader()
    for key in ("a", "b"):
        uploader.submit(folder_bench.task(key, b"data"), broken)
    with pytest.raises(ExceptionGroup) as raised:
        uploader.close()
    assert sorted(str(error) for error in raised.value.exceptions) == ["a", "b"]
    assert folder_bench.store.get_bytes("b.pt") == b"data"
    uploader.close()
    with pytest.raises(SinkClosedError):
        uploader.submit(folder_bench.task("c", b"data"), broken)


def test_whatever_breaks_a_task_has_an_outcome(folder_bench: Bench) -> None:
    folder_bench.store.before = once(ZeroDivisionError("a bug"))
    outcomes: list[UploadOutcome] = []
    with folder_bench.uploader() as uploader:
        uploader.submit(folder_bench.task("a", b"data"), outcomes.append)
    (outcome,) = outcomes
    assert "a bug" in str(outcome.error)


def test_freeing_keeps_staged_files_when_told_to(folder_bench: Bench) -> None:
    task = folder_bench.task("d/a", b"data")
    folder_bench.options = UploadOptions(keep_staged=True)
    assert folder_bench.uploader().free(task.files) == 0
    folder_bench.options = UploadOptions()
    assert folder_bench.uploader().free(task.files) == 4
    assert folder_bench.uploader().free(task.files) == 0
    assert (folder_bench.staging / "d").is_dir()


def finished(bench: Bench, path: str, data: bytes) -> Path:
    """A file that landed the way an AsyncWriter's do."""
    target = bench.staging / path
    target.parent.mkdir(parents=True, exist_ok=True)
    temp = target.with_suffix(".tmp")
    temp.write_bytes(data)
    temp.replace(target)
    return target


def test_a_drain_uploads_what_is_queued_and_ends_when_closed(bench: Bench) -> None:
    paths: queue.Queue[Path] = queue.Queue(maxsize=2)
    with bench.uploader() as uploader, Drain(uploader, paths):
        for number in range(20):
            paths.put(finished(bench, f"d/{number}.pt", b"%d" % number))
    assert {info.path for info in bench.store.list()} == {f"d/{number}.pt" for number in range(20)}
    assert bench.store.get_bytes("d/7.pt") == b"7"


class HoldsItsFirstName(PosixFilesystem):
    """Waits between the contents of its first file and the name."""

    def __init__(self) -> None:
        self.held, self.go_on = threading.Event(), threading.Event()

    def rename(self, source: Path, target: Path) -> None:
        if not self.held.is_set():
            self.held.set()
            self.go_on.wait(10)
        super().rename(source, target)


def test_the_newest_file_of_a_path_lands_last(tmp_path: Path) -> None:
    filesystem = HoldsItsFirstName()
    # two stores, because one never gives two names at once
    slow = FolderStore("slow", tmp_path / "destination", filesystem)
    fast = FolderStore("fast", tmp_path / "destination")
    bench = Bench(slow, tmp_path / "staging")
    paths: queue.Queue[Path] = queue.Queue()
    with bench.uploader() as uploader, Drain(uploader, paths) as drain:
        paths.put(finished(bench, "a.pt", b"old"))
        until(filesystem.held.is_set)
        bench.store.store = fast
        paths.put(finished(bench, "a.pt", b"new, and longer"))
        # either it waits for the first, or (that would be wrong) it is there before
        until(lambda: "a.pt" in drain._again or fast.head("a.pt") is not None)
        filesystem.go_on.set()
    assert fast.get_bytes("a.pt") == b"new, and longer"


def test_a_drain_raises_every_failure_when_it_is_closed_and_uploads_the_rest(folder_bench: Bench) -> None:
    paths: queue.Queue[Path] = queue.Queue()
    uploader = folder_bench.uploader()
    drain = Drain(uploader, paths)
    paths.put(folder_bench.staging / "missing.pt")
    paths.put(folder_bench.staging.parent / "outside.pt")
    paths.put(finished(folder_bench, "fine.pt", b"fine"))
    with pytest.raises(ExceptionGroup) as raised:
        drain.close()
    assert {type(error) for error in raised.value.exceptions} == {StagingError, ConfigError}
    drain.close()
    uploader.close()
    assert [info.path for info in folder_bench.store.list()] == ["fine.pt"]
    assert folder_bench.store.read_checksum("fine.pt") == checksum_of([b"fine"])
