"""Every process of a run dies once by SIGKILL, and nothing is lost or doubled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray.exceptions import ActorUnschedulableError, OutOfMemoryError, RayError, RaySystemError

from ray_sink import State, WriterOptions
from ray_sink.config import MiB
from ray_sink.errors import OutputsFailed, SinkError, StagingError
from ray_sink.formats.npy import NpyFormat
from ray_sink.probes import probe_name
from ray_sink.records import MultipartUpload
from ray_sink.runtime import starts
from ray_sink.runtime.messages import WriterInfo
from ray_sink.stores import open_store
from tests.faults.s3_proxy import Proxy, answer
from tests.fields import field
from tests.runtime.conftest import LIMITS, Run, kill, pids_of
from tests.servers import S3Bucket
from tests.waiting import until

N = 40


def check_all(run: Run, n: int = N) -> None:
    manifest = run.manifest()
    assert list(manifest) == [f"k/{i:03d}" for i in range(n)]
    outputs = run.outputs()
    assert outputs.keys() == {f"k/{i:03d}.pt" for i in range(n)}
    for i in range(n):
        assert torch.equal(manifest.load(f"k/{i:03d}"), field(i, 20_000))  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "shell"),
    [("s3", "WriterShell"), ("s3", "UploaderShell"), ("folder", "Coordinator"), ("staging", "Coordinator")],
    indirect=["run"],
)
def test_an_actor_dies_in_the_middle(run: Run, shell: str) -> None:
    with run.sink(writers=WriterOptions(per_node=2)) as sink, sink.handle() as handle:
        tickets = [handle.write(f"k/{i:03d}", field(i, 20_000)) for i in range(N // 2)]
        tickets[0].result(60)
        killed = kill(shell)
        tickets += [handle.write(f"k/{i:03d}", field(i, 20_000)) for i in range(N // 2, N)]
        assert {ticket.result(120).key for ticket in tickets} == {f"k/{i:03d}" for i in range(N)}
        assert killed not in pids_of(shell)
    check_all(run)


def test_a_writer_that_dies_while_nobody_writes_is_replaced(folder_run: Run) -> None:
    with folder_run.sink() as sink, sink.handle() as handle:
        handle.write("k/000", field(0, 20_000)).result(60)
        killed = kill("WriterShell")
        until(lambda: bool(set(pids_of("WriterShell")) - {killed}), deadline_s=60)
        for i in range(1, N):
            handle.write(f"k/{i:03d}", field(i, 20_000))
    check_all(folder_run)


def held_format(folder: Path) -> Any:
    """Says that it is asked to encode, and waits while there is a file ``hold``. Travels by value."""

    class Held(NpyFormat):
        def encode(self, value: Any, file: Any) -> Any:
            (folder / "asked").touch()
            while (folder / "hold").exists():
                time.sleep(0.05)
            return super().encode(value, file)

    return Held()


def test_what_a_writer_that_died_had_reserved_in_staging_is_free(folder_run: Run, tmp_path: Path) -> None:
    (tmp_path / "hold").touch()
    limits = replace(LIMITS, staging_bytes=MiB)
    with folder_run.sink(save_format=held_format(tmp_path), limits=limits) as sink, sink.handle() as handle:
        ticket = handle.write("k/000", field(0, 150_000))
        until(lambda: (tmp_path / "asked").exists(), deadline_s=60)
        kill("WriterShell")
        (tmp_path / "hold").unlink()
        assert ticket.result(60).key == "k/000"


@pytest.mark.parametrize("run", ["folder", "s3"], indirect=True)
def test_what_an_uploader_left_that_died_on_its_first_look_at_the_store_is_gone_in_the_end(run: Run) -> None:
    probe = f"_ray_sink/{probe_name()}"
    store = open_store(run.dest or "", run.upload)
    with run.sink() as sink, sink.handle() as handle:
        handle.write("k/000", field(0)).result(60)
        store.put_bytes(probe, b"left", replace=True)
    assert probe not in {info.path for info in store.list()}


def blocker_of(num_cpus: int) -> Any:
    class Blocking:
        """Travels by value: the workers do not import the tests."""

        def there(self) -> bool:
            return True

    made: Any = ray.remote(num_cpus=num_cpus)(Blocking)
    return made.remote()


def test_where_no_node_has_room_for_the_only_writers_successor_producers_wait(
    folder_run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with folder_run.sink(writers=WriterOptions(num_cpus=3)) as sink, sink.handle() as handle:
        handle.write("k/000", field(0, 20_000)).result(60)
        blocker = blocker_of(3)  # it gets its room when the writer is gone
        with monkeypatch.context() as patched:
            patched.setattr(starts, "_START_S", 0.5)
            kill("WriterShell")
            ray.get(blocker.there.remote(), timeout=60)
            tickets = [handle.write(f"k/{i:03d}", field(i, 20_000)) for i in range(1, N)]
            until(lambda: "writer.waiting" in caplog.messages, deadline_s=60)
            assert not any(ticket.done() for ticket in tickets)
            ray.kill(blocker)
            for ticket in tickets:
                ticket.result(60)
    check_all(folder_run)


def test_for_the_only_writers_successor_they_wait_no_longer_than_for_storage(
    folder_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = folder_run.sink(writers=WriterOptions(num_cpus=3), limits=replace(LIMITS, storage_wait_s=2))
    handle = sink.handle()
    handle.write("k/000", field(0, 20_000)).result(60)
    blocker = blocker_of(3)
    with monkeypatch.context() as patched:
        patched.setattr(starts, "_START_S", 0.5)
        kill("WriterShell")
        ray.get(blocker.there.remote(), timeout=60)
        ticket = handle.write("k/001", field(1, 20_000))
        with pytest.raises(StagingError, match=r"no writer could be placed .* within 2 s"):
            ticket.result(60)
    ray.kill(blocker)
    with pytest.raises(OutputsFailed, match="k/001"):
        handle.close()
    with pytest.raises(OutputsFailed, match="k/001"):
        sink.close()


def test_every_writer_dies_while_it_has_work(folder_run: Run) -> None:
    with folder_run.sink() as sink, sink.handle() as handle:
        handle.write("k/000", field(0, 20_000)).result(60)
        (pid,) = pids_of("WriterShell")
        os.kill(pid, signal.SIGSTOP)  # what comes now is certainly unanswered
        tickets = [handle.write(f"k/{i:03d}", field(i, 20_000)) for i in range(1, N)]
        os.kill(pid, signal.SIGKILL)
        assert all(ticket.result(120).state in (State.STAGED, State.UPLOADED) for ticket in tickets)
    check_all(folder_run)


@pytest.mark.parametrize(
    "error",
    [
        OutOfMemoryError("worker(s) were killed due to the node running low on memory"),
        ActorUnschedulableError("the node specified doesn't exist any more"),
        RaySystemError(OSError("Broken pipe")),
    ],
    ids=["memory monitor", "its uploader cannot start", "its raylet is gone"],
)
def test_a_writer_that_is_cut_off_from_ray_is_one_that_died(folder_run: Run, error: RayError) -> None:
    class Ended:
        """Ray says this of an actor that its monitor has killed, or such a one says it while its node goes."""

        def write(self, submission: object, payload: object) -> None:
            raise error

    with folder_run.sink() as sink, sink.handle() as handle:
        handle.write("k/000", field(0, 20_000)).result(60)
        connection = handle._connection
        assert connection is not None
        connection._route._writers = [WriterInfo("ended", "", actor=ray.remote(Ended).remote())]
        tickets = [handle.write(f"k/{i:03d}", field(i, 20_000)) for i in range(1, N)]
        assert all(ticket.result(120).state in (State.STAGED, State.UPLOADED) for ticket in tickets)
    check_all(folder_run)


def test_what_an_unforeseen_error_of_a_writer_says_is_short_and_its_traceback_is_kept(folder_run: Run) -> None:
    class Odd:
        def write(self, submission: object, payload: object) -> None:
            raise IndexError("no such row")

    with pytest.raises(OutputsFailed), folder_run.sink() as sink, sink.handle() as handle:  # noqa: PT012
        handle.write("k/000", field(0, 20_000)).result(60)
        connection = handle._connection
        assert connection is not None
        connection._route._writers = [WriterInfo("odd", "", actor=ray.remote(Odd).remote())]
        with pytest.raises(SinkError) as caught:
            handle.write("k/001", field(1, 20_000)).result(60)
        assert str(caught.value) == "key 'k/001': its writer failed: IndexError: no such row"
        assert "in write" in str(caught.value.__cause__)


@pytest.mark.parametrize("run", ["s3"], indirect=True)
def test_uploads_in_parts_that_dead_uploaders_left_are_aborted_before_the_seal(run: Run, s3_bucket: S3Bucket) -> None:
    client = s3_bucket.server.client()

    def begun(path: str) -> MultipartUpload:
        begin = client.create_multipart_upload(Bucket=s3_bucket.name, Key=f"runs/{path}")
        return MultipartUpload(path, begin["UploadId"])

    theirs = begun("k/of-others").upload_id
    with run.sink(upload=replace(run.upload, multipart_above_bytes=5 * 2**20)) as sink, sink.handle() as handle:
        assert sink._actors is not None
        for _ in range(2):  # as an uploader does, and dies, and the next one, too
            ray.get(sink._actors.coordinator.multipart_started.remote(begun("k/large.pt")))
        handle.write("k/large", torch.arange(2**20))
    left = client.list_multipart_uploads(Bucket=s3_bucket.name).get("Uploads", ())
    assert [upload["UploadId"] for upload in left] == [theirs]
    assert torch.equal(run.manifest().load("k/large"), torch.arange(2**20))  # type: ignore[arg-type]


@pytest.mark.parametrize("run", ["s3"], indirect=True)
def test_an_upload_in_parts_that_an_uploader_may_not_abort_ends_no_run(run: Run, s3_bucket: S3Bucket) -> None:
    begun = s3_bucket.server.client().create_multipart_upload(Bucket=s3_bucket.name, Key="runs/k/large.pt")["UploadId"]
    with Proxy(s3_bucket.server) as proxy:
        refused = proxy.on("AbortMultipartUpload", answer(403, "AccessDenied"), key="large.pt", times=None)
        options = {**run.upload.storage_options, "endpoint_url": proxy.endpoint}
        upload = replace(run.upload, storage_options=options, multipart_above_bytes=5 * 2**20)
        with run.sink(upload=upload) as sink, sink.handle() as handle:
            assert sink._actors is not None
            ray.get(sink._actors.coordinator.multipart_started.remote(MultipartUpload("k/large.pt", begun)))
            for shell in ("Coordinator", "UploaderShell"):  # the next lives find it
                kill(shell)
            until(lambda: refused.fired > 0, deadline_s=60)
            refused.lift()
            handle.write("k/large", torch.arange(2**20))
    assert torch.equal(run.manifest().load("k/large"), torch.arange(2**20))  # type: ignore[arg-type]
    left = s3_bucket.server.client().list_multipart_uploads(Bucket=s3_bucket.name).get("Uploads", ())
    assert [upload["Key"] for upload in left] == []


SCRIPT = """
import sys
from pathlib import Path
import ray
from ray_sink import Limits, Sink
from tests.fields import field

ray.init(address=sys.argv[1], log_to_driver=False)
dest, staging, stop, mark = sys.argv[2], sys.argv[3], int(sys.argv[4]), Path(sys.argv[5])
with Sink(dest, staging=staging, limits=Limits(takeover_s=5)) as sink, sink.handle() as handle:
    for ticket in [handle.write(f"k/{i:03d}", field(i, 20_000)) for i in range(stop)]:
        ticket.result(60)
    mark.write_text("acknowledged")
    input()
"""


@pytest.mark.slow
def test_a_killed_drivers_run_is_taken_over(folder_run: Run, tmp_path: Path) -> None:
    import ray

    address = ray.get_runtime_context().gcs_address
    assert folder_run.dest is not None
    mark = tmp_path / "mark"

    arguments = [address, folder_run.dest, str(folder_run.staging), str(N // 2), str(mark)]
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments], stdin=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as driver:
        until(mark.exists, deadline_s=120)
        driver.send_signal(signal.SIGKILL)
    with folder_run.sink() as sink, sink.handle() as handle:
        for i in range(N):
            handle.write(f"k/{i:03d}", field(i, 20_000))
    check_all(folder_run)
    assert folder_run.manifest().seal.epoch == 2
    assert folder_run.manifest().seal.conflicts.retries == N // 2
