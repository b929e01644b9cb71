"""What an observer of the staging folder does: a process on another node, or one that looks through another mount.

``python -m ray_sink.doctor.watcher ROOT FOLDER NAME`` does it on this machine and prints one line of JSON.

The folder itself is the only channel, because whether it is one is the question. The doctor puts ``token``; an observer
that sees it answers with ``ready-<name>`` and reads what is published and replaced beside it, until there is ``end``,
which holds how many names were published, and who then races for the same names. Before ``end`` the doctor moves the
folder ``fence`` away, in which each observer had made a file: from then on nobody may make another one.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import time
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from ray_sink.doctor.mounts import mount_of
from ray_sink.filesystem import PosixFilesystem

TOKEN, END, REPLACED, FENCE = "token", "end", "replaced", "fence"
RACES = 40
LATE_S = 10.0
"""How long an observer waits for a name that is there already, seconds."""
SILENT_S = 30.0
"""A doctor that publishes nothing for so long is dead, seconds."""
_PAUSE_S = 0.01
_MEETING_S = 0.5
_MISSED = 10
"""How often racers wait for one who does not come."""
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
    return f"race-{number:03d}"


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
        unfenced_s: how long after the sight of ``end`` it could still create files under the old name of a folder that
            was moved, seconds.
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
    unfenced_s: float = 0.0
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
    fs = PosixFilesystem()
    fs.create(folder / FENCE / asked.name).close()
    fs.create(folder / f"ready-{asked.name}").close()
    racers = _until_all_is_seen(watcher, folder)
    seen.unfenced_s = _until_fenced(folder / FENCE, asked.name)
    if asked.name in racers:
        seen.won = tuple(race(folder, asked.name, racers))
    return seen


def _until_all_is_seen(watcher: Watcher, folder: Path) -> list[str]:
    """Who races afterwards."""
    heard = time.monotonic()
    ended: float | None = None
    racers: list[str] = []
    while True:
        news, now = watcher.look(), time.monotonic()
        if news:
            heard = now
        elif ended is not None and now - ended > LATE_S:
            break
        elif now - heard > SILENT_S:
            raise TimeoutError(f"nothing was published in {folder} for {SILENT_S:g} s: is the doctor dead?")
        if text := _text(folder / END):
            ended = ended or now
            count, *racers = text.split()
            if watcher.seen.published >= int(count):
                break
    watcher.seen.late_s = time.monotonic() - ended
    return racers


def _until_fenced(moved: Path, name: str) -> float:
    """How long this machine goes on creating files below a name that is gone, from its caches."""
    fs, began, number = PosixFilesystem(), time.monotonic(), 0
    while time.monotonic() - began < LATE_S:
        try:
            fs.create(moved / f"{name}-{number}").close()
        except FileNotFoundError:
            break
        number += 1
        time.sleep(_PAUSE_S)
    return time.monotonic() - began if number else 0.0


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except (FileNotFoundError, NotADirectoryError):
        return None


def race(folder: Path, name: str, racers: Sequence[str]) -> list[int]:
    """Try to be the first under each of the names, at the same moment as the others; the numbers that were won.

    A name is taken as `ray_sink.filesystem.Filesystem.create_with` takes it, by a link of a file that is there already;
    and because that file is what the others wait for, nothing lies between the meeting and the race.
    """
    won, patience = [], _MISSED
    for number in range(RACES):
        mine = folder / f"at-{number}-{name}"
        _fill(mine)
        others = [folder / f"at-{number}-{other}" for other in racers if other != name]
        end = time.monotonic() + _MEETING_S
        while patience and not all(map(os.path.lexists, others)):
            if time.monotonic() > end:
                patience -= 1
                break
        if _taken(mine, folder / race_name(number)):
            won.append(number)
    return won


def _fill(path: Path) -> None:
    file = PosixFilesystem().create(path)
    try:
        file.write(b"racer")
        file.sync()
    finally:
        file.close()


def _taken(mine: Path, name: Path) -> bool:
    try:
        os.link(mine, name)
    except FileExistsError:
        return False
    except OSError:  # no hard links here
        try:
            PosixFilesystem().create(name).close()
        except FileExistsError:
            return False
    return True


def main() -> None:
    """Watch the folder that the arguments name; the token comes by standard input."""
    root, folder, name = sys.argv[1:]
    seen = watch(Watch(root, folder, name, sys.stdin.readline().strip()))
    sys.stdout.write(json.dumps(asdict(seen)) + "\n")


if __name__ == "__main__":
    main()
