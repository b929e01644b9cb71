"""Processes that have imported everything already: a case costs a fork, not two seconds of imports.

A fork server (the standard library's) imports this module once and runs a small job, so that what is imported late is
there as well; every case is a child of it.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

from tests.faults import job

_WARMING = "tests.faults.warm"


def context() -> ForkServerContext:
    """Makes processes that begin as copies of a warm one."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload([_WARMING])
    return made


def started(made: ForkServerContext, argv: Sequence[str], out: Path) -> tuple[ForkServerProcess, Connection]:
    """A process that will run the job with `argv` once something is sent to it; what it says goes to `out`."""
    mine, its = made.Pipe()
    process = made.Process(target=_run, args=(list(argv), its, str(out)))
    process.start()
    its.close()
    return process, mine


def _run(argv: list[str], go: Connection, out: str) -> None:
    fd = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.read(go.fileno(), 1)
    sys.exit(job.main(argv))


def warm() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in ("staging", "dest"):
            os.mkdir(f"{folder}/{name}")
        silent, said = os.open(os.devnull, os.O_WRONLY), os.dup(1)
        os.dup2(silent, 1)
        try:
            arguments = ["--staging", f"{folder}/staging", "--dest", f"{folder}/dest", "--outputs", "1"]
            if job.main(arguments):
                raise RuntimeError("the job does not even work undisturbed")
        finally:
            os.dup2(said, 1)
            os.close(silent)
            os.close(said)
