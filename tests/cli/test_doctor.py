from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ray_sink.doctor.findings import Finding, Status, Verdict, verdicts
from ray_sink.doctor.mounts import Mount, judge, mount_of
from ray_sink.doctor.watcher import REPLACED, Watcher, is_whole, new_name, sealed
from ray_sink.doctor.workplace import workplace
from ray_sink.filesystem import PosixFilesystem
from tests.cli.conftest import ROOT, call, run
from tests.faults.s3_proxy import Proxy, answer
from tests.servers import S3Bucket, S3Server
from tests.stores.conftest import sign_in
from tests.waiting import until


def found(answer: object, area: str) -> dict[str, str]:
    return {f["name"]: f["status"] for f in answer["findings"] if f["area"] == area}  # type: ignore[index]


def promised(answer: object) -> dict[str, str]:
    return {verdict["promise"]: verdict["verdict"] for verdict in answer["promises"]}  # type: ignore[index]


@pytest.fixture
def disk(staging: Path) -> Path:
    """A staging folder that is on a disk; some machines have /tmp in memory."""
    mount = mount_of(staging)
    if mount is None or mount.kind in ("tmpfs", "ramfs"):
        pytest.skip("temporary files are in memory here")
    return staging


def test_a_good_place_holds_and_nothing_is_left_behind(disk: Path, tmp_path: Path) -> None:
    answer = run("doctor", "--staging", disk, "--dest", tmp_path / "dest", "--json")
    assert answer.code == 0, answer.out
    assert set(answer.json) == {"ok", "staging", "dest", "versions", "promises", "findings"}
    assert promised(answer.json)["P1"] == promised(answer.json)["P3"] == promised(answer.json)["P7"] == "holds"
    staging = found(answer.json, "staging")
    for name in ("atomic rename", "fence", "exclusive create", "fsync", "append"):
        assert staging[name] == "ok"
    assert found(answer.json, "destination")["create-only puts"] == "ok"
    assert answer.json["versions"]["ray"] is not None
    assert sorted(tmp_path.rglob("*")) == [disk]


def test_a_strong_bucket_is_verified_and_left_empty(
    disk: Path, s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign_in(monkeypatch, s3_bucket.server)
    answer = call("doctor", "--staging", disk, "--dest", f"{s3_bucket.url}/runs", "--json")
    assert answer.code == 0, answer.err
    names = found(answer.json, "destination")
    assert [names[name] for name in ("create-only puts", "checksums", "multipart", "metadata")] == ["ok"] * 4
    assert s3_bucket.names() == []


def test_a_weak_bucket_is_size_checked_and_no_crash(
    disk: Path, rclone_s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign_in(monkeypatch, rclone_s3)
    bucket = rclone_s3.new_bucket()
    answer = call("doctor", "--staging", disk, "--dest", bucket.url, "--json")
    assert answer.code == 0, answer.err
    said = {f["name"]: f for f in answer.json["findings"] if f["area"] == "destination"}
    assert said["checksums"]["status"] == said["create-only puts"]["status"] == "weak"
    assert "size checked" in said["checksums"]["message"]
    assert [promised(answer.json)[promise] for promise in ("P2", "P3", "P7")] == ["weaker"] * 3
    text = call("doctor", "--dest", bucket.url)
    assert "size checked" in text.out
    assert bucket.names() == []


def test_a_destination_that_cannot_be_reached_is_a_no(monkeypatch: pytest.MonkeyPatch, s3_server: S3Server) -> None:
    sign_in(monkeypatch, s3_server, secret="wrong")
    bucket = s3_server.new_bucket()
    answer = call("doctor", "--dest", bucket.url, "--json")
    assert answer.code == 1
    assert found(answer.json, "destination") == {"reachable and writable": "failed"}
    assert promised(answer.json)["P2"] == "cannot hold"
    assert call("doctor", "--dest", "nosuch://bucket").code == 2
    assert call("doctor").code == 2


def test_a_destination_inside_the_staging_folder_is_refused_as_a_sink_does(staging: Path) -> None:
    answer = call("doctor", "--staging", staging, "--dest", staging / "dest")
    assert answer.code == 2
    assert "inside each other" in answer.err
    assert list(staging.iterdir()) == []


def test_a_staging_folder_that_is_missing_or_closed_is_a_no(tmp_path: Path) -> None:
    answer = call("doctor", "--staging", tmp_path / "none", "--json")
    assert answer.code == 1
    assert found(answer.json, "staging") == {"exists": "failed"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not os.access("/proc/self", os.R_OK), reason="no /proc")
def test_a_filesystem_that_takes_no_files_is_a_no() -> None:
    answer = call("doctor", "--staging", "/proc/self", "--json")
    assert answer.code == 1
    assert found(answer.json, "staging")["writable"] == "failed"


def test_files_in_memory_do_not_survive_a_power_cut(tmp_path: Path) -> None:
    mount = mount_of(Path("/dev/shm")) if os.path.isdir("/dev/shm") else None
    if mount is None or mount.kind != "tmpfs":
        pytest.skip("no tmpfs here")
    (finding,) = judge(mount, "staging")
    assert finding.status is Status.FAILED
    assert verdicts([finding])[1].verdict is Verdict.CANNOT_HOLD


@pytest.mark.parametrize(
    ("line", "status", "word"),
    [
        ("fuse rw - fuse mountpoint-s3 rw", Status.FAILED, "Mountpoint for Amazon S3"),
        ("x rw - fuse.gcsfuse bucket rw", Status.FAILED, "Cloud Storage FUSE"),
        ("x rw - fuse.s3fs s3fs rw", Status.FAILED, "s3fs-fuse"),
        ("x rw - fuse.rclone remote:bucket rw", Status.FAILED, "rclone mount"),
        ("x rw - fuse.seaweedfs 127.0.0.1:8888:/ rw", Status.FAILED, "SeaweedFS"),
        ("x rw - lustre 10.0.0.1@tcp:/fsx rw", Status.OK, "Lustre"),
        ("x rw - nfs4 server:/export rw,hard", Status.OK, "nfs4"),
        ("x rw - nfs4 server:/export rw,soft", Status.WEAK, "soft"),
        ("x rw - overlay overlay rw", Status.WEAK, "container"),
        ("x rw - ext4 /dev/sda1 rw", Status.OK, "every node"),
        ("x rw - strangefs thing rw", Status.NOTE, "nothing is known"),
    ],
)
def test_kinds_of_filesystems_are_named_with_the_way_out(tmp_path: Path, line: str, status: Status, word: str) -> None:
    place = tmp_path / "a b"
    place.mkdir()
    table = tmp_path / "mountinfo"
    escaped = str(place).replace(" ", "\\040")
    table.write_text(f"1 0 8:1 / / rw - ext4 /dev/root rw\n2 1 0:9 / {escaped} rw {line.partition(' ')[2]}\n")
    mount = mount_of(place / "..", table)
    assert mount is not None
    assert mount.folder == "/"
    mount = mount_of(place, table)
    finding = judge(mount, "staging")[0]
    assert finding.status is status
    assert word in finding.message
    assert status is not Status.FAILED or finding.advice


def test_the_last_of_several_mounts_on_one_folder_counts(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_text("1 0 8:1 / / rw - ext4 a rw\n2 0 0:9 / / rw shared:1 - nfs4 b rw,hard\nnot a line\n")
    assert mount_of(tmp_path, table) == Mount("/", "nfs4", "b", ("rw", "hard"))
    assert mount_of(tmp_path, tmp_path / "none") is None


def test_the_watcher_sees_torn_and_vanished_files(tmp_path: Path) -> None:
    whole = sealed(b"contents")
    assert is_whole(whole)
    assert not is_whole(whole[:-1])
    assert not is_whole(b"")
    watcher = Watcher(tmp_path)
    watcher.look()
    assert watcher.seen.reads == watcher.seen.vanished == 0
    (tmp_path / REPLACED).write_bytes(whole)
    (tmp_path / new_name(0)).write_bytes(whole[:-3])
    assert watcher.look()
    (tmp_path / REPLACED).unlink()
    assert not watcher.look()
    assert (watcher.seen.reads, watcher.seen.torn, watcher.seen.vanished, watcher.seen.published) == (2, 1, 1, 1)


def test_the_worst_finding_decides_a_promise() -> None:
    def finding(status: Status) -> Finding:
        return Finding("staging", "x", status, status.value, promises=("P1",))

    def verdict(*statuses: Status) -> Verdict:
        return verdicts(map(finding, statuses))[0].verdict

    assert verdict() is Verdict.NOT_CHECKED
    assert verdict(Status.NOTE) is Verdict.NOT_CHECKED
    assert verdict(Status.OK, Status.NOTE) is Verdict.HOLDS
    assert verdict(Status.OK, Status.WEAK) is Verdict.WEAKER
    assert verdict(Status.FAILED, Status.WEAK) is Verdict.CANNOT_HOLD


@contextmanager
def doctor_at_work(staging: Path) -> Iterator[subprocess.Popen[str]]:
    """A doctor that has begun to try things."""
    command = [sys.executable, "-m", "ray_sink.cli", "doctor", "--staging", str(staging), "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        until(lambda: bool(list(staging.glob("_ray_sink/doctor-*/new-000003"))), deadline_s=30)
        yield process
    finally:
        process.kill()
        process.communicate()


def test_what_a_doctor_left_that_was_killed_the_next_one_removes(disk: Path) -> None:
    with doctor_at_work(disk) as killed:
        killed.kill()
        killed.wait()
        assert len(list(disk.glob("_ray_sink/doctor-*"))) == 1
    assert call("doctor", "--staging", disk).code == 0
    assert list(disk.iterdir()) == []


def test_a_doctor_that_is_alive_is_left_alone_by_another(disk: Path) -> None:
    filesystem = PosixFilesystem()
    with workplace(filesystem, disk) as first:
        with workplace(filesystem, disk) as second:
            assert sorted(first.parent.iterdir()) == sorted([first, second])
        assert list(first.parent.iterdir()) == [first]
    assert list(disk.iterdir()) == []


@pytest.mark.parametrize(("operation", "doing"), [("ListObjectsV2", "list"), ("DeleteObject", "delete")])
def test_a_right_that_is_missing_is_named(
    s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch, operation: str, doing: str
) -> None:
    sign_in(monkeypatch, s3_bucket.server)
    with Proxy(s3_bucket.server) as proxy:
        fault = proxy.on(operation, answer(403, "AccessDenied"), times=None)
        told = call("doctor", "--dest", s3_bucket.url, "--endpoint-url", proxy.endpoint, "--json")
    assert fault.fired > 0
    assert told.code == 1
    (finding,) = [f for f in told.json["findings"] if f["area"] == "destination"]
    assert finding["status"] == "failed"
    assert finding["message"].startswith(doing)
