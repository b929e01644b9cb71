"""S3 through s3fs's own client (aiobotocore), one request at a time: what obstore cannot say, and engine="fsspec"."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import aiobotocore.credentials
import aiobotocore.session
import aiohttp
import s3fs
from botocore import exceptions

from ray_sink.checksum import from_base64, to_base64
from ray_sink.errors import ObjectMissingError, StoreError
from ray_sink.filesystem import Buffer
from ray_sink.records import MultipartUpload
from ray_sink.stores.base import ObjectInfo
from ray_sink.stores.credentials import S3Source
from ray_sink.stores.metadata import decoded
from ray_sink.stores.replies import Reply, error_for, may_be_expired, scrub
from ray_sink.stores.s3_settings import S3Settings

_READ_BYTES = 4 * 2**20
_READ_TIMEOUT_S = 60
_RAISED = (exceptions.BotoCoreError, exceptions.ClientError, exceptions.HTTPClientError, aiohttp.ClientError, OSError)


class _Scrubber(logging.Filter):
    """At DEBUG botocore logs whole requests, tokens and signatures included."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = scrub(record.getMessage()), ()
        return True


_SCRUBBER = _Scrubber()
_TALKATIVE = ("botocore.auth", "botocore.endpoint")


@dataclass(frozen=True, eq=False, slots=True)
class _Connection:
    """A client, and the filesystem that closes it when nobody holds it any more: whoever uses one holds both."""

    filesystem: s3fs.S3FileSystem
    client: Any


class S3Objects:
    """See `ray_sink.stores.objects.Objects`; connects at its first request.

    Requests run on fsspec's own event loop thread; any thread may call. That thread itself never connects: it would
    wait for itself.
    """

    def __init__(self, settings: S3Settings, *, connections: int) -> None:
        self._settings = settings
        self._connections = connections
        self._connected: _Connection | None = None
        self._connecting = threading.Lock()

    def put(
        self, path: str, data: Buffer, *, metadata: Mapping[str, str], create_only: bool, checksum: str | None
    ) -> None:
        """See `Objects.put`."""
        arguments = self.creation_arguments(metadata)
        if create_only:
            arguments["IfNoneMatch"] = "*"
        if checksum is not None:
            arguments["ChecksumCRC64NVME"] = to_base64(checksum)
        # botocore takes no other buffer
        self.request("put", path, "put_object", Body=bytes(data), **arguments)

    def put_stream(self, path: str, chunks: Iterator[bytes], *, metadata: Mapping[str, str]) -> None:
        """See `Objects.put_stream`; S3 has `ray_sink.stores.multipart` for it."""
        raise NotImplementedError

    def creation_arguments(self, metadata: Mapping[str, str]) -> dict[str, Any]:
        """What every request that creates an object carries."""
        arguments: dict[str, Any] = {"Metadata": dict(metadata)} if metadata else {}
        if self._settings.storage_class:
            arguments["StorageClass"] = self._settings.storage_class
        if self._settings.sse_kms_key_id:
            arguments["ServerSideEncryption"] = "aws:kms"
            arguments["SSEKMSKeyId"] = self._settings.sse_kms_key_id
        return arguments

    def get(self, path: str) -> Iterator[bytes]:
        """See `Objects.get`."""
        connection = self._connection()
        body = self._await(connection, "get", path, self._call(connection, path, "get_object", {}))["Body"]
        try:
            while chunk := self._await(connection, "get", path, body.read(_READ_BYTES)):
                yield bytes(chunk)
        finally:
            body.close()

    def head(self, path: str) -> ObjectInfo | None:
        """See `Objects.head`."""
        try:
            found = self.request("head", path, "head_object", ChecksumMode="ENABLED")
        except ObjectMissingError:
            return None
        checksum = found.get("ChecksumCRC64NVME")
        whole = found.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT"
        return ObjectInfo(
            path,
            found["ContentLength"],
            decoded(found.get("Metadata") or {}),
            from_base64(checksum) if checksum and whole else None,
        )

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `Objects.list`."""
        # with encoded keys any character survives XML; botocore decodes them
        base = self._key("")
        position: dict[str, str] = {}
        while True:
            page = self.request("list", None, "list_objects_v2", Prefix=base + prefix, **position)
            for found in page.get("Contents", ()):
                yield ObjectInfo(found["Key"][len(base) :], found["Size"], {})
            if not page.get("IsTruncated"):
                return
            position = {"ContinuationToken": page["NextContinuationToken"]}

    def uploads(self, prefix: str) -> Iterator[MultipartUpload]:
        """Multipart uploads that were begun below `prefix` and neither completed nor aborted."""
        base = self._key("")
        position: dict[str, str] = {}
        while True:
            page = self.request("list", None, "list_multipart_uploads", Prefix=base + prefix, **position)
            for found in page.get("Uploads", ()):
                yield MultipartUpload(found["Key"][len(base) :], found["UploadId"])
            if not page.get("IsTruncated"):
                return
            position = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def delete(self, path: str) -> None:
        """See `Objects.delete`."""
        try:
            self.request("delete", path, "delete_object")
        except ObjectMissingError:
            return

    def close(self) -> None:
        """See `Objects.close`."""
        with self._connecting:
            self._connected = None  # s3fs closes the client when its filesystem goes

    def request(self, doing: str, path: str | None, operation: str, **arguments: Any) -> dict[str, Any]:
        """One request, awaited."""
        connection = self._connection()
        call = self._call(connection, path, operation, arguments)
        return self._await(connection, doing, path, call)  # type: ignore[no-any-return]

    def start(
        self, doing: str, path: str, operation: str, **arguments: Any
    ) -> concurrent.futures.Future[dict[str, Any]]:
        """One request, running while the caller does something else; the future raises our errors."""
        connection = self._connection()

        async def run() -> dict[str, Any]:
            try:
                return await self._call(connection, path, operation, arguments)  # type: ignore[no-any-return]
            except _RAISED as error:
                raise self._error(connection, error, doing, path) from None

        return asyncio.run_coroutine_threadsafe(run(), connection.filesystem.loop)

    async def _call(self, connection: _Connection, path: str | None, operation: str, arguments: dict[str, Any]) -> Any:
        if path is not None:
            arguments["Key"] = self._key(path)
        return await getattr(connection.client, operation)(Bucket=self._settings.bucket, **arguments)

    def _await(self, connection: _Connection, doing: str, path: str | None, coroutine: Any) -> Any:
        try:
            return asyncio.run_coroutine_threadsafe(coroutine, connection.filesystem.loop).result()
        except _RAISED as error:
            raise self._error(connection, error, doing, path) from None

    def _key(self, path: str) -> str:
        return f"{self._settings.prefix}/{path}" if self._settings.prefix else path

    def _connection(self) -> _Connection:
        connected = self._connected
        if connected is None:
            with self._connecting:
                connected = self._connected = self._connected or self._connect()
        return connected

    def _connect(self) -> _Connection:
        for name in _TALKATIVE:
            logging.getLogger(name).addFilter(_SCRUBBER)
        chosen = self._settings
        client: dict[str, Any] = {"region_name": chosen.region}
        if chosen.endpoint_url:
            client["endpoint_url"] = chosen.endpoint_url
        if chosen.ca_bundle:
            client["verify"] = chosen.ca_bundle
        session = aiobotocore.session.AioSession()
        session._credentials = _aio_credentials(chosen.credentials)  # the one way to renew them by a function
        filesystem = s3fs.S3FileSystem(
            session=session,
            client_kwargs=client,
            config_kwargs={
                "retries": {"total_max_attempts": 1},
                "connect_timeout": 5,
                "read_timeout": _READ_TIMEOUT_S,
                "max_pool_connections": self._connections,
                "s3": {"addressing_style": "path"} if chosen.endpoint_url else {},
            },
            skip_instance_cache=True,
            use_listings_cache=False,
        )
        made = asyncio.run_coroutine_threadsafe(filesystem.set_session(), filesystem.loop).result()
        return _Connection(filesystem, made)

    def _error(self, connection: _Connection, error: Exception, doing: str, path: str | None) -> StoreError:
        """Our error for what the client raised: the only place that knows its kinds.

        What it raised may hold what was signed, so it is not chained.
        """
        if isinstance(error, exceptions.ClientError):
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            said = error.response.get("Error", {})
            # an element that is there and empty is None
            code = said.get("Code") or ""
            # an error in a 200 is an error all the same, and the outcome is unknown
            status = 500 if status == 200 else status
            reply = Reply(status, "" if code.isdigit() else code, said.get("Message") or "")
            if may_be_expired(reply, doing) and self._connected is connection:
                # the next request asks for new credentials; without the lock, which may be held by somebody who waits
                # for this thread
                self._connected = None
            return error_for(reply, doing, self._settings.url, path)
        if isinstance(error, exceptions.ParamValidationError):
            return StoreError(f"{doing} {self._settings.url}: {scrub(str(error))[:300]}", path=path)
        timed_out = isinstance(error, exceptions.ReadTimeoutError | exceptions.ConnectTimeoutError | TimeoutError)
        reply = Reply(None, message=f"{type(error).__name__}: {str(error)[:300]}", timed_out=timed_out)
        return error_for(reply, doing, self._settings.url, path)


def _aio_credentials(source: S3Source) -> Any:
    now = source()
    if now.expires_at is None:
        return aiobotocore.credentials.AioCredentials(now.access_key_id, now.secret_access_key, now.session_token)

    def named() -> dict[str, str | None]:
        fresh = source()
        return {
            "access_key": fresh.access_key_id,
            "secret_key": fresh.secret_access_key,
            "token": fresh.session_token,
            "expiry_time": fresh.expires_at.isoformat() if fresh.expires_at else None,
        }

    async def renew() -> dict[str, str | None]:
        return await asyncio.to_thread(named)

    # the same margin as obstore's, so that both renew at the same time
    return aiobotocore.credentials.AioRefreshableCredentials.create_from_metadata(
        metadata=named(), refresh_using=renew, method="ray_sink", advisory_timeout=300, mandatory_timeout=60
    )
