"""Finding out, with a few small objects, what a server keeps its word on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray_sink.checksum import checksum_of, to_base64
from ray_sink.errors import (
    DestinationError,
    DestinationUnavailableError,
    ObjectExistsError,
    StoreError,
    StoreUnavailableError,
)
from ray_sink.keys import RESERVED
from ray_sink.probes import PROBE, TRIES, probe_name
from ray_sink.records import MultipartUpload, Verification
from ray_sink.retry import Retry, RetryPolicy
from ray_sink.stores.base import Capabilities
from ray_sink.stores.metadata import encoded
from ray_sink.stores.multipart import MultipartPut
from ray_sink.stores.object_store import Findings
from ray_sink.stores.objects import Objects
from ray_sink.stores.s3_objects import S3Objects

_PATIENCE = RetryPolicy(attempts=4, total_s=4, most_s=1)
_DATA = b"ray_sink looks what this store can do; this object is deleted at once"
_WRONG = checksum_of([b"something else"])
_METADATA = {"sinkprobe": "a b%20ü/数"}


class Prober:
    """Probes one bucket through the engine that will be used.

    Args:
        url: the destination.
        objects: the engine.
        s3: S3's own client, which can send a checksum that is wrong; None for servers that are no S3.
        multipart: how large files go there.
    """

    def __init__(
        self,
        url: str,
        objects: Objects,
        *,
        s3: S3Objects | None,
        multipart: MultipartPut | None,
        retry: Retry | None = None,
    ) -> None:
        self._url = url
        self._objects = objects
        self._s3 = s3
        self._multipart = multipart
        self._retry = retry or Retry(_PATIENCE)

    def __call__(self) -> Findings:
        """Probe.

        Raises:
            DestinationUnavailableError: it cannot be reached. Who starts anew in the middle of a run waits for it.
            DestinationError: it cannot be read, written or cleaned.
        """
        try:
            return self._retry.call(lambda _: self._look())
        except StoreUnavailableError as error:
            raise DestinationUnavailableError(
                f"{error}. The destination cannot be reached from where the uploader runs: check endpoint_url, its"
                " port and scheme, ca_bundle, the network and proxies in between",
                slow_down=error.slow_down,
            ) from error
        except (ObjectExistsError, DestinationError):
            raise
        except StoreError as error:
            raise DestinationError(f"{error}. The destination cannot be used as it is configured") from error

    def _look(self) -> Findings:
        # a server that makes buckets on demand must not make one for a misspelt name: ask before putting
        for _ in self._objects.list(f"{RESERVED}/{PROBE}"):
            break
        names: list[str] = []

        def new_name() -> str:
            names.append(f"{RESERVED}/{probe_name()}")
            return names[-1]

        try:
            found = self._find(new_name)
        except StoreError as error:
            try:
                self._delete(names)
            except StoreError as second:
                error.add_note(f"and what the probe put there could not be deleted: {second}")
            raise
        self._delete(names)
        return found

    def _delete(self, names: list[str]) -> None:
        for name in names:
            self._objects.delete(name)

    def _find(self, new_name: Callable[[], str]) -> Findings:
        name, create_only, checksum = self._first_put(new_name)
        if create_only:
            create_only = self._refuses(lambda: self._put(name, create_only=True, checksum=checksum))
        info = self._objects.head(name)
        if info is None:
            raise StoreUnavailableError(f"{self._url}: what was put under {name} is gone: did an owner sweep it away?")
        if info.bytes != len(_DATA) or b"".join(self._objects.get(name)) != _DATA:
            raise DestinationError(f"{self._url}: what was put under {name} is not what is there afterwards")
        verified = checksum and self._checks_checksums(new_name())
        found = Capabilities(
            create_only=create_only,
            verification=Verification.VERIFIED if verified else Verification.SIZE_CHECKED,
            metadata=_METADATA.items() <= dict(info.metadata).items(),
            multipart=False,
        )
        if self._s3 is None or self._multipart is None:
            return Findings(found, send_checksum=checksum)
        return self._find_multipart(self._s3, self._multipart, found, name, new_name(), checksum=checksum)

    def _first_put(self, new_name: Callable[[], str]) -> tuple[str, bool, bool]:
        """Name, create_only and checksum of the first put that is accepted: some servers reject these headers."""
        refused: StoreError | None = None
        for checksum in (True, False) if self._s3 is not None else (False,):
            for create_only in (True, False):
                name = new_name()
                try:
                    self._put(name, create_only=create_only, checksum=checksum)
                except StoreUnavailableError:
                    raise
                except StoreError as error:
                    refused = refused or error
                else:
                    return name, create_only, checksum
        assert refused is not None
        raise refused

    def _put(self, name: str, *, create_only: bool, checksum: bool) -> None:
        sum_ = checksum_of([_DATA]) if checksum else None
        self._objects.put(name, _DATA, metadata=encoded(_METADATA), create_only=create_only, checksum=sum_)

    def _refuses(self, put: Callable[[], None]) -> bool:
        for _ in range(TRIES):  # an owner may sweep away what is there
            try:
                put()
            except ObjectExistsError:
                return True
        return False

    def _checks_checksums(self, name: str) -> bool:
        s3 = self._s3
        if s3 is None:
            return False
        for _ in range(2):  # twice, so that a passing trouble is not taken for a refusal
            try:
                s3.put(name, _DATA, metadata={}, create_only=False, checksum=_WRONG)
            except StoreError:
                if s3.head(name) is not None:
                    return False
            else:
                return False
        s3.put(name, _DATA, metadata={}, create_only=False, checksum=checksum_of([_DATA]))
        return True

    def _find_multipart(
        self, s3: S3Objects, multipart: MultipartPut, found: Capabilities, taken: str, free: str, *, checksum: bool
    ) -> Findings:
        def able(*, multipart_: bool) -> Capabilities:
            return Capabilities(found.create_only, found.verification, found.metadata, multipart_)

        def complete(name: str, whole: str, **condition: Any) -> None:
            extra: dict[str, Any] = (
                {"ChecksumAlgorithm": "CRC64NVME", "ChecksumType": "FULL_OBJECT"} if checksum else {}
            )
            answer = s3.request("put", name, "create_multipart_upload", **extra)
            upload = MultipartUpload(name, answer["UploadId"])
            try:
                sum_ = to_base64(checksum_of([_DATA]))
                extra = {"ChecksumCRC64NVME": sum_} if checksum else {}
                part = s3.request(
                    "put", name, "upload_part", UploadId=upload.upload_id, PartNumber=1, Body=_DATA, **extra
                )
                parts = [{"PartNumber": 1, "ETag": part["ETag"], **extra}]
                if checksum:
                    condition |= {"ChecksumCRC64NVME": to_base64(whole), "ChecksumType": "FULL_OBJECT"}
                s3.request(
                    "put",
                    name,
                    "complete_multipart_upload",
                    UploadId=upload.upload_id,
                    MultipartUpload={"Parts": parts},
                    **condition,
                )
            except StoreError:
                multipart.abort(upload)
                raise

        right = checksum_of([_DATA])
        try:
            complete(free, right)
        except StoreUnavailableError:
            raise
        except StoreError:
            return Findings(able(multipart_=False), send_checksum=checksum)
        verified = False
        if checksum:
            s3.delete(free)
            try:
                complete(free, _WRONG)
            except StoreError:
                verified = s3.head(free) is None
        create_only = found.create_only and self._refuses(lambda: complete(taken, right, IfNoneMatch="*"))
        return Findings(
            able(multipart_=True),
            send_checksum=checksum,
            multipart_create_only=create_only,
            multipart_verified=verified and found.verification is Verification.VERIFIED,
        )
