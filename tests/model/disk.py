"""A shared filesystem that knows what is visible and what would survive a power cut."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ray_sink.errors import StagingError
from ray_sink.filesystem import Buffer, NewFile
from tests.model.script import Process, Script, Violation

Choose = Callable[[int], int]
"""Called with n, returns one of 0 … n-1: what a power cut leaves."""

SECTOR_BYTES = 512


@dataclass(eq=False)
class File:
    visible: bytearray = field(default_factory=bytearray)
    durable: bytes = b""
    final: bool = False
    lost: bool = False  # an fsync failed: later ones say yes and do nothing


@dataclass(eq=False)
class Folder:
    visible: dict[str, File | Folder] = field(default_factory=dict)
    durable: dict[str, File | Folder] = field(default_factory=dict)


Node = File | Folder


@dataclass(frozen=True, eq=False)
class NameChange:
    """A change of names that is visible and not durable. A rename is one change of two folders."""

    node: Node
    by: Process
    gone_from: tuple[Folder, str] | None = None
    now_at: tuple[Folder, str] | None = None

    def touches(self, folder: Folder) -> bool:
        return any(place is not None and place[0] is folder for place in (self.gone_from, self.now_at))


@dataclass
class Fault:
    """An error of the disk: before an operation has its effect or after it, for so many times."""

    after: bool
    times: int


class Disk:
    """What all processes share. They work through `view`."""

    def __init__(self, script: Script, root: Path = Path("/disk")) -> None:
        self.script = script
        self.root = root
        self.top = Folder()
        self.pending: list[NameChange] = []
        self.lost: set[NameChange] = set()
        self.faults: dict[str, Fault] = {}
        self.on_final: Callable[[str, bytes], None] = lambda path, data: None

    def view(self, process: Process) -> View:
        return View(self, process)

    # -- names -------------------------------------------------------------------------------------------------------

    def folder(self, path: Path) -> Folder:
        here: Node | None = self.top
        for part in path.parts[len(self.root.parts) :]:
            if not isinstance(here, Folder):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
            here = here.visible.get(part)
            if here is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        if not isinstance(here, Folder):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
        return here

    def node(self, path: Path) -> Node:
        if path == self.root:
            return self.top
        found = self.folder(path.parent).visible.get(path.name)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return found

    def put(self, path: Path, node: Node, by: Process, *, came_from: Path | None = None) -> None:
        target = self.folder(path.parent)
        gone_from = None
        if came_from is not None:
            source = self.folder(came_from.parent)
            del source.visible[came_from.name]
            gone_from = (source, came_from.name)
        target.visible[path.name] = node
        self.pending.append(NameChange(node, by, gone_from, (target, path.name)))
        if isinstance(node, File) and self.is_final(path):
            node.final = True
            self.on_final(str(path.relative_to(self.root)), bytes(node.visible))

    def take_away(self, path: Path, by: Process) -> None:
        folder = self.folder(path.parent)
        node = folder.visible.pop(path.name)
        self.pending.append(NameChange(node, by, gone_from=(folder, path.name)))

    def is_final(self, path: Path) -> bool:
        return path.parts[len(self.root.parts)] != "_ray_sink"

    def finals(self, *, durable: bool = False) -> dict[str, bytes]:
        """Contents of all files under final names, as a reader sees them, or would after a power cut."""
        return {
            path: file.durable if durable else bytes(file.visible)
            for path, file in self._walk(self.top, (), durable)
            if not path.startswith("_ray_sink")
        }

    def _walk(self, folder: Folder, above: tuple[str, ...], durable: bool) -> Iterator[tuple[str, File]]:
        for name, node in (folder.durable if durable else folder.visible).items():
            if isinstance(node, Folder):
                yield from self._walk(node, (*above, name), durable)
            else:
                yield "/".join((*above, name)), node

    # -- what lasts --------------------------------------------------------------------------------------------------

    def settle(self, folder: Folder) -> None:
        """Make the names in `folder` durable."""
        for change in [change for change in self.pending if change.touches(folder) and not self._is_lost(change)]:
            if change not in self.pending:
                continue
            if change.now_at is None and isinstance(change.node, Folder):
                # no filesystem forgets a folder before it has forgotten, or moved, what was in it
                self.settle(change.node)
            at = self.pending.index(change)
            earlier, later = self.pending[:at], self.pending[at + 1 :]
            self._apply(change)
            if change.gone_from is not None:
                # what brought it to where it has gone from is over; it may have come back there since
                earlier = [p for p in earlier if not (p.node is change.node and p.now_at == change.gone_from)]
            self.pending = earlier + later

    def lose(self, folder: Folder, by: Process) -> None:
        """A sync of `folder` failed: later ones say yes, and what `by` had changed there may be lost all the same."""
        self.lost.update(change for change in self.pending if change.by is by and change.touches(folder))

    def _is_lost(self, change: NameChange) -> bool:
        # who dies with the error in hand takes the news along: that is not defended against
        return change in self.lost and change.by.alive

    @staticmethod
    def _apply(change: NameChange) -> None:
        if change.gone_from is not None:
            folder, name = change.gone_from
            if folder.durable.get(name) is change.node:
                del folder.durable[name]
        if change.now_at is not None:
            folder, name = change.now_at
            folder.durable[name] = change.node

    def power_cut(self, choose: Choose) -> None:
        """Lose what is not durable; of each piece that is not, `choose` says whether it made it all the same."""
        for change in self.pending:
            if choose(2) and self._possible(change):
                self._apply(change)
        self.pending = []
        self._restart(self.top, choose)

    @staticmethod
    def _possible(change: NameChange) -> bool:
        if change.gone_from is None:
            return True
        folder, name = change.gone_from
        if folder.durable.get(name) is not change.node:
            return False
        return change.now_at is not None or not (isinstance(change.node, Folder) and change.node.durable)

    def _restart(self, folder: Folder, choose: Choose) -> None:
        folder.visible = dict(folder.durable)
        for node in folder.visible.values():
            if isinstance(node, Folder):
                self._restart(node, choose)
            else:
                node.durable = _torn(node, choose)
                node.visible = bytearray(node.durable)


def _torn(file: File, choose: Choose) -> bytes:
    """What a power cut leaves of a file: the tail that was not synced may be gone, short, or have sectors of zeros."""
    whole, kept = bytes(file.visible), len(file.durable)
    if whole == file.durable:
        return whole
    kind = choose(4)
    if kind == 0:
        return file.durable
    if kind == 1:
        return whole
    if kind == 2:
        return whole[: kept + choose(len(whole) - kept + 1)]
    torn = bytearray(whole)
    for sector in range(kept // SECTOR_BYTES * SECTOR_BYTES, len(whole), SECTOR_BYTES):
        left, right = max(sector, kept), min(sector + SECTOR_BYTES, len(whole))
        if choose(2):
            torn[left:right] = bytes(right - left)
    return bytes(torn)


class View:
    """The `ray_sink.filesystem.Filesystem` of one process."""

    def __init__(self, disk: Disk, process: Process) -> None:
        self.disk = disk
        self.process = process

    def _step(self, kind: str, path: Path) -> None:
        self.disk.script.step(self.process, kind, path)
        self._fault(kind, path, after=False)

    def _fault(self, kind: str, path: Path, *, after: bool) -> None:
        fault = self.disk.faults.get(kind)
        if fault is not None and fault.after == after and not self.process.observer:
            fault.times -= 1
            if not fault.times:
                del self.disk.faults[kind]
            self.disk.script.fired(f"{kind} fails", str(path))
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    def create(self, path: Path) -> NewFile:
        self._step("create", path)
        if path.name in self.disk.folder(path.parent).visible:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        file = File()
        self.disk.put(path, file, self.process)
        return _Handle(self, path, file)

    def create_with(self, path: Path, data: bytes) -> None:
        self._step("create_with", path)
        folder = self.disk.folder(path.parent)
        if path.name in folder.visible:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        self.disk.put(path, File(bytearray(data), data), self.process)
        self.disk.settle(folder)
        self._fault("create_with", path, after=True)

    def replace_with(self, path: Path, data: bytes) -> None:
        self._step("replace_with", path)
        self.disk.put(path, File(bytearray(data)), self.process)

    def read(self, path: Path) -> bytes:
        self._step("read", path)
        node = self.disk.node(path)
        if isinstance(node, Folder):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        return bytes(node.visible)

    def size(self, path: Path) -> int | None:
        self._step("size", path)
        try:
            node = self.disk.node(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return len(node.visible) if isinstance(node, File) else None

    def rename(self, source: Path, target: Path) -> None:
        self._step("rename", source)
        node = self.disk.node(source)
        there = self.disk.folder(target.parent).visible.get(target.name)
        if isinstance(there, Folder) and (isinstance(node, File) or there.visible):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(target))
        self.disk.put(target, node, self.process, came_from=source)
        self._fault("rename", source, after=True)

    def remove(self, path: Path) -> None:
        self._step("remove", path)
        try:
            node = self.disk.node(path)
        except FileNotFoundError:
            return
        if isinstance(node, Folder):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        self.disk.take_away(path, self.process)

    def remove_dir(self, path: Path) -> None:
        self._step("remove_dir", path)
        try:
            node = self.disk.folder(path)
        except FileNotFoundError:
            return
        if node.visible:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(path))
        self.disk.take_away(path, self.process)

    def list(self, path: Path) -> list[str]:
        self._step("list", path)
        try:
            return sorted(self.disk.folder(path).visible)
        except (FileNotFoundError, NotADirectoryError):
            return []

    def has_dir(self, path: Path) -> bool:
        self._step("has_dir", path)
        try:
            self.disk.folder(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def make_dirs(self, path: Path, *, below: Path) -> None:
        here = below
        for part in path.relative_to(below).parts:
            parent, here = here, here / part
            self._step("make_dir", here)
            folder = self.disk.folder(parent)
            made = part not in folder.visible
            if made:
                self.disk.put(here, Folder(), self.process)
            elif isinstance(folder.visible[part], File):
                raise StagingError(f"{here} is in the way")
            try:
                self.sync_dir(parent)
            except OSError:
                if made:
                    self.remove_dir(here)
                raise

    def sync_dir(self, path: Path) -> None:
        try:
            self._step("sync_dir", path)
        except OSError:
            self.disk.lose(self.disk.folder(path), self.process)
            raise
        self.disk.settle(self.disk.folder(path))


class _Handle:
    """A file being written; a process can end in the middle of a write."""

    def __init__(self, view: View, path: Path, file: File) -> None:
        self._view, self._path, self._file = view, path, file

    def write(self, data: Buffer) -> None:
        whole = bytes(data)
        for part in (whole[: len(whole) // 2], whole[len(whole) // 2 :]):
            self._view._step("write", self._path)
            if self._file.final:
                raise Violation(f"I2: {self._path} is written to under a final name")
            self._file.visible += part

    def sync(self) -> None:
        try:
            self._view._step("sync", self._path)
        except OSError:
            self._file.lost = True
            raise
        if not self._file.lost:
            self._file.durable = bytes(self._file.visible)

    def close(self) -> None:
        self._view._step("close", self._path)
