"""What an observer of the staging folder does: a process on another node, or one that looks through another mount.

``python -m ray_sink.doctor.watcher ROOT FOLDER NAME`` does it on this machine and prints one line of JSON.

The folder itself is the only channel, because whether it is one is the question. The doctor puts ``token``; an observer
that sees it answers with ``ready-<name>`` and reads what is published and replaced beside it, until there is ``end``,
which holds how many names were published. Then all of them race for the same names.
"""

from __future__ import annotations

import json
import struct
import sys
import time
import zlib
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from ray_sink.doctor.mounts import mount_of
from ray_sink.filesystem import PosixFilesystem

TOKEN, END, REPLACED = "token", "end", "replaced"
RACES = 40
LATE_S = 10.0
"""How long an observer waits for a name that is there already, seconds."""
SILENT_S = 30.0
"""A doctor that publishes nothing for so long is dead, seconds."""
_PAUSE_S = 0.01
_RACE = "race-"
_HEAD = struct.Struct("<II")


def sealed(payload: bytes) -> bytes:
    """`payload` with its length and CRC in front."""
    return _HEAD.pack(len(payload), zlib.crc32(payload)) + payload


def is_whole(data: bytes) -> bool:
    """Whether `data` is what `sealed` made, every byte of it."""
    if len(data) < _HEAD.size:
        return False
    length, crc = _HEAD.unpack_from(data)
    payload = data[_HEAD.size :]
    return (len(payload), zlib.crc32(payload)) == (length, crc)


def new_name(number: int) -> str:
    """Name of the file that is published with this number."""
    return f"new-{number:06d}"


def race_name(number: int) -> str:
    """Name that all race for."""
    return f"{_RACE}{number:03d}"


@dataclass(frozen=True, slots=True)
class Watch:
    """What an observer is asked.

    Attributes:
        root: the staging folder as the observer names it.
        folder: path of the doctor's folder below it.
        name: tells observers apart; part of a file's name.
        token: what the file ``token`` holds.
    """

    root: str
    folder: str
    name: str
    token: str


class Place(StrEnum):
    """What an observer finds under the path of the staging folder."""

    SAME = "same"
    MISSING = "missing"
    OTHER = "other"
    """There is a folder, and what the doctor put into it is not in there."""


@dataclass(slots=True)
class Sightings:
    """What an observer saw.

    Attributes:
        place: whether it looked at the doctor's folder at all.
        mount: what is mounted there, in words.
        appeared_s: until the token was seen, on the observer's own clock, seconds.
        reads: files read.
        torn: reads that gave part of a file.
        vanished: times that a name which is only ever replaced was not there.
        published: new names seen.
        late_s: from the sight of ``end`` until all new names were seen, or were given up, seconds.
        won: the races that it thinks it has won.
        node: where it ran, if somebody asked for a certain node.
    """

    place: Place = Place.SAME
    mount: str = ""
    appeared_s: float = 0.0
    reads: int = 0
    torn: int = 0
    vanished: int = 0
    published: int = 0
    late_s: float = 0.0
    won: tuple[int, ...] = ()
    node: str = ""


class Watcher:
    """Reads in `folder` the name that is replaced, and new names in their order."""

    def __init__(self, folder: Path) -> None:
        self.seen = Sightings()
        self._folder = folder
        self._appeared = False

    def look(self) -> bool:
        """Read both once; whether there was a new name."""
        if self._read(REPLACED):
            self._appeared = True
        elif self._appeared:
            self.seen.vanished += 1
        if self._read(new_name(self.seen.published)):
            self.seen.published += 1
            return True
        return False

    def _read(self, name: str) -> bool:
        try:
            data = (self._folder / name).read_bytes()
        except FileNotFoundError:
            return False
        self.seen.reads += 1
        self.seen.torn += not is_whole(data)
        return True


def watch(asked: Watch) -> Sightings:
    """Look until the doctor says that it has published everything, then race.

    Raises:
        OSError: what is there cannot be read or written from here.
        TimeoutError: nothing was published for `SILENT_S`.
    """
    root, folder = Path(asked.root), Path(asked.root, asked.folder)
    watcher = Watcher(folder)
    seen = watcher.seen
    if not root.is_dir():
        seen.place = Place.MISSING
        return seen
    mount = mount_of(root)
    seen.mount = f"{mount.kind} at {mount.folder}" if mount is not None else "unknown"
    began = time.monotonic()
    while _text(folder / TOKEN) != asked.token:
        if time.monotonic() - began > LATE_S:
            seen.place = Place.OTHER
            return seen
        time.sleep(_PAUSE_S)
    seen.appeared_s = time.monotonic() - began
    PosixFilesystem().create(folder / f"ready-{asked.name}").close()
    _until_all_is_seen(watcher, folder)
    seen.won = tuple(race(folder, asked.name))
    return seen


def _until_all_is_seen(watcher: Watcher, folder: Path) -> None:
    heard = time.monotonic()
    ended: float | None = None
    while True:
        news, now = watcher.look(), time.monotonic()
        if news:
            heard = now
        elif ended is not None and now - ended > LATE_S:
            break
        elif now - heard > SILENT_S:
            raise TimeoutError(f"nothing was published in {folder} for {SILENT_S:g} s: is the doctor dead?")
        count = _text(folder / END)
        if count:
            ended = ended or now
            if watcher.seen.published >= int(count):
                break
    watcher.seen.late_s = time.monotonic() - ended


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except (FileNotFoundError, NotADirectoryError):
        return None


def race(folder: Path, name: str) -> list[int]:
    """Try to be the first under each of the names; the numbers of those that were won.

    Nobody gives a start signal: who is refused goes on where the others are.
    """
    fs, won, number = PosixFilesystem(), [], 0
    while number < RACES:
        try:
            fs.create_with(folder / race_name(number), name.encode())
            won.append(number)
        except FileExistsError:
            taken = [int(other[-3:]) for other in fs.list(folder) if other.startswith(_RACE)]
            number = max([number, *taken])
        number += 1
    return won


def main() -> None:
    """Watch the folder that the arguments name; the token comes by standard input."""
    root, folder, name = sys.argv[1:]
    seen = watch(Watch(root, folder, name, sys.stdin.readline().strip()))
    sys.stdout.write(json.dumps(asdict(seen)) + "\n")


if __name__ == "__main__":
    main()
