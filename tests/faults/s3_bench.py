"""An uploader, a real bucket, and the proxy between them; a reader on the other side of the bucket."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from ray_sink.config import UploadOptions
from ray_sink.records import MultipartUpload, UploadOutcome, UploadTask
from ray_sink.retry import Retry, RetryPolicy
from ray_sink.stores import Store, open_store
from ray_sink.uploader import Uploader
from tests.faults.s3_proxy import Proxy
from tests.servers import S3Bucket, S3Server
from tests.stores.conftest import sign_in, staged

MULTIPART_ABOVE = 5 * 2**20
ENGINES = ("auto", "fsspec")


def quick(attempts: int = 8) -> Retry:
    """Pauses of a real retry, shorter."""
    return Retry(RetryPolicy(attempts=attempts, first_s=0.02, most_s=0.2))


class Reader:
    """Reads every visible object over and over, and remembers what it saw.

    Attributes:
        seen: by name, each content that was ever there.
    """

    def __init__(self, client: Any, bucket: str, prefix: str) -> None:
        self.rounds = 0
        self.seen: dict[str, set[bytes]] = {}
        self._client = client
        self._at = {"Bucket": bucket, "Prefix": prefix}
        self._known: set[tuple[str, str, str]] = set()
        self._ended = threading.Event()
        self._broke: list[Exception] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._ended.wait(0.03):
                try:
                    self.look()
                except self._client.exceptions.ClientError as error:
                    # in the middle of a replacement the server may have neither body to show; the last look counts
                    if error.response["ResponseMetadata"]["HTTPStatusCode"] < 500:
                        raise
        except Exception as error:  # noqa: BLE001 raised by `end`
            self._broke.append(error)

    def look(self) -> None:
        """Read what is new."""
        for item in self._client.list_objects_v2(**self._at).get("Contents", ()):
            version = (item["Key"], item["ETag"], str(item["LastModified"]))
            if version not in self._known:
                with suppress(self._client.exceptions.NoSuchKey):
                    body = self._client.get_object(Bucket=self._at["Bucket"], Key=item["Key"])["Body"].read()
                    self._known.add(version)
                    self.seen.setdefault(item["Key"], set()).add(body)
        self.rounds += 1

    def end(self) -> None:
        """One last look, after everything."""
        if not self._ended.is_set():
            self._ended.set()
            self._thread.join()
            if self._broke:
                raise self._broke[0]
            self.look()


class Case:
    """One test's part of a bench: names, staged files and requests of its own.

    Attributes:
        bucket: its name.
        staging: the staging root.
        multiparts: multipart uploads that were told of, in order.
        reader: looks on from the beginning.
    """

    def __init__(self, bench: Bench, staging: Path) -> None:
        self.bench = bench
        self.store, self.proxy, self.client = bench.store, bench.proxy, bench.client
        self.bucket = bench.bucket.name
        self.staging = staging
        self.multiparts: list[MultipartUpload] = []
        self.prefix = f"{os.urandom(4).hex()}/"
        self.reader = Reader(bench.client, self.bucket, self.prefix)
        self._contents: dict[str, bytes] = {}

    def uploader(self, run_id: str = "run-1", *, attempts: int = 8) -> Uploader:
        return Uploader(
            self.store,
            self.staging,
            run_id,
            self.bench.options,
            on_multipart=self.multiparts.append,
            retry=quick(attempts),
        )

    def key(self, name: str) -> str:
        return self.prefix + name

    def local(self, name: str) -> Path:
        """Its staged file."""
        return self.staging / f"{self.prefix}{name}.npy"

    def task(self, name: str, size: int = 2000, *, attempt: str = "attempt-1", replace: bool = False) -> UploadTask:
        """A staged output of so many random bytes, in one file."""
        path = f"{self.prefix}{name}.npy"
        self._contents[path] = os.urandom(size)
        _, file = staged(self.staging, path, self._contents[path])
        return UploadTask(self.key(name), attempt, (file,), replace)

    def large(self, name: str = "large", **more: Any) -> UploadTask:
        """One of three parts."""
        return self.task(name, 2 * MULTIPART_ABOVE + 1000, **more)

    def upload(self, tasks: Sequence[UploadTask], *, attempts: int = 8) -> list[UploadOutcome]:
        outcomes: list[UploadOutcome] = []
        with self.uploader(attempts=attempts) as uploader:
            for task in tasks:
                uploader.submit(task, outcomes.append)
        return outcomes

    def asked(self, name: str) -> list[str]:
        """The operations on one output's object, in order."""
        return [request.operation for request in self.proxy.requests if request.key == f"{self.prefix}{name}.npy"]

    def put_by_another(self, name: str, data: bytes = b"another's") -> bytes:
        self.client.put_object(Bucket=self.bucket, Key=f"{self.prefix}{name}.npy", Body=data)
        return data

    def multipart_by_another(self, name: str) -> str:
        """The id of one under the name of an output; a part of it is there, too."""
        at = {"Bucket": self.bucket, "Key": f"{self.prefix}{name}.npy"}
        begun: str = self.client.create_multipart_upload(**at)["UploadId"]
        self.client.upload_part(**at, UploadId=begun, PartNumber=1, Body=b"theirs")
        return begun

    def open_multiparts(self) -> list[str]:
        found = self.client.list_multipart_uploads(Bucket=self.bucket, Prefix=self.prefix)
        return [upload["UploadId"] for upload in found.get("Uploads", ())]

    def check(
        self,
        outcomes: Sequence[UploadOutcome],
        *,
        failed: Sequence[str] = (),
        others: Mapping[str, bytes] | None = None,
        multiparts: Sequence[str] = (),
    ) -> None:
        """What must hold after every case.

        Args:
            outcomes: all of the case.
            failed: outputs that are reported as failed; all other outputs are there, whole.
            others: by output, what else is or was there under its name.
            multiparts: uploads in parts that are not ours, untouched.
        """
        self.reader.end()
        theirs = {f"{self.prefix}{name}.npy": data for name, data in (others or {}).items()}
        reported = sorted(outcome.key for outcome in outcomes if outcome.error is not None)
        expected = sorted(map(self.key, failed))
        assert reported == expected, [outcome.error for outcome in outcomes if outcome.error is not None]
        assert len(outcomes) == len({outcome.key for outcome in outcomes}) == len(self._contents), "I1"
        ours = {path: data for path, data in self._contents.items() if path.removesuffix(".npy") not in reported}
        assert _contents(self.client, self.bucket, self.prefix) == theirs | ours
        for path, versions in self.reader.seen.items():
            allowed = {data for data in (theirs.get(path), ours.get(path)) if data is not None}
            assert versions <= allowed, f"a reader saw something else under {path}"
        assert self.reader.rounds > 0
        assert sorted(self.open_multiparts()) == sorted(multiparts)


def _contents(client: Any, bucket: str, prefix: str) -> dict[str, bytes]:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    names = [item["Key"] for page in pages for item in page.get("Contents", ())]
    return {name: client.get_object(Bucket=bucket, Key=name)["Body"].read() for name in names}


class Bench:
    """A store that was opened through a proxy, and the real bucket behind it."""

    def __init__(self, bucket: S3Bucket, proxy: Proxy, options: Mapping[str, Any]) -> None:
        self.bucket = bucket
        self.proxy = proxy
        self.client = bucket.server.client()
        at = {"endpoint_url": proxy.endpoint, **options.get("storage_options", {})}
        self.options = UploadOptions(
            **{"concurrency": 8, "multipart_above_bytes": MULTIPART_ABOVE, **options, "storage_options": at}
        )
        self.store: Store = open_store(bucket.url, self.options)
        multipart = self.store._multipart  # type: ignore[attr-defined]
        # as small as servers take them, so that there are several
        multipart._part_bytes = 5 * 2**20
        multipart._retry = quick(4)

    @contextmanager
    def case(self, staging: Path) -> Iterator[Case]:
        """One test."""
        self.store.probe()
        self.proxy.forget()
        case = Case(self, staging)
        try:
            yield case
        finally:
            case.reader.end()


@contextmanager
def bench_at(server: S3Server, *, signed_in: bool = True, **options: Any) -> Iterator[Bench]:
    """A bench with a bucket of its own; its options are those of `UploadOptions`."""
    with pytest.MonkeyPatch.context() as patch, Proxy(server) as proxy:
        # the reader sees what a reader sees that does not compare checksums
        patch.setenv("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")
        if signed_in:
            sign_in(patch, server)
        bench = Bench(server.new_bucket(), proxy, options)
        try:
            yield bench
        finally:
            bench.store.close()


def events(caplog: pytest.LogCaptureFixture, name: str) -> list[dict[str, Any]]:
    """Fields of all events of a name."""
    return [record.fields for record in caplog.records if getattr(record, "event", "") == name]  # type: ignore[attr-defined]
