"""Which filesystem a path is on, and what is known of its kind."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from ray_sink.doctor.findings import Finding, Status

_MOUNTINFO: Final = Path("/proc/self/mountinfo")


@dataclass(frozen=True, slots=True)
class Mount:
    """One mounted filesystem.

    Attributes:
        folder: where it is mounted.
        kind: its type, ``"nfs4"`` or ``"fuse.gcsfuse"``.
        source: what is mounted.
        options: its mount options, both kinds together.
    """

    folder: str
    kind: str
    source: str
    options: tuple[str, ...]


def mount_of(path: Path, mountinfo: Path = _MOUNTINFO) -> Mount | None:
    """The filesystem that holds the existing `path`; None where the system does not tell."""
    try:
        lines = mountinfo.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    real = os.path.realpath(path)
    best: Mount | None = None
    for mount in map(_parsed, lines):
        if mount is None or not (real == mount.folder or real.startswith(mount.folder.rstrip("/") + "/")):
            continue
        # of several on one folder the last one hides the others
        if best is None or len(mount.folder) >= len(best.folder):
            best = mount
    return best


def _parsed(line: str) -> Mount | None:
    """One line, as proc(5) describes it: six fields, any number of tags, a dash, three fields."""
    left, found, right = line.partition(" - ")
    fields, last = left.split(" "), right.split(" ")
    if not found or len(fields) < 6 or len(last) < 2:
        return None
    options = [*fields[5].split(","), *(last[2].split(",") if len(last) > 2 else [])]
    return Mount(_unescaped(fields[4]), last[0], _unescaped(last[1]), tuple(dict.fromkeys(options)))


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


@dataclass(frozen=True, slots=True)
class _Kind:
    title: str
    status: Status
    message: str
    advice: str
    promises: tuple[str, ...]


def _bucket(title: str) -> _Kind:
    return _Kind(
        title,
        Status.FAILED,
        "a bucket shown as a folder: no atomic rename, no durable fsync, no append",
        "use a real shared filesystem (NFS, Lustre, CephFS, GPFS, …) as staging, and the bucket itself as destination",
        ("P1", "P2", "P3", "P5"),
    )


_BUCKETS: Final = MappingProxyType(
    {
        "mountpoint-s3": "Mountpoint for Amazon S3",
        "mount-s3": "Mountpoint for Amazon S3",
        "gcsfuse": "Cloud Storage FUSE",
        "s3fs": "s3fs-fuse",
        "goofys": "goofys",
        "geesefs": "geesefs",
        "rclone": "rclone mount",
        "blobfuse": "BlobFuse",
        "blobfuse2": "BlobFuse",
        "ossfs": "ossfs",
        "cosfs": "COSFS",
        "tigrisfs": "TigrisFS",
    }
)

_MEMORY = _Kind(
    "memory",
    Status.FAILED,
    "files in memory: gone at a power cut, and no other node sees them",
    "use a filesystem on disks that all nodes mount",
    ("P2", "P5"),
)
_CONTAINER = _Kind(
    "container layer",
    Status.WEAK,
    "the container's own layer: gone with the container, and no other node sees it",
    "mount a volume that all pods share",
    ("P5",),
)
_SEAWEED = _Kind(
    "SeaweedFS mount",
    Status.FAILED,
    "readers see torn files during a replace",
    "use its S3 gateway as destination, and another filesystem as staging",
    ("P1",),
)
_SEAWEED_NAMES = _Kind(
    "SeaweedFS mount",
    Status.WEAK,
    "two mounts let two writers create one name",
    "see that no two drivers use this folder at a time",
    ("P3", "P7"),
)
_WINDOWS_SHARE = _Kind(
    "SMB share",
    Status.WEAK,
    "a replace fails while a reader holds the file open, and fsync of folders may do nothing",
    "use NFS or a cluster filesystem",
    ("P2", "P5"),
)
_LUSTRE = _Kind(
    "Lustre",
    Status.OK,
    "",
    "on FSx with a data repository association keep staging outside its folder: its export sees temps and renames",
    ("P1", "P2"),
)
_LOCAL: Final = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "bcachefs"})
_FUSE_SHARED: Final = frozenset({"fuse.ceph", "fuse.ceph-fuse", "fuse.glusterfs", "fuse.juicefs"})
_SHARED: Final = _FUSE_SHARED | {"nfs", "nfs4", "ceph", "gpfs", "beegfs", "wekafs", "ocfs2", "gfs2", "virtiofs", "9p"}


def judge(mount: Mount | None, area: str) -> list[Finding]:
    """What the kind of filesystem says, before anything is tried on it."""
    if mount is None:
        message = "this system does not tell what is mounted where"
        return [Finding(area, "filesystem type", Status.NOTE, message)]
    where = f"{mount.kind} at {mount.folder}"
    return [
        Finding(
            area,
            "filesystem type",
            kind.status,
            f"{kind.title} ({where}){': ' if kind.message else ''}{kind.message}",
            kind.advice,
            kind.promises,
        )
        for kind in _kinds_of(mount)
    ] or [_unremarkable(mount, area, where)]


def is_bucket(mount: Mount) -> bool:
    """Whether it is a bucket shown as a folder."""
    return any(kind.title in _BUCKETS.values() for kind in _kinds_of(mount))


def _kinds_of(mount: Mount) -> tuple[_Kind, ...]:
    names = {mount.kind.removeprefix("fuse.").lower(), mount.source.partition("#")[0].rpartition("/")[2].lower()}
    if mount.kind.startswith("fuse"):
        for name in sorted(names):
            if name in _BUCKETS:
                return (_bucket(_BUCKETS[name]),)
        if "seaweedfs" in names or "weed" in names or any("seaweed" in name for name in names):
            return (_SEAWEED, _SEAWEED_NAMES)
    if mount.kind in ("tmpfs", "ramfs"):
        return (_MEMORY,)
    if mount.kind in ("overlay", "fuse.fuse-overlayfs", "aufs"):
        return (_CONTAINER,)
    if mount.kind in ("cifs", "smb3", "smbfs"):
        return (_WINDOWS_SHARE,)
    return (_LUSTRE,) if mount.kind == "lustre" else ()


def _unremarkable(mount: Mount, area: str, where: str) -> Finding:
    if mount.kind.startswith("nfs") and "soft" in mount.options:
        return Finding(
            area,
            "filesystem type",
            Status.WEAK,
            f"{where}, mounted soft: a server that is slow for a moment becomes an I/O error",
            "mount it hard",
            ("P5",),
        )
    if mount.kind in _LOCAL:
        message = f"{where}: a disk of this machine; every node of a cluster must see the same folder"
        return Finding(area, "filesystem type", Status.OK, message, promises=("P2",))
    if mount.kind in _SHARED:
        return Finding(area, "filesystem type", Status.OK, where, promises=("P2",))
    message = f"{where}: nothing is known of this kind but what is tried below"
    return Finding(area, "filesystem type", Status.NOTE, message)
