"""A job in a process of its own, and its whole family of processes looked at from outside, by /proc."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

_TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")
_OURS: Final = ("Coordinator", "Writer", "Uploader", "benchmarks")


@dataclass(frozen=True, slots=True)
class Look:
    """One process at one moment.

    Attributes:
        role: an actor's class, or ``"driver"``, or the program's name.
        cpu_s: user and system time so far.
        own_bytes: resident memory that is not shared with others.
        shared_bytes: resident shared memory, the object store's that is.
    """

    role: str
    cpu_s: float
    own_bytes: int
    shared_bytes: int


def look(root: int) -> dict[int, Look]:
    """The process `root` and all its descendants."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (stat := _read(name, "stat")):
            parents[int(name)] = int(stat.rpartition(")")[2].split()[1])
    family = {root}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return {pid: found for pid in family if (found := _look(pid, root)) is not None}


def _look(pid: int, root: int) -> Look | None:
    stat, status, command = _read(f"{pid}", "stat"), _read(f"{pid}", "status"), _read(f"{pid}", "cmdline")
    sizes = {line.partition(":")[0]: line.split()[1] for line in status.splitlines() if line.startswith("Rss")}
    if not stat or not sizes:
        return None
    spent = stat.rpartition(")")[2].split()[11:13]
    role = next((ours for ours in _OURS[:3] if f"ray::{ours}" in command), Path(command.partition("\0")[0]).name)
    return Look(
        role="driver" if pid == root else role,
        cpu_s=sum(map(int, spent)) * _TICK_S,
        own_bytes=1024 * int(sizes["RssAnon"]),
        shared_bytes=1024 * int(sizes["RssShmem"]),
    )


def _read(pid: str, name: str) -> str:
    try:
        return Path("/proc", pid, name).read_text(errors="replace")
    except OSError:
        return ""


class Job:
    """A running job, which says where it is and waits until it was looked at.

    Attributes:
        pid: its process.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.pid = process.pid
        self._process = process

    def steps(self) -> Iterator[tuple[str, str]]:
        """Each step that the job comes to, with what it says of it; it goes on when the next one is asked for."""
        assert self._process.stdout is not None
        assert self._process.stdin is not None
        for line in self._process.stdout:
            if line.startswith("step "):
                _, name, said = line.rstrip("\n").split(" ", 2)
                yield name, said
                self._process.stdin.write("\n")
                self._process.stdin.flush()
        assert self._process.wait() == 0


@contextmanager
def job(module: str, arguments: Sequence[str], environment: Mapping[str, str]) -> Iterator[Job]:
    """Run a module's job; what is left of it at the end is killed."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    try:
        yield Job(process)
    finally:
        process.kill()
        process.wait()


def step(name: str, said: str = "") -> None:
    """In the job: say where it is, and wait."""
    sys.stdout.write(f"step {name} {said}\n")
    sys.stdout.flush()
    _line(sys.stdin)


def _line(stream: IO[str]) -> None:
    assert stream.readline(), "whoever looked on is gone"


@contextmanager
def sampled(take: Callable[[], None], every_s: float = 0.1) -> Iterator[None]:
    """Call `take` again and again meanwhile; what it raises is raised at the end."""
    ended = threading.Event()
    errors: list[Exception] = []

    def run() -> None:
        try:
            while not ended.wait(every_s):
                take()
        except Exception as error:  # noqa: BLE001 - raised below
            errors.append(error)

    thread = threading.Thread(target=run, name="sampling", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    for error in errors:
        raise error
