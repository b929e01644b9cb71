"""What the destination keeps its word on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from ray_sink.config import UploadOptions
from ray_sink.doctor.findings import Finding, Status
from ray_sink.doctor.mounts import judge, mount_of
from ray_sink.errors import DestinationError, StoreError
from ray_sink.keys import RESERVED
from ray_sink.probes import probe_name
from ray_sink.records import Verification
from ray_sink.stores import Capabilities, Store, open_store

_AREA = "destination"
_PAYLOAD_BYTES = 2**20
_IS_URL = "://"

OK, WEAK, FAILED, NOTE = Status.OK, Status.WEAK, Status.FAILED, Status.NOTE


def examine(dest: str, upload: UploadOptions) -> list[Finding]:
    """Everything that a few small objects below ``_ray_sink/`` can tell; they are deleted again.

    Raises:
        ConfigError: `dest` or an option is wrong.
    """
    folder = _folder_of(dest)
    missing = folder is not None and not folder.exists()
    found = judge(mount_of(folder), _AREA) if folder is not None and not missing else []
    try:
        store = open_store(dest, upload)
    except DestinationError as error:
        return [*found, _unusable(error)]
    try:
        found += _examine(store)
    finally:
        store.close()
        if folder is not None:
            _tidy(folder, whole=missing)
    return found


def _folder_of(dest: str) -> Path | None:
    scheme, url, rest = dest.partition(_IS_URL)
    if url and scheme not in ("file", "local"):
        return None
    return Path(rest if url else dest).expanduser().resolve()


def _tidy(folder: Path, *, whole: bool) -> None:
    """Remove the empty folders that trying made."""
    ours = folder / RESERVED
    for empty in (ours / "tmp", ours, *([folder] if whole else ())):
        if empty.is_dir() and not os.listdir(empty):
            empty.rmdir()


def _unusable(error: StoreError) -> Finding:
    return Finding(_AREA, "reachable and writable", FAILED, str(error), "", ("P1", "P2", "P5", "P7"))


def _examine(store: Store) -> list[Finding]:
    began = time.monotonic()
    try:
        capabilities = store.probe()
    except StoreError as error:
        return [_unusable(error)]
    took = time.monotonic() - began
    reached = Finding(_AREA, "reachable and writable", OK, f"{store.url}, found out in {took:.1f} s", "", ("P1", "P5"))
    return [reached, *promised(capabilities), *_timed(store)]


def promised(found: Capabilities) -> list[Finding]:
    """What a store's probe has found, in words."""
    if found.create_only:
        create = Finding(_AREA, "create-only puts", OK, "an existing name is refused", "", ("P3", "P7"))
    else:
        create = Finding(
            _AREA,
            "create-only puts",
            WEAK,
            "an existing name is overwritten: the claim in the staging folder alone keeps two drivers apart",
            "let no other run write to this destination",
            ("P3", "P7"),
        )
    if found.verification is Verification.VERIFIED:
        checked = Finding(_AREA, "checksums", OK, "verified: wrong bytes are refused", "", ("P2",))
    else:
        checked = Finding(
            _AREA,
            "checksums",
            WEAK,
            "size checked: this server takes bytes that do not match their checksum",
            "check what matters with `ray-sink verify`, which reads it back",
            ("P2",),
        )
    metadata = (
        "objects carry key, run and attempt" if found.metadata else "none: a doubtful upload is read back instead"
    )
    parts = "large files go up in parts that a later owner can abort" if found.multipart else "not needed or not there"
    return [
        create,
        checked,
        Finding(_AREA, "metadata", OK if found.metadata else NOTE, metadata, "", ("P5",)),
        Finding(_AREA, "multipart", OK if found.multipart else NOTE, parts, "", ("P5",)),
    ]


def _timed(store: Store) -> list[Finding]:
    """A small put, get and delete with a clock beside them."""
    path, data = f"{RESERVED}/{probe_name()}", os.urandom(_PAYLOAD_BYTES)
    found: list[Finding] = []

    def timed(name: str, action: Callable[[], object]) -> None:
        began = time.monotonic()
        try:
            answer = action()
        except StoreError as error:
            advice = "give the uploader's credentials the right to do this"
            found.append(Finding(_AREA, name, WEAK, str(error), advice, ("P5",)))
            return
        took_ms = (time.monotonic() - began) * 1000
        if name == "get" and answer != data:
            found.append(Finding(_AREA, name, FAILED, "what was put is not what is read back", "", ("P2",)))
            return
        found.append(
            Finding(_AREA, name, NOTE, f"{took_ms:.0f} ms for 1 MiB" if name != "list" else f"{took_ms:.0f} ms")
        )

    timed("put", lambda: store.put_bytes(path, data, replace=False))
    timed("get", lambda: store.get_bytes(path))
    timed("list", lambda: [info.path for info in store.list(path)])
    timed("delete", lambda: store.delete(path))
    return found
