"""Those who look at the staging folder from elsewhere while the doctor writes into it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Protocol

from ray_sink.doctor.watcher import Place, Sightings, Watch


class Observer(Protocol):
    """A process that runs `ray_sink.doctor.watcher.watch` somewhere.

    The doctor calls, in this order: 1. `start`; 2. `ended`, any number of times; 3. `sightings`; 4. `stop`, always.

    Attributes:
        name: where it looks from, as people read it.
    """

    name: str

    def start(self, folder: str, name: str, token: str) -> None:
        """Begin to look at `folder`, a path below the staging folder; returns at once."""

    def ended(self) -> bool:
        """Whether it looks no more."""

    def sightings(self, timeout_s: float) -> Sightings:
        """What it saw.

        Raises:
            ObserverError: it could not look, or did not end in time.
        """

    def stop(self) -> None:
        """End it, whatever it is doing."""


class ObserverError(Exception):
    """An observer could not do its work; the message says why."""


class SecondProcess:
    """Another process on this machine.

    Args:
        root: the staging folder, or the same folder through another mount.
        name: see `Observer`.
    """

    def __init__(self, root: Path, name: str) -> None:
        self.name = name
        self._root = root
        self._process: subprocess.Popen[str] | None = None

    def start(self, folder: str, name: str, token: str) -> None:
        """See `Observer.start`."""
        asked = Watch(str(self._root), folder, name, token)
        command = [sys.executable, "-m", "ray_sink.doctor.watcher", asked.root, asked.folder, asked.name]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        assert self._process.stdin is not None
        self._process.stdin.write(f"{asked.token}\n")
        self._process.stdin.flush()

    def ended(self) -> bool:
        """See `Observer.ended`."""
        return self._process is None or self._process.poll() is not None

    def sightings(self, timeout_s: float) -> Sightings:
        """See `Observer.sightings`."""
        assert self._process is not None
        try:
            out, err = self._process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise ObserverError(f"it hangs: no answer for {timeout_s:g} s") from None
        if self._process.returncode != 0:
            raise ObserverError(err.strip().rpartition("\n")[2][:200] or f"status {self._process.returncode}")
        raw = json.loads(out)
        return Sightings(**{**raw, "place": Place(raw["place"]), "won": tuple(raw["won"])})

    def stop(self) -> None:
        """See `Observer.stop`."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
