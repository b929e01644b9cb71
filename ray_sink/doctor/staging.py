"""What the staging folder can promise, tried in a folder of its own below ``_ray_sink/``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ray_sink.config import Limits
from ray_sink.doctor import watcher
from ray_sink.doctor.findings import Finding, Status
from ray_sink.doctor.mounts import judge, mount_of
from ray_sink.filesystem import Filesystem, PosixFilesystem
from ray_sink.keys import RESERVED

_AREA = "staging"
_WATCHED_S = 1.5
_LEAST_ROUNDS = 50
_FEW_FILES = 100_000
_LARGE_BYTES = 32 * 2**20
_WATCHER_DEADLINE_S = 60

OK, WEAK, FAILED, NOTE = Status.OK, Status.WEAK, Status.FAILED, Status.NOTE


def examine(root: Path, fs: Filesystem | None = None) -> list[Finding]:
    """Everything about a staging folder that this machine alone can tell.

    Args:
        root: the staging folder.
        fs: its filesystem.
    """
    fs = fs or PosixFilesystem()
    if not root.is_dir():
        advice = "create it on a filesystem that all nodes mount at the same path"
        return [Finding(_AREA, "exists", FAILED, f"there is no folder {root}", advice, ("P1", "P2", "P5"))]
    found = judge(mount_of(root), _AREA)
    try:
        with _workplace(fs, root) as folder:
            found.append(Finding(_AREA, "writable", OK, str(root)))
            for look in (_atomic, _fence, _exclusive, _durable, _journal, _names):
                found.append(_tried(look, fs, folder))
            found.append(_speed(fs, folder))
    except OSError as error:
        advice = "give the user that runs Ray the right to write there"
        found.append(Finding(_AREA, "writable", FAILED, str(error), advice, ("P1", "P2", "P5")))
    return [*found, *_room(root)]


@contextmanager
def _workplace(fs: Filesystem, root: Path) -> Iterator[Path]:
    ours = root / RESERVED
    was_there = ours.exists()
    folder = ours / f"doctor-{os.urandom(8).hex()}"
    try:
        fs.make_dirs(folder, below=root)
        yield folder
    finally:
        if folder.exists():
            shutil.rmtree(folder)
        if not was_there and ours.exists() and not os.listdir(ours):
            ours.rmdir()


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


def _atomic(fs: Filesystem, folder: Path) -> Finding:
    """Files are published and replaced while another process reads them."""
    name, promises = _ABOUT[_atomic]
    command = [sys.executable, "-m", "ray_sink.doctor.watcher", str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        rounds, end = 0, time.monotonic() + _WATCHED_S
        while rounds < _LEAST_ROUNDS or time.monotonic() < end:
            for target in (watcher.REPLACED, watcher.new_name(rounds)):
                # sizes differ, so that a half-written file cannot pass for a whole one
                _write(fs, folder / "temp", watcher.sealed(os.urandom(2**14 + rounds % 2**10)))
                fs.rename(folder / "temp", folder / target)
            rounds += 1
        out, err = process.communicate(timeout=_WATCHER_DEADLINE_S)
    except subprocess.TimeoutExpired:
        return Finding(_AREA, name, WEAK, "a second process that reads there hangs", "", promises)
    finally:
        process.kill()
        process.wait()
    if process.returncode != 0:
        said = err.decode(errors="replace").strip().rpartition("\n")[2]
        return Finding(_AREA, name, WEAK, f"the reading process failed: {said[:200]}", "", promises)
    seen = watcher.Sightings(**json.loads(out))
    said = f"{seen.reads} reads during {2 * rounds} renames: {seen.torn} torn, {seen.vanished} times gone"
    if seen.torn or seen.vanished:
        return Finding(_AREA, name, FAILED, said, "use another filesystem for staging", promises)
    if seen.published < rounds:
        return Finding(_AREA, name, WEAK, f"{said}; {rounds - seen.published} new names were not seen", "", promises)
    return Finding(_AREA, name, OK, said, promises=promises)


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


def _exclusive(fs: Filesystem, folder: Path) -> Finding:
    """A name can be claimed once."""
    name, promises = _ABOUT[_exclusive]
    claims = 0
    for number in range(3):
        try:
            fs.create_with(folder / "claim", str(number).encode())
            claims += 1
        except FileExistsError:
            continue
    if claims == 1 and fs.read(folder / "claim") == b"0":
        return Finding(_AREA, name, OK, "a name can be created once", promises=promises)
    advice = "see that no two drivers use this folder at a time"
    return Finding(_AREA, name, WEAK, f"one name was created {claims} times", advice, promises)


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


def _room(root: Path) -> list[Finding]:
    free, wanted = shutil.disk_usage(root).free, Limits().staging_bytes
    said = f"{free / 1e9:.1f} GB free"
    if free < wanted:
        advice = f"say Limits(staging_bytes=…) below that; it is {wanted / 1e9:.0f} GB by default"
        found = [Finding(_AREA, "free space", WEAK, said, advice, ("P6",))]
    else:
        found = [Finding(_AREA, "free space", OK, said, promises=("P6",))]
    files = os.statvfs(root)
    if files.f_files and files.f_favail < _FEW_FILES:
        advice = "use a filesystem with more inodes"
        found.append(Finding(_AREA, "free inodes", WEAK, f"{files.f_favail} files more fit", advice, ("P6",)))
    return found


_ABOUT: dict[Callable[[Filesystem, Path], Finding], tuple[str, tuple[str, ...]]] = {
    _atomic: ("atomic rename", ("P1",)),
    _fence: ("fence", ("P3", "P5")),
    _exclusive: ("exclusive create", ("P3", "P7")),
    _durable: ("fsync", ("P2",)),
    _journal: ("append", ("P4", "P5")),
    _names: ("names", ("P3",)),
}
