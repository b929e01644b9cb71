"""S3, Google Cloud Storage and Azure through obstore: the least CPU for each object of all clients measured."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from obstore import exceptions
from obstore.store import S3Store, from_url

from ray_sink.config import UploadOptions
from ray_sink.errors import ConfigError, ObjectMissingError, SinkError, StoreError
from ray_sink.filesystem import Buffer
from ray_sink.stores import credentials
from ray_sink.stores.base import ObjectInfo
from ray_sink.stores.metadata import decoded
from ray_sink.stores.replies import Reply, error_for, may_be_expired, parse_body, scrub
from ray_sink.stores.s3_settings import S3Settings

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, S3Credential

SMALL_BYTES = 16 * 2**20
_BASE_TIMEOUT_S = 60
# A put's timeout covers sending its body: a link slower than this is taken for a dead one.
_SLOWEST_BYTES_PER_S = 2**20
_STREAM_BYTES = 8 * 2**20
_STANDARD_HEADERS = frozenset(
    ["content-disposition", "content-encoding", "content-language", "content-type", "cache-control", "storage-class"]
)


class S3Clients:
    """Makes clients for S3."""

    def __init__(self, settings: S3Settings) -> None:
        self._settings = settings
        try:
            self._root = Path(settings.ca_bundle).read_bytes() if settings.ca_bundle else None
        except OSError as error:
            raise ConfigError(f"ca_bundle cannot be read: {error}") from error

    def __call__(self, timeout_s: float, checksum: bool) -> ObjectStore:
        """A client whose requests may take `timeout_s`, and whose puts carry CRC64NVME or not."""
        chosen = self._settings
        config: dict[str, Any] = {
            "region": chosen.region,
            "unsigned_payload": chosen.unsigned_payload and checksum,
            "disable_bulk_delete": True,
        }
        if chosen.endpoint_url:
            config["endpoint"] = chosen.endpoint_url
        if checksum:
            config["checksum_algorithm"] = "CRC64NVME"
        if chosen.sse_kms_key_id:
            config["server_side_encryption"] = "aws:kms"
            config["sse_kms_key_id"] = chosen.sse_kms_key_id
        options = _client_options(timeout_s)
        options["allow_http"] = chosen.allow_http
        if self._root is not None:
            options["root_certificate"] = self._root
        return S3Store(
            chosen.bucket,
            prefix=chosen.prefix or None,
            credential_provider=self._credential,
            client_options=options,
            retry_config={"max_retries": 0},
            **config,
        )

    def _credential(self) -> S3Credential:
        now = self._settings.credentials()
        return {
            "access_key_id": now.access_key_id,
            "secret_access_key": now.secret_access_key,
            "token": now.session_token,
            "expires_at": now.expires_at,
        }


class CloudClients:
    """Makes clients for ``gs://`` and ``az://``; obstore finds environment and workload identity itself."""

    def __init__(self, dest: str, upload: UploadOptions) -> None:
        self._dest = dest
        self._config: dict[str, Any] = dict(upload.storage_options)
        if upload.credentials is not None:
            self._config.update(credentials.load(upload.credentials)())

    def __call__(self, timeout_s: float, checksum: bool) -> ObjectStore:
        """A client whose requests may take `timeout_s`; these servers know no CRC64NVME."""
        open_url: Any = from_url  # its overloads know each server's options, which come from the user here
        try:
            opened: ObjectStore = open_url(
                self._dest,
                config=self._config,
                client_options=_client_options(timeout_s),
                retry_config={"max_retries": 0},
            )
        except exceptions.UnknownConfigurationKeyError as error:
            raise ConfigError(f"storage_options for {self._dest}: {_first_line(error)}") from None
        except (exceptions.BaseError, ValueError) as error:
            raise ConfigError(f"{self._dest} cannot be opened: {_first_line(error)}") from None
        return opened


def _client_options(timeout_s: float) -> ClientConfig:
    return {"timeout": timedelta(seconds=timeout_s), "connect_timeout": timedelta(seconds=5)}


class ObstoreObjects:
    """See `ray_sink.stores.objects.Objects`."""

    def __init__(
        self,
        url: str,
        clients: Callable[[float, bool], ObjectStore],
        *,
        largest_bytes: int,
        storage_class: str | None = None,
    ) -> None:
        self._url = url
        self._clients = clients
        self._largest_bytes = largest_bytes
        self._storage_class = storage_class
        self._made: dict[tuple[bool, bool], ObjectStore] = {}
        self._making = threading.Lock()

    def _client(self, held_bytes: int | None, *, checksum: bool = True) -> ObjectStore:
        """The client for a body of so many bytes; None: of any size."""
        large = held_bytes is None or held_bytes > SMALL_BYTES
        found = self._made.get((large, checksum))
        if found is None:
            with self._making:
                most = max(self._largest_bytes, held_bytes or 0) if large else SMALL_BYTES
                timeout_s = _BASE_TIMEOUT_S + most / _SLOWEST_BYTES_PER_S
                found = self._made.setdefault((large, checksum), self._clients(timeout_s, checksum))
        return found

    def put(
        self, path: str, data: Buffer, *, metadata: Mapping[str, str], create_only: bool, checksum: str | None
    ) -> None:
        """See `Objects.put`; obstore computes the checksum of `data` itself, once more."""
        with self._errors("put", path):
            self._client(memoryview(data).nbytes, checksum=checksum is not None).put(
                path,
                data,
                attributes=self._attributes(metadata),
                mode="create" if create_only else "overwrite",
                use_multipart=False,
            )

    def put_stream(self, path: str, chunks: Iterator[bytes], *, metadata: Mapping[str, str]) -> None:
        """See `Objects.put_stream`; obstore aborts the upload when `chunks` raises."""
        failed: list[SinkError | OSError] = []

        def kept() -> Iterator[bytes]:
            # obstore wraps what an iterator raises: keep the real one
            try:
                yield from chunks
            except (SinkError, OSError) as error:
                failed.append(error)
                raise

        try:
            with self._errors("put", path):
                self._client(None).put(
                    path, kept(), attributes=self._attributes(metadata), chunk_size=_STREAM_BYTES, max_concurrency=4
                )
        except StoreError:
            if failed:
                raise failed[0] from None
            raise

    def get(self, path: str) -> Iterator[bytes]:
        """See `Objects.get`."""
        with self._errors("get", path):
            for chunk in self._client(None).get(path).stream(min_chunk_size=_STREAM_BYTES):
                yield bytes(chunk)

    def head(self, path: str) -> ObjectInfo | None:
        """See `Objects.head`; user metadata comes with a get that asks for the head only."""
        try:
            with self._errors("head", path):
                found = self._client(0).get(path, options={"head": True})
                ours = {k: v for k, v in found.attributes.items() if k.lower() not in _STANDARD_HEADERS}
                return ObjectInfo(path, found.meta["size"], decoded(ours))
        except ObjectMissingError:
            return None

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `Objects.list`; obstore lists whole path components, so the last one is compared here."""
        folder = prefix.rpartition("/")[0]
        with self._errors("list", None):
            for page in self._client(0).list(folder or None, chunk_size=1000):
                for found in page:
                    if found["path"].startswith(prefix):
                        yield ObjectInfo(found["path"], found["size"], {})

    def delete(self, path: str) -> None:
        """See `Objects.delete`."""
        try:
            with self._errors("delete", path):
                self._client(0).delete(path)
        except ObjectMissingError:
            return

    def close(self) -> None:
        """See `Objects.close`."""
        self._made.clear()

    def _attributes(self, metadata: Mapping[str, str]) -> dict[str, str]:
        attributes = dict(metadata)
        if self._storage_class:
            attributes["Storage-Class"] = self._storage_class
        return attributes

    @contextmanager
    def _errors(self, doing: str, path: str | None) -> Iterator[None]:
        """Turn what obstore raises into our errors: the only place that knows its text.

        Its errors repeat replies, which repeat what was signed: they are not chained, only what was taken from them
        is kept.
        """
        try:
            yield
        except SinkError:
            raise
        except FileNotFoundError as error:
            raise error_for(_reply(error, 404), doing, self._url, path) from None
        except (exceptions.BaseError, OSError) as error:
            reply = _reply(error, None)
            if may_be_expired(reply, doing):
                self._made.clear()  # the next client asks for new credentials
            raise error_for(reply, doing, self._url, path) from None
        except ValueError as error:
            raise StoreError(f"{doing} {self._url}: {_first_line(error)}", path=path) from None
        except BaseException as error:
            # a panic in Rust comes as its own BaseException
            if type(error).__name__ != "PanicException":
                raise
            raise StoreError(f"{doing} {self._url}: obstore failed: {_first_line(error)}", path=path) from None


_STATUS = re.compile(r"non-2xx status code: (\d{3})")
_KIND = re.compile(r"kind: (\w+)")


def _reply(error: BaseException, status: int | None) -> Reply:
    text = str(error)
    shown, _, debug = text.partition("\n\nDebug source:")
    if found := _STATUS.search(text):
        code, message = parse_body(text)
        return Reply(int(found[1]), code, message)
    if "Received redirect without LOCATION" in text:
        return Reply(301, message=shown[:300])
    kind = _KIND.search(debug)
    reason = kind[1] if kind else ""
    if isinstance(error, exceptions.AlreadyExistsError | exceptions.PreconditionError):
        return Reply(412)
    if isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError):
        return Reply(403, message=shown)
    return Reply(status, message=f"{reason + ': ' if reason else ''}{shown[:300]}", timed_out=reason == "Timeout")


def _first_line(error: BaseException) -> str:
    return scrub(str(error).partition("\n")[0])[:300]
