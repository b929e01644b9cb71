"""Nodes that join, drain, die and come back, over a network, while a run goes on. Every byte is compared at the end."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.cluster.conftest import RunMaker
from tests.cluster.nodes import HEAD, PRODUCER, WRITER, Node, Nodes
from tests.cluster.patience import PATIENCE_S
from tests.cluster.runs import WRITERS
from tests.faults.invariants import Reader
from tests.faults.plan import Plan
from tests.faults.processes import needs

pytestmark = [pytest.mark.ray, pytest.mark.timeout(3600)]

UPLOADER = "ray::UploaderShell"
DRAIN_S = 90
NOTICE_S = 60
TASK_BYTES = 500
"""What an uploader is told of an upload, at least."""


def has_ours(node: Node) -> bool:
    return bool(node.pod.pids(WRITERS, UPLOADER))


def test_a_whole_job_with_a_writer_on_each_node_that_has_producers(nodes: Nodes, run_of: RunMaker) -> None:
    run = run_of(Plan(outputs=240, elements=20_000))
    run.pace(2)
    with run.start() as job, Reader(run.checker):
        run.computes_on(*nodes.of(PRODUCER))
        run.until(lambda: all(node.pod.pids(WRITERS) for node in nodes.of(PRODUCER)))
        assert [node.pod.pids(WRITERS) for node in [nodes.head, *nodes.of(WRITER)]] == [[], []]
        run.pace(0)
        run.finished(job)


def test_a_node_is_killed(nodes: Nodes, run_of: RunMaker) -> None:
    run = run_of(Plan(outputs=240, elements=20_000))
    run.pace(2)
    with run.start() as job, Reader(run.checker):
        run.computes_on(*nodes.of(PRODUCER))
        run.decides(10)
        lost, left = nodes.of(PRODUCER)
        run.until(lambda: bool(lost.pod.pids(WRITERS)))
        nodes.stop(lost)
        run.until(lambda: lost.address not in nodes.alive())
        since = len(run.calls)
        run.pace(0)
        run.finished(job)
        assert {call["host"] for call in run.calls[since:]} == {left.pod.name}


def test_a_node_is_killed_with_its_disk_and_no_other_has_one_in_common(nodes: Nodes, run_of: RunMaker) -> None:
    run = run_of(Plan(outputs=240, elements=20_000), "--node-local")
    run.pace(2)
    with run.start() as job, Reader(run.checker):
        run.computes_on(*nodes.of(PRODUCER))
        run.decides(10)
        lost = nodes.of(PRODUCER)[0]
        run.until(lambda: bool(lost.pod.pids(WRITERS)))
        nodes.stop(lost)
        run.until(lambda: lost.address not in nodes.alive())
        run.pace(0)
        run.finished(job)


def test_a_node_with_a_disk_of_its_own_is_cut_off_and_comes_back(nodes: Nodes, run_of: RunMaker) -> None:
    """The zombie has outputs on its disk and is about to upload them when it is cut off; back, it does."""
    run = run_of(Plan(outputs=400, elements=20_000), "--node-local", "--producers", 1, "--held")
    run.pace(2)
    with run.start() as job, Reader(run.checker):
        run.decides(6)
        (zombie,) = (node for node in nodes.of(PRODUCER) if node.pod.name == run.calls[0]["host"])
        (other,) = (node for node in nodes.of(PRODUCER) if node is not zombie)
        run.hold()
        before = len(run.calls)
        run.until(lambda: len(run.calls) >= before + 3 and run.holds(zombie))
        uploaders = zombie.pod.pids(UPLOADER)
        assert uploaders
        for pid in uploaders:
            os.kill(pid, signal.SIGSTOP)
        told_bytes = zombie.pod.cable.unread_bytes(*uploaders)
        run.let_go()
        run.until(lambda: run.has_staged_there(zombie))
        run.until(lambda: zombie.pod.cable.unread_bytes(*uploaders) > told_bytes + TASK_BYTES)
        zombie.pod.signal("raylet", signal.SIGSTOP)  # it would end the zombie's processes as soon as it hears the truth
        zombie.pod.cable.cut()
        assert zombie.address in nodes.alive()
        held = run.temps_of(zombie)
        file_bytes = min(file.stat().st_size for file in held)
        lost = {call["first"] for call in run.calls[before:]}
        run.until(lambda: zombie.address not in nodes.alive())
        run.until(lambda: lost <= run.computed_on(other))
        run.until(lambda: all(run.is_decided(number) for number in lost))
        assert held <= run.temps_of(zombie)
        landed = run.landed()
        sent_bytes = zombie.pod.cable.sent_bytes
        zombie.pod.cable.mend()
        for pid in uploaders:
            os.kill(pid, signal.SIGCONT)
        # its writer removes them when their uploads have ended
        run.until(lambda: not held & run.temps_of(zombie))
        assert zombie.pod.cable.sent_bytes - sent_bytes > file_bytes, "it has uploaded nothing"
        zombie.pod.signal("raylet", signal.SIGCONT)
        run.until(lambda: zombie.pod.ended)
        run.pace(0)
        run.finished(job)
        assert landed.items() <= run.landed().items(), "an object was written anew"


def test_a_drain_with_a_deadline(nodes: Nodes, run_of: RunMaker) -> None:
    """Writers have nodes of their own; one of these is announced to go under load, and another is there in time."""
    run = run_of(Plan(outputs=1000, elements=50_000), "--work", "handles", "--writers-apart")
    run.pace(0.5)
    with run.start() as job:
        run.decides(10)
        (old,) = nodes.of(WRITER)
        new = nodes.start(WRITER)
        nodes.up(new)
        run.pace(0.05)
        run.decides(50)
        assert old.pod.pids(WRITERS)
        assert not new.pod.pids(WRITERS)
        began_s = time.monotonic()
        nodes.drain(old, deadline_s=DRAIN_S)
        run.until(lambda: not has_ours(old))
        ours_s = time.monotonic() - began_s
        run.pace(0.5)  # enough is left for what is seen last
        run.until(lambda: old.address not in nodes.alive())
        node_s = time.monotonic() - began_s
        run.until(lambda: bool(new.pod.pids(WRITERS)))
        run.decides(50)
        ended_s = time.monotonic()
        run.pace(0)
        run.finished(job)
        assert node_s < DRAIN_S, "a node without actors goes at once"
    print(f"\na drain with {DRAIN_S} s: our actors gone after {ours_s:.1f} s, the node after {node_s:.1f} s")
    print(f"outputs lost: 0; {ended_s - began_s:.1f} s from the announcement until the new node's writer has 50 more")
    for waits in job.said("waits"):
        during = [wait_s for since_s, wait_s in waits if since_s + wait_s > began_s and since_s < ended_s]
        # the first one waits for a writer to start
        before = [wait_s for since_s, wait_s in waits[1:] if since_s + wait_s < began_s]
        print(f"a producer's {len(during)} writes meanwhile: {sum(during):.2f} s in all, {max(during):.2f} s at most")
        print(f"its {len(before)} before: {sum(before):.2f} s in all, {max(before):.2f} s at most")


def test_every_worker_is_replaced_one_after_another_during_one_run(nodes: Nodes, run_of: RunMaker) -> None:
    """Producers' nodes by a spot notice, at whose end the cloud takes them; the writers' by SIGTERM, which drains.

    Ray Data gives a model on a draining node nothing more to do and leaves it there: such a node does not go by itself.
    """
    run = run_of(Plan(outputs=1500, elements=5_000), "--share", 2)
    run.pace(3)
    workers = [*nodes.of(PRODUCER), *nodes.of(WRITER)]
    with run.start() as job:
        run.decides(10)
        for old in workers:
            new = nodes.start(old.kind)
            nodes.up(new)
            if old.kind is WRITER:
                nodes.terminate(old)
            else:
                assert has_ours(old)
                announced_s = time.monotonic()
                nodes.drain(old, deadline_s=NOTICE_S)
                run.until(lambda old=old: not has_ours(old))  # type: ignore[misc]
                assert time.monotonic() - announced_s < NOTICE_S
                nodes.stop(old)
            run.until(lambda old=old: old.address not in nodes.alive())  # type: ignore[misc]
            run.until(lambda old=old: old.pod.ended)  # type: ignore[misc]
            if new.kind is PRODUCER:
                run.computes_on(new)
                run.until(lambda new=new: bool(new.pod.pids(WRITERS)))  # type: ignore[misc]
            run.decides(6)
        run.pace(0)
        run.finished(job)
        assert all(node.pod.ended for node in workers)


def test_a_link_is_cut_and_the_zombie_comes_back(nodes: Nodes, run_of: RunMaker) -> None:
    """The zombie has staged outputs and not asked yet when it is cut off. Declared dead and replaced, it asks."""
    run = run_of(Plan(outputs=400, elements=20_000), "--producers", 1, "--held")
    run.pace(2)
    with run.start() as job, Reader(run.checker):
        run.decides(6)
        (zombie,) = (node for node in nodes.of(PRODUCER) if node.pod.name == run.calls[0]["host"])
        (other,) = (node for node in nodes.of(PRODUCER) if node is not zombie)
        run.hold()
        before = len(run.calls)
        run.until(lambda: len(run.calls) >= before + 3 and run.holds(zombie) and not run.temps())
        for node in (nodes.head, zombie):
            node.pod.cable.hides(on=True)
        run.let_go()
        # at two looks in a row: between its files and their folder it has neither open
        run.until(lambda: run.has_staged(zombie))
        run.until(lambda: run.has_staged(zombie))
        zombie.pod.signal("raylet", signal.SIGSTOP)  # it would end the zombie's processes as soon as it hears the truth
        zombie.pod.cable.cut()
        cut_s = time.monotonic()
        assert zombie.address in nodes.alive()
        held = run.temps()
        assert held
        lost = {call["first"] for call in run.calls[before:]}
        run.until(lambda: zombie.address not in nodes.alive())
        run.until(lambda: lost <= run.computed_on(other))
        run.until(lambda: time.monotonic() - cut_s > 20)
        run.until(lambda: all(run.is_decided(number) for number in lost))
        assert held <= run.temps()
        landed = run.landed()
        nodes.head.pod.cable.hides(on=False)
        zombie.pod.cable.mend()
        # only who staged them takes them away, when it is told that it has lost
        run.until(lambda: not held & run.temps())
        zombie.pod.signal("raylet", signal.SIGCONT)
        run.until(lambda: zombie.pod.ended)
        run.pace(0)
        run.finished(job)
        assert landed.items() <= run.landed().items(), "an object was written anew"


def test_the_head_is_lost_and_the_same_script_resumes(nodes: Nodes, run_of: RunMaker, redis: dict[str, str]) -> None:
    run = run_of(Plan(outputs=100, elements=5_000))
    run.pace(1)
    with Reader(run.checker):
        with run.start() as job:
            run.decides(30)
            nodes.stop(nodes.head)
            assert job.wait(PATIENCE_S) != 0
        run.checker.unfinished()
        nodes.complete(redis)  # the next test's head
        before = len(run.calls)  # until their nodes were gone, the models that were lost went on with what they had
        run.pace(0)
        # Ray Data leaves an actor behind, on its driver's node, that the next one on this cluster needs
        with run.start(on=nodes.of(WRITER)[0]) as again:
            run.finished(again)
    assert len(run.calls) - before <= 40, "what was committed was computed again"


def test_the_head_is_lost_and_the_run_goes_on_where_its_knowledge_outlives_it(
    nodes: Nodes, run_of: RunMaker, redis: dict[str, str]
) -> None:
    needs("redis-server (Debian package of that name)", bool(redis))
    nodes.complete(redis)
    run = run_of(Plan(outputs=600, elements=5_000))
    run.pace(2)
    with run.start(on=nodes.of(WRITER)[0]) as job:
        node = nodes.of(PRODUCER)[0]
        run.computes_on(node)
        run.decides(20)
        head, before = nodes.head, nodes.id_of(nodes.head)
        nodes.stop(head)
        (lost,) = node.pod.pids(WRITERS)
        os.kill(lost, signal.SIGKILL)  # who would start another one cannot, for now
        nodes.up(nodes.start(HEAD, instead_of=head), but=before)
        run.until(lambda: bool(set(node.pod.pids(WRITERS)) - {lost}))
        run.decides(20)
        run.pace(0)
        run.finished(job)
        assert len(nodes.of(HEAD)) == 1
