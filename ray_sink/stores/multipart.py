"""Large files on S3: parts, each with its checksum, and the whole one's at the end.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/mpuoverview.html
"""

from __future__ import annotations

import concurrent.futures
import errno
import os
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from ray_sink.checksum import checksum_of, to_base64
from ray_sink.errors import DestinationError, ObjectMissingError, StoreError, StoreUnavailableError
from ray_sink.events import emit
from ray_sink.records import FileRecord, MultipartUpload
from ray_sink.retry import Retry, RetryPolicy, retried
from ray_sink.stores.replies import PART
from ray_sink.stores.s3_objects import S3Objects
from ray_sink.stores.staged import staged_chunks

PART_BYTES = 32 * 2**20
_MOST_PARTS = 10_000
_IN_FLIGHT = 4
# a part waits out some 20 s: beginning again would send all the others once more, in the middle of a storm
_PART_POLICY = RetryPolicy(attempts=8, total_s=60)
_ABORTS = 5

Future = concurrent.futures.Future[dict[str, Any]]


class MultipartPut:
    """Puts files in parts and aborts what it cannot complete.

    What cannot be aborted now is aborted before the next put under its name; the journal knows it, too.
    """

    def __init__(self, objects: S3Objects, *, part_bytes: int = PART_BYTES, retry: Retry | None = None) -> None:
        self._objects = objects
        self._part_bytes = part_bytes
        self._retry = retry or Retry(_PART_POLICY)
        self._left: dict[str, list[MultipartUpload]] = {}

    def held_bytes(self, size_bytes: int) -> int:
        """Bytes of memory that a put of a file of `size_bytes` holds."""
        # those in flight, and the one being read
        return min(size_bytes, self._part_size(size_bytes) * (_IN_FLIGHT + 1))

    def put(
        self,
        local: Path,
        file: FileRecord,
        *,
        metadata: Mapping[str, str],
        create_only: bool,
        checksum: bool,
        on_multipart: Callable[[MultipartUpload], None],
    ) -> None:
        """Put `local` under ``file.path``; raises as `Store.put_file` does.

        Args:
            local: the staged file.
            file: what it must be.
            metadata: header values, encoded already.
            create_only: ask the server to refuse an existing name when the upload is completed.
            checksum: send checksums along.
            on_multipart: called with the upload's id before the first part.
        """
        if not os.path.lexists(local):
            # before an upload is opened for it
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(local))
        self._abort_left(file.path)
        arguments = self._objects.creation_arguments(metadata)
        if checksum:
            arguments |= {"ChecksumAlgorithm": "CRC64NVME", "ChecksumType": "FULL_OBJECT"}
        answer = self._objects.request("put", file.path, "create_multipart_upload", **arguments)
        upload = MultipartUpload(file.path, answer["UploadId"])
        try:
            on_multipart(upload)
            parts = self._send(local, file, upload, checksum=checksum)
            self._complete(file, upload, parts, create_only=create_only, checksum=checksum)
        except BaseException as error:
            # the caller's error is the one that matters
            try:
                self.abort(upload)
            except StoreError as second:
                if isinstance(second, StoreUnavailableError):
                    self._left.setdefault(file.path, []).append(upload)
                error.add_note(f"and its multipart upload {upload.upload_id} could not be aborted: {second}")
            raise

    def _send(self, local: Path, file: FileRecord, upload: MultipartUpload, *, checksum: bool) -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = []
        in_flight: deque[tuple[int, bytes, str, Future]] = deque()

        def start(number: int, data: bytes, sum_: str) -> Future:
            extra = {"ChecksumCRC64NVME": sum_} if checksum else {}
            return self._objects.start(
                PART, file.path, "upload_part", UploadId=upload.upload_id, PartNumber=number, Body=data, **extra
            )

        def finish() -> None:
            number, data, sum_, first = in_flight.popleft()
            try:
                answer = self._retry.call(
                    lambda attempt: (first if attempt == 1 else start(number, data, sum_)).result(),
                    on_failure=lambda failed: emit(retried(file.path, failed, part=number)),
                )
            except ObjectMissingError as error:
                # a lifecycle rule, or somebody who cleans up: no part can be sent any more
                raise StoreUnavailableError(f"{error}: the upload was removed", path=file.path) from error
            part = {"PartNumber": number, "ETag": answer["ETag"]}
            parts.append(part | {"ChecksumCRC64NVME": sum_} if checksum else part)

        try:
            with closing(staged_chunks(local, file, self._part_size(file.bytes))) as chunks:
                for number, data in enumerate(chunks, 1):
                    sum_ = to_base64(checksum_of([data]))
                    in_flight.append((number, data, sum_, start(number, data, sum_)))
                    if len(in_flight) >= _IN_FLIGHT:
                        finish()
            while in_flight:
                finish()
        finally:
            # parts that still run would land after the abort
            for *_, future in in_flight:
                future.cancel()
            concurrent.futures.wait([future for *_, future in in_flight])
        return parts

    def _complete(
        self,
        file: FileRecord,
        upload: MultipartUpload,
        parts: list[dict[str, Any]],
        *,
        create_only: bool,
        checksum: bool,
    ) -> None:
        arguments: dict[str, Any] = {"IfNoneMatch": "*"} if create_only else {}
        if checksum:
            arguments |= {
                "ChecksumCRC64NVME": to_base64(file.checksum),
                "ChecksumType": "FULL_OBJECT",
                "MpuObjectSize": file.bytes,
            }
        answer = self._objects.request(
            "put",
            file.path,
            "complete_multipart_upload",
            UploadId=upload.upload_id,
            MultipartUpload={"Parts": parts},
            **arguments,
        )
        told = answer.get("ChecksumCRC64NVME")
        if "ETag" not in answer or (checksum and told and told != to_base64(file.checksum)):
            # 200 is sent before the server knows: only a whole answer is a success
            raise StoreUnavailableError(
                f"put {file.path}: the server's answer to the last request does not name the object", path=file.path
            )

    def abort(self, upload: MultipartUpload) -> None:
        """Abort `upload`, and again if a part raced the first abort; nothing happens if it is gone."""
        may_list = True
        for _ in range(_ABORTS):
            try:
                self._ask(upload, "abort_multipart_upload")
                if may_list and not self._ask(upload, "list_parts", MaxParts=1).get("Parts"):
                    return
            except ObjectMissingError:
                return
            except DestinationError:
                if not may_list:
                    raise
                # the right to list may be missing: then abort until it is gone, as often as we would have looked
                may_list = False
        if may_list:
            raise StoreUnavailableError(
                f"abort {upload.path}: parts keep arriving in {upload.upload_id}", path=upload.path
            )

    def sweep(self, prefix: str) -> None:
        """Abort all uploads whose path begins with `prefix`, where the server lets us list and abort them."""
        try:
            for upload in list(self._objects.uploads(prefix)):
                self.abort(upload)
        except StoreError:
            # a probe of some bytes is left to the bucket's lifecycle rules; no run should fail for it
            return

    def _ask(self, upload: MultipartUpload, operation: str, **arguments: Any) -> dict[str, Any]:
        return self._retry.call(
            lambda _: self._objects.request("abort", upload.path, operation, UploadId=upload.upload_id, **arguments)
        )

    def _abort_left(self, path: str) -> None:
        """Nobody else puts under `path`, so no lock is needed."""
        while left := self._left.get(path):
            self.abort(left[-1])
            left.pop()
        self._left.pop(path, None)

    def _part_size(self, size_bytes: int) -> int:
        # as few as 10,000 parts, in whole MiB
        least = -(-size_bytes // _MOST_PARTS)
        return max(self._part_bytes, -(-least // 2**20) * 2**20)
