from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
from pathlib import Path

import boto3
import pytest
from awscrt import checksums
from botocore.exceptions import ClientError

from tests.servers import S3Bucket, S3Server, or_skip
from tests.waiting import until


def crc64(data: bytes) -> str:
    return base64.b64encode(checksums.crc64nvme(data).to_bytes(8, "big")).decode()


def status(error: ClientError) -> int:
    code: int = error.response["ResponseMetadata"]["HTTPStatusCode"]
    return code


def is_running(pid: int) -> bool:
    try:
        # The state follows the name; a zombie has ended and only waits for its parent to look.
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except FileNotFoundError:
        return False


def client_and_bucket(server: S3Server) -> tuple[boto3.client, str]:
    return server.client(), server.new_bucket().name


def test_what_is_put_is_what_is_got(s3_bucket: S3Bucket) -> None:
    s3_bucket.server.client().put_object(Bucket=s3_bucket.name, Key="a/b.pt", Body=b"\x00bytes")
    assert s3_bucket.names() == ["a/b.pt"]
    assert s3_bucket.read("a/b.pt") == b"\x00bytes"


def test_a_bucket_is_empty_and_ones_own(s3_server: S3Server) -> None:
    one, other = s3_server.new_bucket(), s3_server.new_bucket()
    one.server.client().put_object(Bucket=one.name, Key="key", Body=b"")
    assert other.names() == []


def test_a_second_create_only_put_is_refused_with_412(s3_bucket: S3Bucket) -> None:
    client = s3_bucket.server.client()
    client.put_object(Bucket=s3_bucket.name, Key="key", Body=b"first", IfNoneMatch="*")
    with pytest.raises(ClientError) as refused:
        client.put_object(Bucket=s3_bucket.name, Key="key", Body=b"second", IfNoneMatch="*")
    assert status(refused.value) == 412
    assert s3_bucket.read("key") == b"first"


def test_a_right_checksum_is_taken_and_a_wrong_one_refused_with_400(s3_bucket: S3Bucket) -> None:
    client = s3_bucket.server.client()
    client.put_object(Bucket=s3_bucket.name, Key="right", Body=b"body", ChecksumCRC64NVME=crc64(b"body"))
    with pytest.raises(ClientError) as refused:
        client.put_object(Bucket=s3_bucket.name, Key="wrong", Body=b"body", ChecksumCRC64NVME=crc64(b"else"))
    assert status(refused.value) == 400
    assert s3_bucket.names() == ["right"]


def test_a_wrong_secret_is_refused_with_403(s3_bucket: S3Bucket) -> None:
    server = s3_bucket.server
    stranger = S3Server(server.endpoint, server.access_key, "wrong", server.region)
    with pytest.raises(ClientError) as refused:
        stranger.client().put_object(Bucket=s3_bucket.name, Key="key", Body=b"body")
    assert status(refused.value) == 403


def test_the_weak_store_overwrites_what_a_create_only_put_should_have_kept(rclone_s3: S3Server) -> None:
    client, bucket = client_and_bucket(rclone_s3)
    client.put_object(Bucket=bucket, Key="key", Body=b"first", IfNoneMatch="*")
    client.put_object(Bucket=bucket, Key="key", Body=b"second", IfNoneMatch="*")
    assert client.get_object(Bucket=bucket, Key="key")["Body"].read() == b"second"


def test_a_missing_server_fails_in_ci_and_skips_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with (
        pytest.raises(pytest.fail.Exception, match="pip install no-such-bin"),
        or_skip("no-such-server", "no-such-bin"),
    ):
        pass
    monkeypatch.setenv("CI", "false")
    with pytest.raises(pytest.skip.Exception), or_skip("no-such-server", "no-such-bin"):
        pass


def test_a_server_does_not_outlive_a_process_that_was_killed(tmp_path: Path) -> None:
    owner = f"""
import os, pathlib, signal
from seaweedfs import ServerProcess
folder = pathlib.Path({str(tmp_path / "server")!r})
folder.mkdir()
script = "echo $$ > pid.part; mv pid.part pid; exec tail -f /dev/null"
server = ServerProcess(["/bin/sh", "-c", script], folder=folder)
server.wait_until((folder / "pid").exists, deadline_s=30)
os.write(1, (folder / "pid").read_bytes())
os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = subprocess.run(
        [sys.executable, "-c", owner],
        env={"PYTHONPATH": os.pathsep.join(sys.path), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    until(lambda: not is_running(int(ended.stdout)))
    until(lambda: not (tmp_path / "server").exists())


def test_ray_computes_on_the_cluster_of_the_session(ray_cluster: None) -> None:
    import ray

    assert ray.cluster_resources()["CPU"] == 4
    doubled = ray.data.range(3).map(lambda row: {"id": row["id"] * 2})
    assert sorted(row["id"] for row in doubled.take_all()) == [0, 2, 4]  # Ray Data keeps no order
