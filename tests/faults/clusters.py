"""Whole clusters as processes of a test: started, heard, killed in part, gone at the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.faults.invariants import Checker, Folder
from tests.faults.plan import Plan
from tests.faults.s3_jobs import Objects
from tests.servers import S3Bucket
from tests.waiting import until

PROJECT = Path(__file__).parents[2]
_MARK = "RS_CLUSTER_JOB"


class ClusterJob:
    """One life of a run's driver with a Ray cluster of its own.

    Args:
        module: the program, as ``python -m`` takes it.
        arguments: of the program.
        env: settings of Ray's, for all of its processes.
        within: goes in front of the command: what enters another node.
    """

    def __init__(
        self, module: str, *arguments: object, env: Mapping[str, str] | None = None, within: Sequence[str] = ()
    ) -> None:
        self._mark = uuid.uuid4().hex
        self.facts: list[dict[str, Any]] = []
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed on leaving
        self._process = subprocess.Popen(
            [*within, sys.executable, "-m", module, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=PROJECT,
            env={**os.environ, **(env or {}), _MARK: self._mark},
        )
        self._hearing = threading.Thread(target=self._hear, daemon=True)
        self._hearing.start()

    def _hear(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            # who is killed may have begun a line
            if line.startswith("{") and line.endswith("\n"):
                self.facts.append(json.loads(line))

    def said(self, name: str) -> list[Any]:
        return [fact[name] for fact in self.facts if name in fact]

    def complained(self) -> str:
        """What it and its libraries have written to standard error."""
        self._errors.seek(0)
        return self._errors.read()

    @property
    def decided(self) -> int:
        return max(self.said("decided"), default=0)

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def reaches(self, decided: int, deadline_s: float = 240) -> None:
        """Return when so many keys are decided."""
        until(lambda: self.decided >= decided or not self.running, deadline_s=deadline_s)
        assert self.decided >= decided, f"it ended before: {self.facts[-3:]} {self.complained()[-3000:]}"

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def wait(self, deadline_s: float = 300) -> int:
        status = self._process.wait(deadline_s)
        self._hearing.join()
        return status

    def pids(self, name: str) -> list[int]:
        """Processes of this job whose command line has `name` in it."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    named = name.encode() in (entry / "cmdline").read_bytes().partition(b"\0")[0]
                    mine = named and f"{_MARK}={self._mark}".encode() in (entry / "environ").read_bytes()
                except OSError:
                    continue
                if mine and int(entry.name) != self._process.pid:
                    found.append(int(entry.name))
        return sorted(found)

    def kill(self, name: str) -> int:
        """SIGKILL one of them; returns when it is gone, with its pid."""
        until(lambda: bool(self.pids(name)), deadline_s=60)
        pid = self.pids(name)[0]
        os.kill(pid, signal.SIGKILL)
        until(lambda: pid not in self.pids(name), deadline_s=30)
        return pid

    def kill_driver(self) -> None:
        self._process.kill()
        self._process.wait(30)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._errors.close()
        for pid in self._all():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def _all(self) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    mine = f"{_MARK}={self._mark}".encode() in (entry / "environ").read_bytes()
                except OSError:
                    continue
                if mine:
                    found.append(int(entry.name))
        return found


class ClusterRun:
    """A run to a folder, or to a bucket, as often as its script is started.

    Attributes:
        staging: the staging folder; with ``--node-local``, of all nodes on this machine.
        checker: knows what must be there.
    """

    def __init__(self, folder: Path, plan: Plan, *more: object, bucket: S3Bucket | None = None) -> None:
        self.plan = plan
        self.calls_file = folder / "calls"
        self.staging, dest = folder / "staging", folder / "dest"
        for place in (self.staging, dest):
            place.mkdir()
        there = Folder(dest) if bucket is None else Objects(bucket)
        self.checker = Checker(self.staging, there, "run-1", plan.contents())
        self._env = {} if bucket is None else bucket.server.environment()
        self._arguments = [
            *("--staging", self.staging, "--dest", dest if bucket is None else bucket.url),
            *("--outputs", plan.outputs, "--elements", plan.elements, "--calls", self.calls_file, *more),
        ]

    def start(
        self, *more: object, env: Mapping[str, str] | None = None, module: str = "tests.faults.cluster_job"
    ) -> ClusterJob:
        return ClusterJob(module, *self._arguments, *more, env={**self._env, **(env or {})})

    @property
    def calls(self) -> int:
        """How often the model was called."""
        return len(self.calls_file.read_text().splitlines()) if self.calls_file.exists() else 0

    def finished(self, job: ClusterJob) -> None:
        """The job ends well, and everything holds."""
        assert job.wait() == 0, (job.facts[-3:], job.complained()[-2000:])
        assert job.said("sealed") == [self.plan.outputs]
        self.checker.finished()
