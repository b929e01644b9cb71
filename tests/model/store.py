"""An object store that keeps its word, and whose answers come late, twice, wrong or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from ray_sink.checksum import checksum_of
from ray_sink.errors import ObjectExistsError, ObjectMissingError, StagedFileChangedError, StoreUnavailableError
from ray_sink.filesystem import Filesystem
from ray_sink.records import FileRecord, MultipartUpload, Verification
from ray_sink.stores.base import Capabilities, ObjectInfo
from tests.model.script import Process, Script, Violation

PutFault = Literal["put failed", "put lost its answer", "put came late", "put came twice", "put answered 412"]
PUT_FAULTS: tuple[PutFault, ...] = get_args(PutFault)
"""Not done; done, and no answer; done after its client has given up; done, and again later (a proxy's or a client
library's retry); done, and answered as that retry is: it exists."""


@dataclass(frozen=True)
class Object:
    data: bytes
    metadata: Mapping[str, str]


@dataclass
class Bucket:
    """What is stored. It survives everything.

    Attributes:
        fault: what happens at the next put.
        away: so many requests to come get no answer, and do nothing.
        late: what is on its way still; arrives when `land` is called.
        foreign: paths at which somebody else has put something.
        on_object: told of every put that takes effect.
    """

    script: Script
    objects: dict[str, Object] = field(default_factory=dict)
    fault: PutFault | None = None
    away: int = 0
    late: list[tuple[str, Object, bool]] = field(default_factory=list)
    foreign: set[str] = field(default_factory=set)
    on_object: Callable[[str, bytes, bool], None] = lambda path, data, existed: None

    def request(self, what: str, path: str) -> None:
        """A request arrives, or does not."""
        if self.away:
            self.away -= 1
            self.script.fired("store away", f"{what} {path}:")
            raise StoreUnavailableError("no answer", path=path, slow_down=bool(self.away % 2))

    def put(self, path: str, new: Object, *, replace: bool) -> None:
        self.request("put", path)
        exists = path in self.objects and not replace
        fault, self.fault = self.fault, None
        if fault == "put answered 412" and (replace or exists):
            fault = None
        if fault is not None:
            self.script.fired(fault, f"{path}:")
        if fault in ("put came late", "put came twice"):
            self.late.append((path, new, replace))
        if fault in ("put failed", "put came late"):
            raise StoreUnavailableError("no answer", path=path)
        if not exists:
            self._take_effect(path, new)
        if fault == "put lost its answer":
            raise StoreUnavailableError("no answer", path=path)
        if exists or fault == "put answered 412":
            raise ObjectExistsError("exists", path=path)

    def land(self) -> None:
        """What was under way arrives now."""
        late, self.late = self.late, []
        for path, new, replace in late:
            self.script.fired("landed", path)
            if replace or path not in self.objects:
                self._take_effect(path, new)

    def _take_effect(self, path: str, new: Object) -> None:
        existed = path in self.objects
        if path in self.foreign:
            raise Violation(f"I2: somebody else's object {path} was overwritten")
        self.objects[path] = new
        self.on_object(path, new.data, existed)

    def put_foreign(self, path: str, metadata: Mapping[str, str]) -> None:
        """Somebody who has nothing to do with the run was here first."""
        if path not in self.objects:
            self.script.fired("somebody else's object", path)
            self.objects[path] = Object(b"somebody else's", metadata)
            self.foreign.add(path)

    def remove_foreign(self) -> None:
        """Its owner takes it away."""
        for path in self.foreign:
            del self.objects[path]
        self.foreign.clear()


class SimulatedStore:
    """The `ray_sink.stores.base.Store` of one process. A request and its answer are two operations."""

    url = "sim://bucket"

    def __init__(self, bucket: Bucket, process: Process, fs: Filesystem) -> None:
        self._bucket, self._process, self._fs = bucket, process, fs

    def _step(self, what: str, path: str) -> None:
        self._bucket.script.step(self._process, what, path)

    def _ask(self, what: str, path: str) -> None:
        self._step(what, path)
        if not self._process.observer:
            self._bucket.request(what, path)

    def _answered(self, what: str, path: str) -> None:
        self._step(f"has the answer to {what}", path)

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
        self._put(file.path, Object(data, dict(metadata)), replace=replace)
        return Verification.VERIFIED

    def put_bytes(self, path: str, data: bytes, *, replace: bool) -> None:
        self._put(path, Object(data, {}), replace=replace)

    def _put(self, path: str, new: Object, *, replace: bool) -> None:
        self._step("put", path)
        try:
            self._bucket.put(path, new, replace=replace)
        finally:
            self._answered("put", path)

    def get_bytes(self, path: str) -> bytes:
        self._ask("get", path)
        found = self._bucket.objects.get(path)
        self._answered("get", path)
        if found is None:
            raise ObjectMissingError("nothing there", path=path)
        return found.data

    def read_checksum(self, path: str) -> str:
        return checksum_of([self.get_bytes(path)])

    def head(self, path: str) -> ObjectInfo | None:
        self._ask("head", path)
        found = self._bucket.objects.get(path)
        self._answered("head", path)
        return None if found is None else ObjectInfo(path, len(found.data), found.metadata, checksum_of([found.data]))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        self._ask("list", prefix)
        objects = dict(self._bucket.objects)
        self._answered("list", prefix)
        for path, found in objects.items():
            if path.startswith(prefix):
                yield ObjectInfo(path, len(found.data), found.metadata)

    def delete(self, path: str) -> None:
        self._ask("delete", path)
        self._bucket.objects.pop(path, None)
        self._answered("delete", path)

    def abort(self, upload: MultipartUpload) -> None:
        raise AssertionError("there are no multipart uploads here")

    def sweep(self) -> None:
        return

    def sweep_probes(self) -> None:
        return

    def close(self) -> None:
        return
