"""The destination as those see it who have no credentials: small objects, through an uploader."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from ray_sink.config import UploadOptions
from ray_sink.errors import DestinationError, SinkClosedError, SinkError
from ray_sink.manifest import Seal
from ray_sink.records import MultipartUpload, RunInfo, RunStatus
from ray_sink.runtime import placement
from ray_sink.runtime.calls import own_error
from ray_sink.runtime.uploading import UploaderShell
from ray_sink.stores.base import Capabilities, ObjectInfo

_STORE_CALLS = 16


class Destination:
    """Uploader actors, and through the first of them a store of small objects.

    Args:
        url: of the destination.
        uploaders: their actor handles.
        name: of the first one in Ray, for processes that begin before they can be given a handle.
    """

    def __init__(self, url: str, uploaders: Sequence[Any], name: str) -> None:
        self.url = url
        self.uploaders = list(uploaders)
        self.name = name

    @classmethod
    def started(cls, info: RunInfo, options: UploadOptions) -> Destination:
        """With actors of its own, which `stop` ends."""
        name = f"ray_sink-{info.run_id}-{uuid.uuid4().hex}"
        where = placement.for_uploader(options, placement.nodes())
        uploaders: list[Any] = [
            placement.spawn(
                UploaderShell,
                info,
                options,
                max_concurrency=_STORE_CALLS,
                max_restarts=-1,
                max_task_retries=-1,
                **({**where, "name": name} if number == 0 else where),
            )
            for number in range(options.uploaders)
        ]
        return cls(info.dest or info.staging, uploaders, name)

    @classmethod
    def named(cls, url: str, name: str) -> Destination:
        """Another's, by its name."""
        return cls(url, [ray.get_actor(name)], name)

    def probe(self) -> Capabilities:
        """What the destination keeps its word on.

        Raises:
            DestinationError: it cannot be reached or written.
        """
        capabilities: Capabilities = self._call("probe")
        return capabilities

    def listing(self) -> dict[str, int]:
        """Sizes of all objects there that are not the sink's own, by path."""
        sizes: dict[str, int] = self._call("listing")
        return sizes

    def put_bytes(self, path: str, data: bytes, *, replace: bool) -> None:
        """See `ray_sink.stores.base.Store.put_bytes`."""
        self._call("put_bytes", path, data, replace)

    def get_bytes(self, path: str) -> bytes:
        """See `ray_sink.stores.base.Store.get_bytes`."""
        data: bytes = self._call("get_bytes", path)
        return data

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `ray_sink.stores.base.Store.list`."""
        return iter(self._call("list", prefix))

    def delete(self, path: str) -> None:
        """See `ray_sink.stores.base.Store.delete`."""
        self._call("delete", path)

    def abort(self, upload: MultipartUpload) -> None:
        """See `ray_sink.stores.base.Store.abort`."""
        self._call("abort", upload)

    def sweep(self) -> None:
        """See `ray_sink.stores.base.Store.sweep`."""
        self._call("sweep")

    def seal(self, epoch: int, receipts: Any, status: RunStatus) -> Seal:
        """Seal the run; `receipts` is an ObjectRef."""
        made: Seal = self._call("seal", epoch, receipts, status)
        return made

    def _call(self, method: str, *args: Any) -> Any:
        if not ray.is_initialized():
            # a call would start Ray anew
            raise SinkClosedError("Ray was shut down under this sink: run the same script again, it resumes")
        try:
            # not by ray.get, which warns of event loops on any thread of a process that has one
            return getattr(self.uploaders[0], method).remote(*args).future().result()
        except RayError as error:
            if isinstance(own := own_error(error), SinkError):
                raise own from None
            raise DestinationError(f"the uploader for {self.url} cannot work: {error}") from error

    def stop(self) -> None:
        """End the actors."""
        for uploader in self.uploaders:
            ray.kill(uploader)
