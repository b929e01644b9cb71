"""What the staging folder can promise, tried in a folder of its own below ``_ray_sink/``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ray_sink.config import Limits
from ray_sink.doctor import room, watched
from ray_sink.doctor.findings import Finding, Status
from ray_sink.doctor.mounts import judge, mount_of
from ray_sink.doctor.observers import Observer, SecondProcess
from ray_sink.doctor.workplace import workplace
from ray_sink.filesystem import Filesystem, PosixFilesystem

_AREA = "staging"
_LARGE_BYTES = 32 * 2**20

OK, WEAK, FAILED, NOTE = Status.OK, Status.WEAK, Status.FAILED, Status.NOTE


def examine(root: Path, observers: Sequence[Observer] = (), fs: Filesystem | None = None) -> list[Finding]:
    """Everything about a staging folder that can be told by trying.

    Args:
        root: the staging folder.
        observers: who looks at it from other mounts and nodes; a second process on this machine always does.
        fs: its filesystem.
    """
    fs = fs or PosixFilesystem()
    if not root.is_dir():
        advice = "create it on a filesystem that all nodes mount at the same path"
        return [Finding(_AREA, "exists", FAILED, f"there is no folder {root}", advice, ("P1", "P2", "P5"))]
    found = judge(mount_of(root), _AREA)
    try:
        with workplace(fs, root) as folder:
            found.append(Finding(_AREA, "writable", OK, str(root)))
            found += _watched(fs, root, folder, [SecondProcess(root, "a second process"), *observers])
            for look in (_fence, _durable, _journal, _names):
                found.append(_tried(look, fs, folder))
            found.append(_speed(fs, folder))
    except OSError as error:
        advice = "give the user that runs Ray the right to write there"
        found.append(Finding(_AREA, "writable", FAILED, str(error), advice, ("P1", "P2", "P5")))
    return [*found, *room.examine(root, Limits())]


def _watched(fs: Filesystem, root: Path, folder: Path, observers: Sequence[Observer]) -> list[Finding]:
    try:
        return watched.examine(fs, root, folder, observers)
    except OSError as error:
        advice = "use another filesystem for staging"
        return [Finding(_AREA, watched.RENAME, FAILED, f"refused here: {error}", advice, ("P1",))]


def _tried(look: Callable[[Filesystem, Path], Finding], fs: Filesystem, folder: Path) -> Finding:
    """What a look finds; an error of the operating system is an answer, too."""
    name, promises = _ABOUT[look]
    place = folder / look.__name__.strip("_")
    try:
        place.mkdir()
        return look(fs, place)
    except OSError as error:
        advice = "use another filesystem for staging"
        return Finding(_AREA, name, FAILED, f"refused here: {error}", advice, promises)


def _write(fs: Filesystem, path: Path, data: bytes) -> None:
    file = fs.create(path)
    try:
        file.write(data)
        file.sync()
    finally:
        file.close()


def _fence(fs: Filesystem, folder: Path) -> Finding:
    """A folder that is moved away takes the right to publish with it: that is how dead owners are kept out."""
    name, promises = _ABOUT[_fence]
    old, moved = folder / "old", folder / "moved"
    fs.make_dirs(old, below=folder)
    _write(fs, old / "temp", b"temp")
    fs.rename(old, moved)
    try:
        fs.create(old / "late").close()
    except FileNotFoundError:
        if fs.size(moved / "temp") == 4:
            return Finding(
                _AREA, name, OK, "a folder moves in one step, and nothing is created below its old name", "", promises
            )
    advice = "use another filesystem for staging"
    return Finding(
        _AREA, name, FAILED, "a folder that was moved can still be written under its old name", advice, promises
    )


def _durable(fs: Filesystem, folder: Path) -> Finding:
    """Files and folders take an fsync; what the disk makes of it only a power cut can tell."""
    name, promises = _ABOUT[_durable]
    began = time.monotonic()
    count = 10
    for number in range(count):
        _write(fs, folder / f"{number}", b"x" * 4096)
        fs.sync_dir(folder)
    each_ms = (time.monotonic() - began) * 1000 / count
    return Finding(_AREA, name, OK, f"files and folders take fsync, {each_ms:.1f} ms for both", promises=promises)


def _journal(fs: Filesystem, folder: Path) -> Finding:
    """A file grows record by record, and what was synced is read back."""
    name, promises = _ABOUT[_journal]
    path = folder / "journal"
    file = fs.create(path)
    try:
        for number in range(1, 4):
            file.write(b"record\n")
            file.sync()
            if fs.read(path) != b"record\n" * number:
                advice = "use another filesystem for staging"
                return Finding(_AREA, name, FAILED, "what was appended is not read back", advice, promises)
    finally:
        file.close()
    return Finding(_AREA, name, OK, "what is appended is read back", promises=promises)


def _names(fs: Filesystem, folder: Path) -> Finding:
    """Different names are different files, and long ones are possible."""
    name, promises = _ABOUT[_names]
    _write(fs, folder / "n", b"")
    _write(fs, folder / ("x" * 255), b"")
    _write(fs, folder / "größe-数", b"")
    try:
        _write(fs, folder / "N", b"")
    except FileExistsError:
        advice = "use keys that differ in more than case"
        return Finding(_AREA, name, WEAK, "names that differ only in case are one file here", advice, promises)
    if "größe-数" not in fs.list(folder):
        advice = "use keys of plain ASCII"
        return Finding(_AREA, name, WEAK, "names come back in another Unicode form", advice, promises)
    return Finding(_AREA, name, OK, "255 bytes, any Unicode, case kept", promises=promises)


def _speed(fs: Filesystem, folder: Path) -> Finding:
    data = os.urandom(2**20)
    began = time.monotonic()
    file = fs.create(folder / "large")
    try:
        for _ in range(_LARGE_BYTES // len(data)):
            file.write(data)
        file.sync()
    finally:
        file.close()
    rate = _LARGE_BYTES / (time.monotonic() - began) / 1e6
    return Finding(_AREA, "speed", NOTE, f"{rate:.0f} MB/s into one file, fsync included")


_ABOUT: dict[Callable[[Filesystem, Path], Finding], tuple[str, tuple[str, ...]]] = {
    _fence: ("fence", ("P3", "P5")),
    _durable: ("fsync", ("P2",)),
    _journal: ("append", ("P4", "P5")),
    _names: ("names", ("P3",)),
}
