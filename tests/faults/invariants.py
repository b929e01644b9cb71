"""What must hold after every fault, looked at from outside: files and objects, the seal, what the job said.

I1 what was accepted is committed exactly once, or reported by name; I2 no reader ever sees a partial or wrong file;
I3 the manifest equals what is there; I4 no temp is left after clean-up; I5 ``_SUCCESS`` implies I1 and I3.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ray_sink.checksum import checksum_of
from ray_sink.keys import RESERVED
from ray_sink.manifest import Seal, from_parquet, run_path
from ray_sink.records import Receipt, State

_OURS = re.compile(
    rf"{RESERVED}/(_owner/(epoch|beat|released)-\d{{6}}"
    r"|[^/]+/(journal/\d{6}\.\d{3}(/\d{15}-\d{15})?|manifest-\d{6}-[0-9a-f]{16}\.parquet|_SUCCESS|report\.json))"
)


class Objects(Protocol):
    """A destination as its readers see it."""

    def names(self) -> Sequence[str]:
        """Every name in it."""

    def read(self, name: str) -> bytes:
        """What is under `name`."""


class Folder:
    """A folder as its readers see it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> list[str]:
        # folders may go while they are walked through
        found = (os.path.join(folder, name) for folder, _, names in os.walk(self.root) for name in names)
        return sorted(os.path.relpath(path, self.root) for path in found)

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()


def outputs_in(place: Objects) -> dict[str, bytes]:
    """Contents of everything under a final name; what is taken away meanwhile is left out."""
    found = {}
    for name in place.names():
        if not name.startswith(f"{RESERVED}/"):
            try:
                found[name] = place.read(name)
            except FileNotFoundError:
                continue
    return found


class Checker:
    """Knows what a run's outputs are, and hears what its jobs say.

    Args:
        staging: the staging folder.
        dest: the destination; None where staging is.
        run_id: the run.
        contents: what may be under each path: the bytes, or those of several attempts.
    """

    def __init__(
        self, staging: Path, dest: Objects | None, run_id: str, contents: Mapping[str, bytes | Sequence[bytes]]
    ) -> None:
        self.staging = Folder(staging)
        self.dest = dest or self.staging
        self.run_id = run_id
        self.contents = {path: [data] if isinstance(data, bytes) else data for path, data in contents.items()}
        self.receipts: dict[str, tuple[str, Mapping[str, str]]] = {}
        self.accepted: set[str] = set()

    def hear(self, said: Iterable[Mapping[str, Any]]) -> None:
        """Take in what a job said: a key has one receipt, whoever asks and whenever."""
        for fact in said:
            if "accepted" in fact:
                self.accepted.add(fact["accepted"])
            for name in ("acknowledged", "uploaded"):
                if name in fact:
                    now = (fact["attempt"], fact["files"])
                    before = self.receipts.setdefault(fact[name], now)
                    assert before == now, f"P3: {fact[name]} was acknowledged as {before} and then as {now}"

    def unfinished(self) -> None:
        """What holds at any time, in the middle of a run as well."""
        for path, data in [*outputs_in(self.staging).items(), *outputs_in(self.dest).items()]:
            self.right(path, data)
        self._acknowledged_is_there()
        self.sealed()

    def finished(self) -> Seal:
        """What holds after a run that came to its end and cleared up."""
        self.unfinished()
        seal = self.sealed()
        assert seal is not None, "the run is not sealed"
        if self.dest is not self.staging:
            assert not (staged := sorted(outputs_in(self.staging))), f"staged files were not freed: {staged}"
        places = [self.staging] if self.dest is self.staging else [self.staging, self.dest]
        left = [n for place in places for n in place.names() if n.startswith(f"{RESERVED}/") and not _OURS.fullmatch(n)]
        assert left == [], f"I4: {left}"
        return seal

    def right(self, path: str, data: bytes) -> None:
        assert path in self.contents, f"I2: {path} is no output of this run"
        assert data in self.contents[path], f"I2: {path} holds {len(data)} bytes that nobody wrote"

    def _acknowledged_is_there(self) -> None:
        there: dict[str, set[str]] = {}
        for place in (self.staging, self.dest):
            for path, data in outputs_in(place).items():
                there.setdefault(path, set()).add(checksum_of([data]))
        for key, (_, files) in self.receipts.items():
            for path, checksum in files.items():
                assert there.get(path) == {checksum}, f"I1: {key}: {path} is {there.get(path)}, and not {checksum}"

    def sealed(self) -> Seal | None:
        """I5: where there is a seal, everything is there, once, and the manifest says so."""
        path = run_path(self.run_id, "_SUCCESS")
        if path not in self.dest.names():
            return None
        try:
            seal = Seal.from_json(self.dest.read(path))
        except FileNotFoundError:
            return None  # a mount that lies lists it before it opens it; at the end it has to be there
        rows: list[Receipt] = []
        for file in seal.manifest:
            data = self.dest.read(file.path)
            assert len(data) == file.bytes
            rows += from_parquet(data)
        there = outputs_in(self.dest)
        assert set(there) == set(self.contents), "I1: the outputs are not those of the run"
        listed = {file.path: file for row in rows for file in row.files}
        assert len(listed) == sum(len(row.files) for row in rows) == seal.files, "I3: a file has two rows"
        assert set(listed) == set(there), "I3: the manifest does not list what is there"
        for name, data in there.items():
            assert (listed[name].bytes, listed[name].checksum) == (len(data), checksum_of([data])), f"I3: {name}"
            self.right(name, data)
        for row in rows:
            assert row.state is (State.STAGED if self.dest is self.staging else State.UPLOADED)
            told = self.receipts.get(row.key)
            mine = (row.attempt, {file.path: file.checksum for file in row.files})
            assert told in (None, mine), f"P3: {row.key} was acknowledged as {told} and sealed as {mine}"
        assert seal.outputs == len({row.key for row in rows}) == len(rows), "P3: a key has two rows"
        return seal


class Reader:
    """Reads everything that is visible, over and over, until it is left; I2 and I5 for whoever looks at a bad time.

    Attributes:
        seen: how many files it has read.
    """

    def __init__(self, checker: Checker) -> None:
        self._checker = checker
        self._places = [checker.staging] if checker.dest is checker.staging else [checker.staging, checker.dest]
        self._left = threading.Event()
        self._wrong: list[BaseException] = []
        self.seen = 0
        self._thread = threading.Thread(target=self._run, name="reader", daemon=True)

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._left.set()
        self._thread.join()
        if self._wrong and error[0] is None:
            raise self._wrong[0]

    @property
    def found_something(self) -> bool:
        return bool(self._wrong)

    def _run(self) -> None:
        sealed = False
        try:
            while not self._left.wait(0.001):
                for place in self._places:
                    for path, data in outputs_in(place).items():
                        self.seen += 1
                        self._checker.right(path, data)
                # at the first sight of it, everything has to be there already
                sealed = sealed or self._checker.sealed() is not None
        except BaseException as error:  # noqa: BLE001 - raised on leaving
            self._wrong.append(error)
