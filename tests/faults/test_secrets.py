"""Row 45: a secret that the uploader signs in with is found nowhere else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from seaweedfs import free_ports

import tests.credentials
from tests.servers import S3Bucket, S3Server

pytestmark = [pytest.mark.row(45), pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    # the path of a unix socket holds 107 bytes and Ray's own part of it takes 70
    folder = Path(tempfile.mkdtemp(prefix="rs-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("engine", ["obstore", "fsspec"])
def test_no_log_journal_error_or_argument_shows_a_secret(
    engine: str, s3_server: S3Server, s3_bucket: S3Bucket, tmp_path: Path, ray_folder: Path
) -> None:
    tests.credentials.offer(s3_server)
    staging = tmp_path / "staging"
    staging.mkdir()
    command = [sys.executable, "-m", "tests.faults.secret_job", "--engine", engine, "--temp", ray_folder]
    command += ["--dashboard-port", free_ports(1)[0]]
    command += ["--staging", staging, "--dest", f"{s3_bucket.url}/runs", "--endpoint", s3_server.endpoint]
    command += ["--credentials", tests.credentials.FUNCTION, "--wrong-credentials", "tests.credentials:wrong"]
    done = subprocess.run(
        [*map(str, command)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "RAY_BACKEND_LOG_LEVEL": "debug", "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 0, "\n".join(line for line in done.stderr.splitlines() if "pid=" not in line)[-3000:]
    facts = json.loads(done.stdout.splitlines()[-1])

    where = {"output": done.stdout + done.stderr, "state API": facts["told"], "error": facts["refused"]}
    for folder in (ray_folder, staging):
        where |= {str(path): path.read_bytes().decode(errors="replace") for path in folder.rglob("*") if path.is_file()}
    where |= {name: s3_bucket.read(name).decode(errors="replace") for name in s3_bucket.names()}

    # all of it was really there to be found
    assert facts["outputs"] == 5
    assert "DestinationError" in facts["refused"], facts["refused"]
    for said in ("UploaderShell", "Coordinator", "WriterShell", tests.credentials.FUNCTION):
        assert any(said in text for text in where.values()), said
    assert any("DEBUG" in text for name, text in where.items() if "worker" in name)

    wrong = tests.credentials.wrong()
    del wrong["access_key_id"]
    for secret in (s3_server.secret_key, *wrong.values()):
        assert [name for name, text in where.items() if secret in text] == []
