"""A local file that remembers what a verification has checked, so that one that is cut off goes on."""

from __future__ import annotations

import fcntl
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from ray_sink.errors import ConfigError
from ray_sink.verification import PieceVerdict, Place, Problem, Trouble

_KIND: Final = "ray_sink verification 1"


class ResumeFile:
    """See `ray_sink.verification.KnownVerdicts`. A line of JSON says what it is, and one more each verdict.

    What could not be read is not remembered: whoever goes on tries it again.

    Args:
        path: the file; made where there is none.
        dest: the destination, which another verification's file would not name.

    Raises:
        ConfigError: the file is something else, of another destination, or in use.
    """

    def __init__(self, path: Path, dest: str) -> None:
        self._path = path
        self._file = path.open("a+b")
        try:
            self._lock()
            self._known = self._read({"kind": _KIND, "dest": dest})
        except BaseException:
            self._file.close()
            raise
        self._is_final = True

    @property
    def outputs(self) -> int:
        """How many outputs it has verdicts on."""
        return sum(place.outputs for place in self._known)

    def find(self, place: Place) -> PieceVerdict | None:
        """See `KnownVerdicts.find`."""
        return self._known.get(place)

    def note(self, verdict: PieceVerdict) -> None:
        """See `KnownVerdicts.note`."""
        if not verdict.is_final:
            self._is_final = False
            return
        self._append(asdict(verdict))

    def finish(self) -> None:
        """The verification has come to its end: the next one begins anew, unless something could not be read."""
        if self._is_final:
            self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"another verify is using {self._path}") from error

    def _read(self, head: dict[str, str]) -> dict[Place, PieceVerdict]:
        """What is there; what was half written when its writer died is cut off."""
        self._file.seek(0)
        first = self._file.readline()
        if not first:
            self._append(head)
            return {}
        found = _parsed(first)
        if not isinstance(found, dict) or found.get("kind") != _KIND:
            raise ConfigError(f"{self._path} was not made by --resume: name a file that is not there yet")
        if found != head:
            raise ConfigError(f"{self._path} is of a verify of {found.get('dest')!r}: name another file")
        known: dict[Place, PieceVerdict] = {}
        good = self._file.tell()
        for line in self._file:
            try:
                verdict = _verdict_of(json.loads(line))
            except (ValueError, TypeError, KeyError):
                break
            if not line.endswith(b"\n"):
                break
            known[verdict.place] = verdict
            good += len(line)
        self._file.truncate(good)
        return known

    def _append(self, what: dict[str, Any]) -> None:
        self._file.write(json.dumps(what).encode() + b"\n")
        self._file.flush()


def _parsed(line: bytes) -> object:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _verdict_of(raw: dict[str, Any]) -> PieceVerdict:
    problems = tuple(Problem(**{**problem, "trouble": Trouble(problem["trouble"])}) for problem in raw["problems"])
    return PieceVerdict(Place(**raw["place"]), raw["files"], raw["bytes"], problems)
