"""A run whose writers have nodes of their own, one each; one of these is lost, and its successor comes late.

It prints a JSON line for each thing that has happened.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from ray_sink import Limits, SaveFormat, Sink, WriterOptions
from ray_sink.runtime import steward
from tests.faults.cluster_job import say, sinks_actors
from tests.faults.plan import Plan
from tests.waiting import until

_STORE_BYTES = 100_000_000
_LATE_S = 4.0


def writers_on(node: Any) -> list[int]:
    """Their process ids."""
    return [pid for pid, name in sinks_actors(node.node_id).items() if name == "WriterShell"]


class Producer:
    """Writes a part of the outputs and waits for their receipts."""

    def __init__(self, handle: Any, plan: Plan) -> None:
        self._handle = handle.__enter__()
        self._plan = plan

    def produce(self, first: int, last: int) -> int:
        tickets = [self._handle.write(self._plan.key(n), self._plan.value(n)) for n in range(first, last)]
        return len([ticket.result(300) for ticket in tickets])

    def end(self) -> None:
        self._handle.__exit__(None, None, None)


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

        def node(of: str) -> Any:
            return made.add_node(num_cpus=2, resources={of: 1}, object_store_memory=_STORE_BYTES)

        places = [node("producer"), node("producer")]
        writers = [node("writer"), node("writer")]
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
                make = ray.remote(Producer).options(num_cpus=1, resources={"producer": 1})
                producers: list[Any] = [make.remote(sink.handle(), plan) for _ in places]
                step = arguments.outputs // (3 * len(producers))

                def produce(turn: int) -> int:
                    parts = [(turn * len(producers) + n) * step for n in range(len(producers))]
                    done = [p.produce.remote(part, part + step) for p, part in zip(producers, parts, strict=True)]
                    return sum(ray.get(done))

                say(produced=produce(0), writers=[len(writers_on(node)) for node in writers])
                steward._START_S = _LATE_S
                lost = writers.pop()
                pids = writers_on(lost)
                made.remove_node(lost, allow_graceful=False)
                # for a moment they outlive their node
                until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), deadline_s=120)
                say(produced=produce(1), writers=[len(writers_on(node)) for node in writers])
                writers.append(node("writer"))
                until(lambda: bool(writers_on(writers[-1])), deadline_s=240)
                say(produced=produce(2), writers=[len(writers_on(node)) for node in writers])
                ray.get([producer.end.remote() for producer in producers])
            say(sealed=sink.manifest.seal.outputs)
        finally:
            ray.shutdown()
            made.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
