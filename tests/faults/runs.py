"""A run that is disturbed, and run again: what every case has in common."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from tests.faults.invariants import Checker, Folder, Objects, Reader
from tests.faults.plan import Plan
from tests.faults.processes import KILLED, Call, Injection, Jobs, Process

T = TypeVar("T")

_PATH = re.compile(r"""[<"]([^<>"]*/whole)/([^<>"]*)[>"]""")
"""The first path in a call's text that lies in the folder ``whole``."""
_RANDOM = re.compile(r"[0-9a-f]{12,}")

ALL = os.environ.get("FAULTS") == "all"
CHANGING = "openat,write,fsync,close,rename,mkdir,unlink,link,rmdir"
"""Calls that change something, and `close`. What only looks leaves the disk as the next of these finds it."""


def some(of: Sequence[T], count: int) -> Sequence[T]:
    """About `count` of them, evenly; with ``FAULTS=all`` each."""
    return of if ALL else of[:: max(1, len(of) // count)]


@dataclass
class Run:
    """One run in folders of its own."""

    jobs: Jobs
    plan: Plan
    staging: Path
    dest: Path | str | None
    checker: Checker
    more: tuple[object, ...] = ()

    @classmethod
    def at(
        cls,
        jobs: Jobs,
        folder: Path,
        plan: Plan,
        *more: object,
        with_dest: bool = True,
        bucket: tuple[str, Objects] | None = None,
    ) -> Run:
        """A run below `folder`, which is made; to a folder beside its staging folder, a bucket by URL, or nowhere."""
        staging, dest = folder / "staging", folder / "dest"
        staging.mkdir(parents=True, exist_ok=True)
        place: Objects | None = None
        target: Path | str | None = None
        if bucket is not None:
            target, place = bucket
        elif with_dest:
            dest.mkdir(exist_ok=True)
            target, place = dest, Folder(dest)
        return cls(jobs, plan, staging, target, Checker(staging, place, "run-1", plan.contents()), more)

    @property
    def arguments(self) -> list[object]:
        split = ["--split"] if self.plan.split else []
        sizes = ["--outputs", self.plan.outputs, "--seed", self.plan.seed, "--elements", self.plan.elements]
        return ["--staging", self.staging, "--dest", self.dest or "none", *sizes, *split, *self.more]

    def start(self, *more: object, **options: object) -> Process:
        return self.jobs.start(*self.arguments, *more, **options)  # type: ignore[arg-type]

    def hear(self, job: Process) -> int:
        """Wait for its end, and check what holds then."""
        code = job.wait()
        self.checker.hear(job.said())
        self.checker.unfinished()
        return code

    def disturbed(self, *more: object, inject: Sequence[Injection], **options: object) -> Process:
        """The run with something wrong, under the eyes of a reader."""
        with Reader(self.checker):
            # an owner that looks alive for long: no beat of its heart mixes its calls with those of the run
            job = self.start("--takeover-s", 60, *more, inject=inject, **options)
            self.hear(job)
        return job

    def again(self, *more: object) -> Process:
        """The same run once more, undisturbed: it finishes."""
        with Reader(self.checker):
            job = self.start("--takeover-s", 0.1, *more)
            assert self.hear(job) == 0, job.said()[-1]
        self.checker.finished()
        return job

    def killed_at(self, call: Call, *more: object) -> bool:
        """The run, killed before that call, and finished; whether it came to that call."""
        job = self.disturbed(**at_call(call, "signal=KILL", self))
        code = job.wait()
        assert code in (KILLED, 0), job.said()[-1]
        # the attempts of another producer
        self.again("--nonce", "y", *more)
        return code == KILLED


def at_call(call: Call, what: str, run: Run) -> dict[str, Any]:
    """How to inject something at a call that another, undisturbed run made in the folder ``whole``.

    Where its file has a name that is known beforehand only calls on that file count: they are the same each time,
    whichever thread makes them. Else the calls of its thread count.
    """
    folder = run.staging.parent
    found = _PATH.search(call.text)
    if found is None or _RANDOM.search(found[2]):
        return {"inject": [Injection(call.name, what, str(call.number))]}
    return {"inject": [Injection(call.name, what, str(call.on_path))], "paths": [folder / found[2]]}


def fire(call: Call, folder: Path, case: Callable[[Call, Path], bool], *, in_turns: bool) -> None:
    """Have `case` happen at `call`, in a folder of its own below `folder`; it says whether it came to that.

    Where threads take turns (`in_turns`) one may make fewer calls of a kind than in the run in which `call` was seen:
    then an earlier one of that kind is taken. One of them must fire.
    """
    tried: list[Call] = []
    for number, less in enumerate((1, 1, 2, 4, 8, 1000) if in_turns else (1,)):
        chosen = replace(call, number=max(1, call.number // less), on_path=max(1, call.on_path // less))
        tried.append(chosen)
        try:
            if case(chosen, folder / str(number)):
                return
        except BaseException as error:
            error.add_note(f"at {chosen}")
            raise
    raise AssertionError(f"nothing fired at any of {tried}")


def changes(job: Process, root: Path) -> list[Call]:
    """The calls of a traced job that change something below `root`, and those by which it says something."""
    counts: dict[tuple[int, str, str], int] = {}
    calls = []
    for call in job.calls():
        if found := _PATH.search(call.text):
            key = (call.tid, call.name, found[2])
            counts[key] = counts.get(key, 0) + 1
            call = replace(call, on_path=counts[key])
        calls.append(call)
    return [
        call
        for call in calls
        if (str(root) in call.text or (call.name == "write" and call.text.startswith("1<")))
        and (call.name != "openat" or "O_CREAT" in call.text)
    ]
