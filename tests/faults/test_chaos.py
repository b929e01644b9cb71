"""What the other tests do one at a time, at moments and in an order that nobody has thought of.

A seed has the run's options, too. There are three seeds for each kind of staging; with ``CHAOS=10-30`` in the
environment it is these, for who has an evening.
"""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

import pytest

from tests.faults.clusters import ClusterJob, ClusterRun
from tests.faults.invariants import Reader
from tests.faults.plan import Plan
from tests.faults.s3_proxy import Action, Exchange, Proxy, Reply, answer, lost, no_answer
from tests.servers import S3Bucket
from tests.waiting import until

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

_THINGS = 14
_OURS = ("ray::WriterShell", "ray::UploaderShell", "ray::Coordinator")
_KINDS: tuple[Literal["silent", "refusing"], ...] = ("silent", "refusing")
_REPLIES: tuple[Action, ...] = (answer(503, "SlowDown"), answer(500, "InternalError"), no_answer, lost())


class Chaos:
    """Things that happen to a run, as the seed has it: to one life of its job, and then to the next.

    Attributes:
        done: what has happened.
    """

    def __init__(self, seed: int, proxy: Proxy) -> None:
        self.done: list[str] = []
        self._draw = random.Random(seed)
        # requests come when they do: they must not shift what the seed has for the job
        self._replies = random.Random(seed)
        self._proxy = proxy

    def disturb(self, exchange: Exchange) -> Reply | None:
        """One request in thirty is not answered as it should."""
        return self._replies.choice(_REPLIES)(exchange) if self._replies.random() < 1 / 30 else None

    def lets_live(self, job: ClusterJob) -> bool:
        """One thing after another happens to it, until nothing is left to happen or it ends; False: it was killed."""
        until(lambda: bool(job.said("began")) or not job.running, deadline_s=120)
        if self._draw.random() < 0.7:
            target = job.decided + self._draw.randrange(1, 60)
            until(lambda: job.decided >= target or not job.running, deadline_s=240)
        things: list[Callable[[ClusterJob], str]] = [self._kill, self._kill, self._stop, self._part]
        things += [self._replace, self._end, self._lose]
        while len(self.done) < _THINGS and job.running and not job.said("sealed"):
            threading.Event().wait(self._draw.uniform(0.1, 4))
            thing = self._draw.choice(things)
            self.done.append(thing(job))
            if thing == self._end:
                return False
            if thing == self._lose:
                things.pop()  # with both nodes gone it could not go on
        return True

    def _replace(self, job: ClusterJob) -> str:
        job.tell("replace")
        return "a node drained, another there"

    def _lose(self, job: ClusterJob) -> str:
        job.tell("lose")
        return "a node lost"

    def _end(self, job: ClusterJob) -> str:
        job.kill_driver()
        return "the driver killed"

    def _kill(self, job: ClusterJob) -> str:
        name = self._draw.choice([*_OURS, "ray::MapWorker"])
        hit = _some(job, name)[: self._draw.randrange(1, 3)]
        _signal(hit, signal.SIGKILL)
        return f"{len(hit)} {name} killed"

    def _stop(self, job: ClusterJob) -> str:
        name = self._draw.choice(_OURS)
        hit = _some(job, name)[:1]
        _signal(hit, signal.SIGSTOP)
        threading.Event().wait(self._draw.uniform(0.1, 3))
        _signal(hit, signal.SIGCONT)
        return f"{len(hit)} {name} stopped for a while"

    def _part(self, job: ClusterJob) -> str:
        kind = self._draw.choice(_KINDS)
        self._proxy.partition(kind)
        threading.Event().wait(self._draw.uniform(0.1, 5))
        self._proxy.heal()
        return f"the store {kind}"


def _some(job: ClusterJob, name: str) -> list[int]:
    """Processes of this name, as soon as there are any; none where the job ends before."""
    until(lambda: bool(job.pids(name) or job.said("sealed")) or not job.running, deadline_s=120)
    return job.pids(name)


def _signal(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _seeds() -> range:
    first, _, last = os.environ.get("CHAOS", "0-2").partition("-")
    return range(int(first), int(last or first) + 1)


def _options(seed: int, *, node_local: bool) -> list[object]:
    draw = random.Random(f"options {seed}")
    options: list[object] = ["--per-node", draw.choice((1, 1, 2)), "--uploaders", draw.choice((1, 1, 2))]
    options += ["--engine", draw.choice(("obstore", "obstore", "fsspec"))]
    options += ["--node-local"] if node_local else ["--ack", draw.choice(("staged", "uploaded"))]
    return options + ["--tight"] * draw.choice((0, 1))


@pytest.mark.row(44)
@pytest.mark.parametrize("seed", _seeds())
@pytest.mark.parametrize("node_local", [False, True], ids=["shared", "node-local"])
def test_whatever_happens_in_whatever_order(
    tmp_path: Path, s3_bucket: S3Bucket, seed: int, *, node_local: bool
) -> None:
    plan = Plan(outputs=300, elements=(500, 20_000, 100_000)[seed % 3])
    options = _options(seed, node_local=node_local)
    run = ClusterRun(tmp_path, plan, "--nodes", 2, "--actors", 2, *options, bucket=s3_bucket)
    with Proxy(s3_bucket.server) as proxy, Reader(run.checker):
        chaos = Chaos(seed, proxy)
        proxy.on("", chaos.disturb, times=None)
        try:
            while True:
                with run.start("--work-s", 0.3, env={"AWS_ENDPOINT_URL": proxy.endpoint}) as job:
                    if chaos.lets_live(job):
                        run.finished(job)
                        return
                run.checker.unfinished()
        finally:
            print(*options, "; ".join(chaos.done))
