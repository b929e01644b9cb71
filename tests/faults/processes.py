"""Jobs as processes of their own, and the faults that ``strace`` injects into them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

from tests.faults import zygote
from tests.waiting import until

KILLED = -signal.SIGKILL
_CALL = re.compile(r"(?P<tid>\d+)\s+(?P<name>\w+)\((?P<rest>.*)")
_REST = re.compile(r"(?P<tid>\d+)\s+<\.\.\. \w+ resumed>(?P<rest>.*)")


def needs(what: str, there: bool) -> None:
    """A laptop may do without; CI may not."""
    if there:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI must have {what}")
    pytest.skip(f"needs {what}")


@dataclass(frozen=True, slots=True)
class Injection:
    """What to do with a system call.

    Attributes:
        calls: their names, ``"fsync"`` or ``"openat,rename"``.
        what: ``error=EIO``, ``signal=KILL``, ``delay_enter=1000``, ``retval=3``; joined by colons.
        when: which calls of each thread, ``"3"``, ``"2+"``, ``"1..2"``.
    """

    calls: str
    what: str
    when: str = "1+"

    def __str__(self) -> str:
        return f"inject={self.calls}:{self.what}:when={self.when}"


@dataclass(frozen=True, slots=True)
class Call:
    """A system call as strace wrote it down.

    Attributes:
        tid: its thread.
        name: ``"openat"``.
        text: arguments and result.
        number: the how manyeth of its name in its thread, from 1.
        on_path: the how manyeth of those on its file, where somebody has counted.
    """

    tid: int
    name: str
    text: str
    number: int
    on_path: int = 0

    @property
    def injected(self) -> bool:
        return "(INJECTED)" in self.text or "(DELAYED)" in self.text


@dataclass
class Process:
    """A job that has been started."""

    inner: ForkServerProcess
    go: Connection
    out: Path
    log: Path
    strace: subprocess.Popen[str] | None = None
    _ended: int | None = field(default=None)

    @property
    def pid(self) -> int:
        assert self.inner.pid is not None
        return self.inner.pid

    def begin(self) -> None:
        self.go.send_bytes(b"")

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def stops(self, deadline_s: float = 30) -> None:
        """Return when an injected SIGSTOP has stopped it."""

        def stopped() -> bool:
            # strace leaves a stopped tracee in a trace stop of its own kind
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
            return state in "Tt" and "--- stopped by SIGSTOP ---" in self.log.read_text(errors="replace")

        until(stopped, deadline_s=deadline_s)

    def wakes(self, deadline_s: float = 60) -> int:
        """Let it go on after `stops`, and again: strace counts each thread's calls. Its exit status."""

        def ended() -> bool:
            with suppress(ProcessLookupError):
                self.signal(signal.SIGCONT)
            return self.inner.exitcode is not None

        until(ended, deadline_s=deadline_s)
        return self.wait()

    def wait(self, deadline_s: float = 60) -> int:
        """Its exit status; a negative one is the signal that ended it."""
        if self._ended is None:
            self.inner.join(deadline_s)
            code = self.inner.exitcode
            if code is None:
                raise TimeoutError(f"the job has not ended; it said {self.said()[-3:]}")
            if self.strace is not None:
                self.strace.wait(10)
            self._ended = code
        return self._ended

    def stop(self) -> None:
        if self._ended is None and self.inner.exitcode is None:
            self.inner.kill()
            self.inner.join()
        if self.strace is not None:
            self.strace.kill()
            self.strace.wait()
        self.go.close()

    def said(self, name: str | None = None) -> list[Any]:
        """What it has said; under `name`, the values only."""
        if not self.out.exists():
            return []
        text = self.out.read_text()
        lines = text[: text.rfind("\n") + 1].splitlines()
        broken = [line for line in lines if not line.startswith("{")]
        if broken:
            raise AssertionError("the job broke:\n" + "\n".join(broken))
        facts = [json.loads(line) for line in lines]
        return facts if name is None else [fact[name] for fact in facts if name in fact]

    def hears(self, name: str, times: int = 1, deadline_s: float = 30) -> None:
        """Return when it has said `name` so many times."""
        until(lambda: len(self.said(name)) >= times or self.inner.exitcode is not None, deadline_s=deadline_s)
        assert len(self.said(name)) >= times, f"it ended with {self.inner.exitcode} and said {self.said()[-3:]}"

    def calls(self) -> list[Call]:
        """The system calls that strace has seen, in the order in which they ended; last those that never did."""
        counts: dict[tuple[int, str], int] = {}
        begun: dict[int, Call] = {}
        ended: list[Call] = []
        for line in self.log.read_text(errors="replace").splitlines():
            if match := _REST.match(line):
                call = begun.pop(int(match["tid"]))
                ended.append(replace(call, text=call.text + match["rest"]))
            elif match := _CALL.match(line):
                key = (int(match["tid"]), match["name"])
                counts[key] = counts.get(key, 0) + 1
                text, unfinished, _ = match["rest"].partition(" <unfinished ...>")
                call = Call(*key, text, counts[key])
                if unfinished:
                    begun[key[0]] = call  # another thread's call comes in between
                else:
                    ended.append(call)
        return [*ended, *begun.values()]

    def injected(self) -> list[str]:
        """The lines of strace's log in which it says that it did something, results of interrupted calls included."""
        words = ("(INJECTED)", "(DELAYED)", "+++ killed by")
        return [line for line in self.log.read_text(errors="replace").splitlines() if any(w in line for w in words)]


def attach(
    pid: int,
    log: Path,
    inject: Sequence[Injection],
    trace: str | None = None,
    paths: Sequence[Path] = (),
    text_bytes: int = 16,
) -> subprocess.Popen[str]:
    """Have strace look at a process that runs; for the arguments see `Jobs.start`."""
    needs("strace (Debian package strace)", shutil.which("strace") is not None)
    names = ",".join([*(one.calls for one in inject), *([trace] if trace else [])])
    command = ["strace", "-f", "-y", "-s", str(text_bytes), "-o", str(log), "-e", f"trace={names}"]
    for one in inject:
        command += ["-e", str(one)]
    for path in paths:
        command += ["-P", str(path)]
    made = subprocess.Popen([*command, "-p", str(pid)], stderr=subprocess.PIPE, text=True)
    assert made.stderr is not None
    line = made.stderr.readline()
    if "attached" not in line:
        made.wait()
        needs(f"the right to trace processes (strace says: {line.strip()})", False)
    return made


class Jobs:
    """Starts jobs, and ends them all."""

    def __init__(self) -> None:
        self._context = zygote.context()
        self._started: list[Process] = []

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """What is started in here does not outlive it."""
        before, self._started = self._started, []
        try:
            yield
        finally:
            for process in self._started:
                process.stop()
                shutil.rmtree(process.out.parent, ignore_errors=True)
            self._started = before

    def start(
        self,
        *argv: object,
        inject: Sequence[Injection] = (),
        trace: str | None = None,
        paths: Sequence[Path] = (),
        first: Callable[[int], object] = lambda pid: None,
        text_bytes: int = 16,
    ) -> Process:
        """Start a job.

        Args:
            argv: its arguments.
            inject: faults.
            trace: system calls to log besides those; None: only those.
            paths: look only at calls on these files, and inject only there.
            first: called with its process id before it begins.
            text_bytes: how much of what is written is logged.
        """
        folder = Path(tempfile.mkdtemp(prefix="job-"))
        inner, go = zygote.started(self._context, [str(argument) for argument in argv], folder / "out")
        process = Process(inner, go, folder / "out", folder / "log")
        self._started.append(process)
        if inject or trace:
            process.strace = attach(process.pid, process.log, inject, trace, paths, text_bytes)
        first(process.pid)
        process.begin()
        return process

    def run(self, *argv: object, **options: Any) -> Process:
        """Start a job and wait for its end."""
        process = self.start(*argv, **options)
        process.wait()
        return process
