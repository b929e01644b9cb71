"""Places for runs, and the processes of a run's actors."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import ray_sink
from ray_sink import Limits, Sink, UploadOptions
from ray_sink.stores import open_store
from tests import credentials
from tests.servers import S3Server
from tests.waiting import until

LIMITS = Limits(takeover_s=5.0, drain_s=20.0)


@dataclass(frozen=True)
class Run:
    """Where a run goes, and what is found there."""

    dest: str | None
    staging: Path
    upload: UploadOptions

    def sink(self, **arguments: Any) -> Sink:
        chosen = {"staging": self.staging, "upload": self.upload, "limits": LIMITS, **arguments}
        return Sink(self.dest, **chosen)

    def outputs(self) -> dict[str, bytes]:
        """All objects at the destination, but for the sink's own."""
        store = open_store(self.dest or str(self.staging), self.upload)
        return {o.path: store.get_bytes(o.path) for o in store.list() if not o.path.startswith("_ray_sink/")}

    def manifest(self) -> ray_sink.Manifest:
        options, credentials = self.upload.storage_options, self.upload.credentials
        return ray_sink.open(self.dest or str(self.staging), storage_options=options, credentials=credentials)


@pytest.fixture(params=["staging", "folder", "s3"])
def run(request: pytest.FixtureRequest, tmp_path: Path, ray_cluster: None) -> Run:
    """A run into each kind of destination."""
    return make_run(request.param, request, tmp_path)


@pytest.fixture
def folder_run(request: pytest.FixtureRequest, tmp_path: Path, ray_cluster: None) -> Run:
    """A run into a folder."""
    return make_run("folder", request, tmp_path)


@pytest.fixture
def staging_run(request: pytest.FixtureRequest, tmp_path: Path, ray_cluster: None) -> Run:
    """A run that ends in its staging folder."""
    return make_run("staging", request, tmp_path)


def make_run(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    staging = tmp_path / "staging"
    staging.mkdir()
    if kind == "s3":
        server: S3Server = request.getfixturevalue("s3_server")
        credentials.offer(server)
        options = {"endpoint_url": server.endpoint, "region": server.region}
        upload = UploadOptions(credentials=credentials.FUNCTION, storage_options=options)
        # never by the environment: Ray reads it in this process, too, and dies where another thread just changes it
        bucket = request.getfixturevalue("s3_bucket")
        return Run(f"{bucket.url}/runs", staging, upload)
    if kind == "folder":
        return Run(str(tmp_path / "dest"), staging, UploadOptions())
    return Run(None, staging, UploadOptions())


def pids_of(shell: str) -> list[int]:
    """Processes of this session's actors of one class."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                title = (entry / "cmdline").read_bytes()
                mine = _session() in (entry / "environ").read_bytes()
            except OSError:
                continue
            if mine and title.startswith(f"ray::{shell}".encode()):
                found.append(int(entry.name))
    return found


def _session() -> bytes:
    return f"{credentials.VARIABLE}={os.environ[credentials.VARIABLE]}".encode()


def kill(shell: str) -> int:
    """SIGKILL one actor process of a class, and see it gone; its pid."""
    pid = pids_of(shell)[0]
    os.kill(pid, signal.SIGKILL)
    until(lambda: pid not in pids_of(shell), deadline_s=20)
    return pid


Killer = Callable[[], int]
