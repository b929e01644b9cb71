"""Everything that the other tests do one at a time, at moments and in an order that nobody has thought of."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.faults.clusters import ClusterJob, ClusterRun
from tests.faults.invariants import Reader
from tests.faults.plan import Plan
from tests.faults.s3_proxy import Action, Exchange, Proxy, Reply, answer, lost, no_answer
from tests.servers import S3Bucket
from tests.waiting import until

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

_OURS = ("ray::WriterShell", "ray::UploaderShell", "ray::Coordinator")
_BROKEN_REPLIES: tuple[Action, ...] = (answer(503, "SlowDown"), answer(500, "InternalError"), no_answer, lost())


@dataclass
class Chaos:
    """What happens to one life of a job after another.

    Attributes:
        done: what has happened, in order.
    """

    draw: random.Random
    proxy: Proxy
    left: int
    done: list[str] = field(default_factory=list)

    def disturb(self, exchange: Exchange) -> Reply | None:
        """One request in thirty is not answered as it should."""
        return self.draw.choice(_BROKEN_REPLIES)(exchange) if self.draw.random() < 1 / 30 else None

    def lets_live(self, job: ClusterJob) -> bool:
        """One thing after another happens to it, until nothing is left to happen or it ends; False: it was killed."""
        lost_nodes = 0
        things: list[Callable[[ClusterJob], str]] = [self.kill, self.kill, self.kill, self.stop, self.stop, self.part]
        until(lambda: bool(job.said("began")) or not job.running, deadline_s=120)
        if self.draw.random() < 0.7:
            job.reaches(job.decided + self.draw.randrange(1, 60))
        while self.left and job.running and not job.said("sealed"):
            threading.Event().wait(self.draw.uniform(0.1, 4))
            self.left -= 1
            choice = self.draw.randrange(len(things) + 3)
            if choice < len(things):
                said = things[choice](job)
            elif choice == len(things):
                lost_nodes += 1
                said = self.lose(job) if lost_nodes == 1 else self.kill(job)
            elif choice == len(things) + 1:
                said = "replace"
                job.tell("replace")
            else:
                self.done.append("kill driver")
                job.kill_driver()
                return False
            self.done.append(said)
        return True

    def kill(self, job: ClusterJob) -> str:
        name = self.draw.choice([*_OURS, "ray::MapWorker"])
        pids = job.pids(name)
        hit = pids[: self.draw.randrange(1, 3)]
        for pid in hit:
            _signal(pid, signal.SIGKILL)
        return f"kill {len(hit)} of {len(pids)} {name}"

    def stop(self, job: ClusterJob) -> str:
        name = self.draw.choice(_OURS)
        pids = job.pids(name)[:1]
        for pid in pids:
            _signal(pid, signal.SIGSTOP)
        threading.Event().wait(self.draw.uniform(0.1, 3))
        for pid in pids:
            _signal(pid, signal.SIGCONT)
        return f"stop {name}"

    def part(self, job: ClusterJob) -> str:
        kind = self.draw.choice(["silent", "refusing"])
        self.proxy.partition(kind)  # type: ignore[arg-type]
        threading.Event().wait(self.draw.uniform(0.1, 5))
        self.proxy.heal()
        return f"store {kind}"

    def lose(self, job: ClusterJob) -> str:
        job.tell("lose")
        return "lose"


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


@pytest.mark.row(44)
@pytest.mark.parametrize("seed", range(int(os.environ.get("CHAOS_FROM", 0)), int(os.environ.get("CHAOS_TO", 4))))
def test_whatever_happens_in_whatever_order(tmp_path: Path, s3_bucket: S3Bucket, seed: int) -> None:
    draw = random.Random(seed)
    plan = Plan(outputs=300, elements=draw.choice([500, 20_000, 200_000]))
    arguments: list[object] = ["--nodes", 2, "--actors", 2, *(["--node-local"] if seed % 2 else [])]
    run = ClusterRun(tmp_path, plan, *arguments, bucket=s3_bucket)
    with Proxy(s3_bucket.server) as proxy, Reader(run.checker):
        chaos = Chaos(draw, proxy, left=14)
        proxy.on("", chaos.disturb, times=None)
        try:
            while True:
                with run.start("--work-s", 0.3, env={"AWS_ENDPOINT_URL": proxy.endpoint}) as job:
                    if chaos.lets_live(job):
                        run.finished(job)
                        return
                run.checker.unfinished()
        finally:
            print(seed, arguments, plan.elements, chaos.done, flush=True)
