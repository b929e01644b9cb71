"""A process that reads what another one publishes, and counts what no reader should ever see.

``python -m ray_sink.doctor.watcher FOLDER`` says ``ready``, reads until its standard input ends, and prints one line of
JSON.
"""

from __future__ import annotations

import json
import select
import struct
import sys
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

REPLACED = "replaced"
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


@dataclass(slots=True)
class Sightings:
    """What the watcher saw.

    Attributes:
        reads: files read.
        torn: reads that gave part of a file.
        vanished: times that a name which is only ever replaced was not there.
        published: new names seen.
    """

    reads: int = 0
    torn: int = 0
    vanished: int = 0
    published: int = 0


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


def main() -> None:
    """Watch the folder that the first argument names."""
    watcher = Watcher(Path(sys.argv[1]))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while not select.select([sys.stdin], [], [], 0)[0]:
        watcher.look()
    while watcher.look():  # what is published by now
        continue
    sys.stdout.write(json.dumps(asdict(watcher.seen)) + "\n")


if __name__ == "__main__":
    main()
