"""Whole runs to a bucket, each in a process of its own, with the proxy in between."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.faults import job
from tests.faults.plan import Plan
from tests.faults.processes import Jobs, Process
from tests.faults.runs import Run
from tests.faults.s3_proxy import Proxy
from tests.servers import S3Bucket


class S3Jobs(Jobs):
    """Starts jobs that are signed in."""

    def __init__(self, environment: dict[str, str]) -> None:
        super().__init__()
        self._environment = environment

    def start(self, *argv: object, **options: Any) -> Process:
        """See `Jobs.start`; nothing is injected below them."""
        assert not options
        folder = Path(tempfile.mkdtemp(prefix="job-"))
        mine, its = self._context.Pipe()
        words = [str(argument) for argument in argv]
        inner = self._context.Process(target=_run, args=(words, its, str(folder / "out"), self._environment))
        inner.start()
        its.close()
        process = Process(inner, mine, folder / "out", folder / "log")
        self._started.append(process)
        process.begin()
        return process


def _run(argv: list[str], go: Connection, out: str, environment: dict[str, str]) -> None:
    fd = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.environ |= environment
    os.read(go.fileno(), 1)
    sys.exit(job.main(argv))


class Objects:
    """A bucket as its readers see it: past the proxy. What has not changed since it was listed is not read twice."""

    def __init__(self, bucket: S3Bucket) -> None:
        self.client = bucket.server.client()
        self.bucket = bucket.name
        self._listed: dict[str, str] = {}
        self._read: dict[tuple[str, str], bytes] = {}
        self._pace = threading.Event()

    def names(self) -> list[str]:
        self._pace.wait(0.02)  # a reader that never rests would take the server for itself
        self._listed = self.listed()
        return list(self._listed)

    def listed(self) -> dict[str, str]:
        """What tells one version of an object from the next, by name."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        found = [item for page in pages for item in page.get("Contents", ())]
        return {item["Key"]: f"{item['ETag']} {item['LastModified']}" for item in found}

    def read(self, name: str) -> bytes:
        version = self._listed.get(name, "")
        if (name, version) not in self._read:
            try:
                answer = self.client.get_object(Bucket=self.bucket, Key=name)
            except self.client.exceptions.NoSuchKey as error:
                raise FileNotFoundError(name) from error
            self._read[name, version] = answer["Body"].read()
        return self._read[name, version]

    def put(self, name: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=name, Body=data)

    def begin_multipart(self, name: str) -> str:
        """What somebody else began under that name."""
        begun: str = self.client.create_multipart_upload(Bucket=self.bucket, Key=name)["UploadId"]
        return begun

    def parts_left(self) -> list[str]:
        """Names under which an upload that was not completed holds a part."""
        found = self.client.list_multipart_uploads(Bucket=self.bucket).get("Uploads", [])
        return [
            upload["Key"]
            for upload in found
            if self.client.list_parts(Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"]).get("Parts")
        ]

    def multiparts(self) -> list[str]:
        found = self.client.list_multipart_uploads(Bucket=self.bucket).get("Uploads", [])
        return [upload["UploadId"] for upload in found]


def run_to(bucket: S3Bucket, proxy: Proxy, jobs: S3Jobs, folder: Path, plan: Plan, *more: object) -> Run:
    """A run to an empty bucket; `Run.checker.dest` are its `Objects`."""
    through = ("--storage-option", f"endpoint_url={proxy.endpoint}", "--multipart-above-bytes", 5 * 2**20)
    return Run.at(jobs, folder, plan, *through, *more, bucket=(bucket.url, Objects(bucket)))
