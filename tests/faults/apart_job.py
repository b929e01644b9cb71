"""A run whose writers have nodes of their own, one each, which are lost and drained, and whose successors come late.

It prints a JSON line for each thing that has happened.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from ray_sink import Limits, SaveFormat, Sink, WriterOptions
from ray_sink.runtime import steward
from tests.faults import gcs
from tests.faults.cluster_job import say, sinks_actors
from tests.faults.plan import Plan
from tests.waiting import until

_STORE_BYTES = 100_000_000
_NOTICE_S = 90
_PATIENCE_S = 60
_PRODUCERS = 2


def writers_on(node: Any) -> list[int]:
    """Their process ids."""
    return [pid for pid, name in sinks_actors(node.node_id).items() if name == "WriterShell"]


class Producer:
    """Writes outputs and waits for their receipts."""

    def __init__(self, handle: Any, plan: Plan) -> None:
        self._handle = handle.__enter__()
        self._plan = plan

    def produce(self, numbers: Sequence[int]) -> int:
        tickets = [self._handle.write(self._plan.key(n), self._plan.value(n)) for n in numbers]
        return len([ticket.result(300) for ticket in tickets])

    def end(self) -> None:
        self._handle.__exit__(None, None, None)


class Pair:
    """Two producers, each on a node of its own, who share the outputs of a run."""

    def __init__(self, sink: Sink, plan: Plan) -> None:
        made = ray.remote(Producer).options(num_cpus=1, resources={"producer": 1})
        self._sink = sink
        self._producers: list[Any] = [made.remote(sink.handle(), plan) for _ in range(_PRODUCERS)]
        self._left = iter(range(plan.outputs))

    def produce(self, each: int) -> float:
        """So many outputs each; the seconds until both have their receipts."""
        parts = [list(itertools.islice(self._left, each)) for _ in self._producers]
        began_s = time.monotonic()
        done = [producer.produce.remote(part) for producer, part in zip(self._producers, parts, strict=True)]
        ray.get(done, timeout=_PATIENCE_S)
        return time.monotonic() - began_s

    def written_by(self, pid: int) -> int:
        """Outputs that the writer of this process id has brought to a receipt."""
        assert self._sink._actors is not None
        found = ray.get(self._sink._actors.coordinator.measured.remote())
        return sum(writer.outputs for writer in found.writers if writer.name.endswith(f"-{pid}"))

    def end(self) -> None:
        rest = list(self._left)
        ray.get(self._producers[0].produce.remote(rest))
        ray.get([producer.end.remote() for producer in self._producers])


class WriterNodes:
    """Each has room for one writer."""

    def __init__(self, made: Cluster, count: int) -> None:
        self._made = made
        self._nodes = [self._another() for _ in range(count)]

    def _another(self) -> Any:
        return self._made.add_node(num_cpus=2, resources={"writer": 1}, object_store_memory=_STORE_BYTES)

    def writers(self) -> list[int]:
        """How many run on each."""
        return [len(writers_on(node)) for node in self._nodes]

    def lose(self) -> None:
        """The newest is gone without a word."""
        lost = self._nodes.pop()
        pids = writers_on(lost)
        self._made.remove_node(lost, allow_graceful=False)
        # for a moment they outlive their node
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), deadline_s=120)

    def join(self) -> int:
        """One more, and its writer is there: its process id."""
        new = self._another()
        self._nodes.append(new)
        until(lambda: bool(writers_on(new)), deadline_s=240)
        return writers_on(new)[0]

    def drain(self) -> Any:
        """The oldest is announced to go."""
        old = self._nodes.pop(0)
        gcs.drain(self._made.address, old.node_id, _NOTICE_S)
        return old


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("tests.faults.apart_job")
    add: Any = parser.add_argument
    add("--staging", type=Path, required=True)
    add("--dest", required=True)
    add("--outputs", type=int, required=True)
    add("--elements", type=int, required=True)
    add("--calls", type=Path)
    arguments = parser.parse_args(argv)
    plan = Plan(outputs=arguments.outputs, elements=arguments.elements)
    # the path of a unix socket holds 107 bytes and Ray's own part of it takes 70
    with tempfile.TemporaryDirectory(prefix="rs-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        head = {"num_cpus": 1, "object_store_memory": _STORE_BYTES, "include_dashboard": False, "temp_dir": folder}
        made = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(_PRODUCERS):
            made.add_node(num_cpus=2, resources={"producer": 1}, object_store_memory=_STORE_BYTES)
        nodes = WriterNodes(made, _PRODUCERS)
        ray.init(address=made.address, log_to_driver=False)
        try:
            sink = Sink(
                arguments.dest,
                staging=arguments.staging,
                run_id="run-1",
                save_format=SaveFormat.NUMPY_NPY,
                writers=WriterOptions(resources={"writer": 1}),
                limits=Limits(takeover_s=3.0),
                progress=False,
            )
            with sink:
                pair = Pair(sink, plan)
                pair.produce(10)
                say(writers=nodes.writers())

                nodes.lose()
                pair.produce(10)
                say(writers=nodes.writers())
                new = nodes.join()

                def is_home() -> bool:
                    pair.produce(1)
                    return pair.written_by(new) > 0

                until(is_home, deadline_s=60, every_s=0.5)
                say(home=pair.written_by(new), writers=nodes.writers())

                old, began_s = nodes.drain(), time.monotonic()
                until(lambda: not writers_on(old), deadline_s=_NOTICE_S)
                say(gone_s=time.monotonic() - began_s, others_s=pair.produce(10))

                alone, began_s = nodes.drain(), time.monotonic()
                before = pair.written_by(new)
                until(lambda: time.monotonic() > began_s + steward._HANDOVER_S + 5, deadline_s=60)
                pair.produce(10)
                say(alone=pair.written_by(new) - before)
                nodes.join()
                until(lambda: not writers_on(alone), deadline_s=_NOTICE_S)
                pair.produce(1)
                say(writers=nodes.writers())
                pair.end()
            say(sealed=sink.manifest.seal.outputs)
        finally:
            ray.shutdown()
            made.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
