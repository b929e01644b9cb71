"""What a power cut would leave, told from the system calls that a job has made.

Contents last from the `fsync` of their file, names from the `fsync` of their folder; a rename is one change, which the
`fsync` of either folder makes last. Everything else is taken: the worst that a disk may do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tests.faults.processes import Call

CALLS = "openat,write,fsync,rename,mkdir,unlink,link,rmdir"
_QUOTED = re.compile(r'"([^"]*)"')
_FD = re.compile(r"^\d+<([^>]*)>")
_RESULT = re.compile(r"= (-?\d+)")


@dataclass(eq=False)
class _File:
    bytes: int = 0
    durable_bytes: int = 0


@dataclass(eq=False)
class _Change:
    """A change of one name, or of two by a rename, that is not durable yet."""

    gone: str | None
    there: str | None
    what: _File | None


@dataclass
class Disk:
    """Names and sizes below one folder, as they are and as they would be found after a power cut; folders are None."""

    root: str
    now: dict[str, _File | None] = field(default_factory=dict)
    durable: dict[str, _File | None] = field(default_factory=dict)
    _pending: list[_Change] = field(default_factory=list)

    def take(self, call: Call) -> None:
        """Do what the call did."""
        result = _RESULT.search(call.text.rpartition(")")[2])
        if result is None or int(result[1]) < 0:
            return
        names = [name.removeprefix(f"{self.root}/") for name in _QUOTED.findall(call.text) if self._mine(name)]
        fd = _FD.match(call.text)
        on = fd[1].removeprefix(f"{self.root}/") if fd and (self._mine(fd[1]) or fd[1] == self.root) else None
        if call.name == "openat" and names and "O_CREAT" in call.text:
            self._add(_Change(None, names[0], _File()))
        elif call.name == "mkdir" and names:
            self._add(_Change(None, names[0], None))
        elif call.name == "rename" and len(names) == 2:
            self._add(_Change(names[0], names[1], self.now[names[0]]))
        elif call.name == "link" and len(names) == 2:
            self._add(_Change(None, names[1], self.now[names[0]]))
        elif call.name in ("unlink", "rmdir") and names:
            self._add(_Change(names[0], None, None))
        elif call.name == "write" and on is not None and (file := self.now.get(on)) is not None:
            file.bytes += int(result[1])
        elif call.name == "fsync" and on is not None:
            self._sync(on)

    def _mine(self, name: str) -> bool:
        return name.startswith(f"{self.root}/")

    def _add(self, change: _Change) -> None:
        self._pending.append(change)
        _apply(self.now, change)

    def _sync(self, name: str) -> None:
        file = self.now.get(name)
        if file is not None:
            file.durable_bytes = file.bytes
            return
        folder = "" if name == self.root else name
        rest = []
        for change in self._pending:
            if folder in {one.rpartition("/")[0] for one in (change.gone, change.there) if one is not None}:
                _apply(self.durable, change)
            else:
                rest.append(change)
        self._pending = rest

    def sizes(self) -> Mapping[str, int | None]:
        """Names and sizes as whoever looks sees them; None for folders."""
        return {name: None if file is None else file.bytes for name, file in self.now.items()}

    def after_power_cut(self) -> Mapping[str, int | None]:
        """Names that last, with their sizes; None for folders. A name in a folder that is lost is lost."""
        found: dict[str, int | None] = {}
        for name in sorted(self.durable):
            folder = name.rpartition("/")[0]
            if not folder or folder in found:
                file = self.durable[name]
                found[name] = None if file is None else file.durable_bytes
        return found


def _apply(names: dict[str, _File | None], change: _Change) -> None:
    moved = {}
    if change.gone is not None:
        moved = {name: names.pop(name) for name in _below(names, change.gone)}
    if change.there is None:
        return
    names[change.there] = change.what
    for name, what in moved.items():
        names[change.there + name.removeprefix(change.gone or "")] = what


def _below(names: Mapping[str, object], name: str) -> list[str]:
    return [one for one in names if one == name or one.startswith(f"{name}/")]


def states(calls: list[Call], root: str) -> Iterator[tuple[int, Call, Disk]]:
    """The disk before the end of each call, by its place among them."""
    disk = Disk(root)
    for number, call in enumerate(calls):
        yield number, call, disk
        disk.take(call)
