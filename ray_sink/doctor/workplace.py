"""A folder of the doctor's own below ``_ray_sink/``, which nobody has to clean up after."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray_sink.filesystem import Filesystem
from ray_sink.keys import RESERVED

_PREFIX = "doctor-"
_BEAT = "beat"
_EVERY_S = 0.2
_STILL_S = 3.0
"""A doctor whose counter stands still for so long, on the observer's own clock, is dead: seconds."""


@contextmanager
def workplace(fs: Filesystem, root: Path) -> Iterator[Path]:
    """A new folder below `root`, gone afterwards, and with it what doctors left that were killed.

    Raises:
        OSError: nothing can be written there.
    """
    ours = root / RESERVED
    was_there = ours.exists()
    folder = ours / f"{_PREFIX}{os.urandom(8).hex()}"
    others = {ours / name: _beat_of(fs, ours / name) for name in fs.list(ours) if name.startswith(_PREFIX)}
    began = time.monotonic()
    try:
        fs.make_dirs(folder, below=root)
        with _beating(fs, folder):
            yield folder
            if others:
                threading.Event().wait(max(0.0, began + _STILL_S - time.monotonic()))
                for other, beat in others.items():
                    if _beat_of(fs, other) == beat:
                        shutil.rmtree(other, ignore_errors=True)  # another doctor may be doing the same
    finally:
        if folder.exists():
            shutil.rmtree(folder)
        if (not was_there or others) and ours.exists() and not os.listdir(ours):
            ours.rmdir()


def _beat_of(fs: Filesystem, folder: Path) -> bytes | None:
    try:
        fs.sync_dir(folder)  # on NFS, opening the folder is what makes the machine ask for its names again
        return fs.read(folder / _BEAT)
    except FileNotFoundError:
        return None


@contextmanager
def _beating(fs: Filesystem, folder: Path) -> Iterator[None]:
    ended = threading.Event()

    def beat() -> None:
        count = 0
        while not ended.is_set():
            try:
                fs.replace_with(folder / _BEAT, str(count).encode())
            except OSError:
                return  # whoever took it away took us for dead; the looks will say so
            count += 1
            ended.wait(_EVERY_S)

    thread = threading.Thread(target=beat, name="doctor-beat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
