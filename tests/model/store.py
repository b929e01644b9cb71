"""An object store that keeps its word, and whose replies can get lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ray_sink.checksum import checksum_of
from ray_sink.errors import ObjectExistsError, ObjectMissingError, StagedFileChangedError, StoreUnavailableError
from ray_sink.filesystem import Filesystem
from ray_sink.records import FileRecord, MultipartUpload, Verification
from ray_sink.stores.base import Capabilities, ObjectInfo
from tests.model.script import Process, Script


@dataclass(frozen=True)
class Object:
    data: bytes
    metadata: Mapping[str, str]


@dataclass
class Bucket:
    """What is stored. It survives everything.

    Attributes:
        fault: what happens at the next put: ``"lost"`` (done, and the reply is lost), ``"failed"`` (not done),
            ``"late"`` (done when `land` is called, after its client has given up).
        on_object: told of every put that takes effect.
    """

    script: Script
    objects: dict[str, Object] = field(default_factory=dict)
    fault: str | None = None
    late: list[tuple[str, Object, bool]] = field(default_factory=list)
    on_object: Callable[[str, bytes, bool], None] = lambda path, data, existed: None

    def put(self, path: str, new: Object, *, replace: bool) -> None:
        fault, self.fault = self.fault, None
        if fault is not None:
            self.script.fired += 1
            self.script.note(f"put {path}: {fault}")
        if fault == "late":
            self.late.append((path, new, replace))
        if fault in ("failed", "late"):
            raise StoreUnavailableError("no answer", path=path)
        if path in self.objects and not replace:
            raise ObjectExistsError("exists", path=path)
        self._take_effect(path, new)
        if fault == "lost":
            raise StoreUnavailableError("no answer", path=path)

    def land(self) -> None:
        """What was under way arrives now."""
        late, self.late = self.late, []
        for path, new, replace in late:
            if replace or path not in self.objects:
                self._take_effect(path, new)

    def _take_effect(self, path: str, new: Object) -> None:
        existed = path in self.objects
        self.objects[path] = new
        self.on_object(path, new.data, existed)


class SimulatedStore:
    """The `ray_sink.stores.base.Store` of one process."""

    url = "sim://bucket"

    def __init__(self, bucket: Bucket, process: Process, fs: Filesystem) -> None:
        self._bucket, self._process, self._fs = bucket, process, fs

    def _step(self, what: str) -> None:
        self._bucket.script.step(self._process, what)

    def probe(self) -> Capabilities:
        return Capabilities(create_only=True, verification=Verification.VERIFIED, metadata=True, multipart=False)

    def held_bytes(self, file: FileRecord) -> int:
        return file.bytes

    def put_file(
        self,
        local: Path,
        file: FileRecord,
        *,
        metadata: Mapping[str, str],
        replace: bool,
        on_multipart: Callable[[MultipartUpload], None],
    ) -> Verification:
        data = self._fs.read(local)
        if len(data) != file.bytes or checksum_of([data]) != file.checksum:
            raise StagedFileChangedError(f"{local} is not what its record says")
        self._step(f"put {file.path}")
        self._bucket.put(file.path, Object(data, dict(metadata)), replace=replace)
        return Verification.VERIFIED

    def put_bytes(self, path: str, data: bytes, *, replace: bool) -> None:
        self._step(f"put {path}")
        self._bucket.put(path, Object(data, {}), replace=replace)

    def get_bytes(self, path: str) -> bytes:
        self._step(f"get {path}")
        if path not in self._bucket.objects:
            raise ObjectMissingError("nothing there", path=path)
        return self._bucket.objects[path].data

    def read_checksum(self, path: str) -> str:
        return checksum_of([self.get_bytes(path)])

    def head(self, path: str) -> ObjectInfo | None:
        self._step(f"head {path}")
        found = self._bucket.objects.get(path)
        return None if found is None else ObjectInfo(path, len(found.data), found.metadata, checksum_of([found.data]))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        self._step(f"list {prefix}")
        for path, found in list(self._bucket.objects.items()):
            if path.startswith(prefix):
                yield ObjectInfo(path, len(found.data), found.metadata)

    def delete(self, path: str) -> None:
        self._step(f"delete {path}")
        self._bucket.objects.pop(path, None)

    def abort(self, upload: MultipartUpload) -> None:
        raise AssertionError("there are no multipart uploads here")

    def sweep(self) -> None:
        return

    def close(self) -> None:
        return
