"""A run over a Ray cluster of its own, for tests to kill parts of.

It prints a JSON line for each thing that has happened; the lines ``lose`` and ``replace`` on its standard input take a
node away, and drain one after another has joined.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import ray.data
from ray.cluster_utils import Cluster
from ray.data import ActorPoolStrategy

from ray_sink import Limits, NodeLocal, SaveFormat, Sink, UploadOptions, WriterOptions
from ray_sink.config import MiB
from ray_sink.errors import SinkError
from tests.faults import gcs
from tests.faults.plan import Plan
from tests.waiting import until

_STORE_BYTES = 150 * 2**20
_NOTICE_S = 60
"""From the announcement that a node will go to its going, at most."""
_TIGHT = Limits(object_store_bytes=MiB, inflight_outputs=4, temp_bytes=MiB, staging_bytes=MiB)

_SAYING = threading.Lock()


def say(**fact: object) -> None:
    """A line of its own, whichever threads speak: `print` writes a line and its end one after the other."""
    with _SAYING:
        print(json.dumps(fact), flush=True)


def dropped(folder: Path) -> dict[str, int]:
    """How many messages of each kind Ray's processes say that they have dropped, as they were told to."""
    said = re.compile(rb"Inject RPC (request|response) failure")
    logs = [file.read_bytes() for file in folder.glob("session_2*/logs/*.log")]
    return dict(Counter(match.decode() for log in logs for match in said.findall(log)))


class Workers:
    """The workers of a cluster, as it is told from outside: ``lose`` and ``replace``."""

    def __init__(self, made: Cluster, count: int) -> None:
        self._made = made
        self._nodes = [self._another() for _ in range(count)]

    def _another(self) -> Any:
        return self._made.add_node(num_cpus=2, object_store_memory=_STORE_BYTES)

    def lose(self) -> None:
        self._made.remove_node(self._nodes.pop(), allow_graceful=False)

    def replace(self) -> None:
        """A new one comes up, the oldest is announced to go, and is taken when nothing of the sink is there.

        Ray Data's actors would stay for as long as they have work: a node that has some does not go by itself.
        """
        self._made._shutdown_at_exit = False  # a signal handler, which only the main thread may set
        self._nodes.append(self._another())
        old = self._nodes.pop(0)
        gcs.drain(self._made.address, old.node_id, _NOTICE_S)
        say(draining=1)
        until(lambda: not sinks_actors(old.node_id), deadline_s=_NOTICE_S)
        self._made.remove_node(old, allow_graceful=False)
        until(lambda: old.node_id not in {n["NodeID"] for n in ray.nodes() if n["Alive"]}, deadline_s=120)


def sinks_actors(node: str) -> dict[int, str]:
    """Those that live on a node: class by process id."""
    found = ray._private.state.actors().values()
    there = [a for a in found if a["Address"]["NodeID"] == node and a["State"] == "ALIVE"]
    return {int(a["Pid"]): a["ActorClassName"] for a in there if a["ActorClassName"].endswith("Shell")}


@contextmanager
def cluster(nodes: int) -> Iterator[Workers | None]:
    """Ray on this machine: one node, or a head and so many workers, each with two logical CPUs."""
    # the path of a unix socket holds 107 bytes and Ray's own part of it takes 70
    with tempfile.TemporaryDirectory(prefix="rs-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        if nodes == 1:
            ray.init(
                address="local",
                num_cpus=4,
                object_store_memory=2 * _STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
                _temp_dir=folder,
            )
            try:
                yield None
            finally:
                ray.shutdown()
                say(dropped=dropped(Path(folder)))
            return
        made = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 1,
                "object_store_memory": _STORE_BYTES,
                "include_dashboard": False,
                "temp_dir": folder,
            },
        )
        workers = Workers(made, nodes)
        ray.init(address=made.address, log_to_driver=False)
        try:
            yield workers
        finally:
            ray.shutdown()
            made.shutdown()


def obey(workers: Workers) -> None:
    for line in sys.stdin:
        if line.strip() == "lose":
            workers.lose()
            say(lost=1)
        elif line.strip() == "replace":
            workers.replace()
            say(replaced=1)


def watch(sink: Sink, over: threading.Event) -> None:
    """Say how many keys are decided, whenever there are more."""
    said = -1
    while not over.wait(0.1):
        try:
            decided = sink.status().decided
        except (SinkError, ray.exceptions.RayError):
            continue
        if decided != said:
            said = decided
            say(decided=decided)


def followed(sink: Sink, work: Callable[[], object]) -> int:
    """Say how a run comes on and how it ends; the program's exit status."""
    over = threading.Event()
    say(began=1)
    watcher = threading.Thread(target=watch, args=(sink, over), daemon=True)
    watcher.start()
    try:
        with sink:
            work()
            over.set()
            watcher.join()
        say(sealed=sink.manifest.seal.outputs)
    except Exception as error:  # noqa: BLE001 - said, and the exit status tells
        say(error=[type(error).__name__, str(error)[:2000]])
        return 1
    finally:
        over.set()
    return 0


def model_of(plan: Plan, handed_over: Path, work_s: float) -> Any:
    """Travels by value: the workers do not import the tests. `handed_over` gets a line before every call."""

    class Model:
        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            with handed_over.open("a") as file:
                file.write(f"{min(batch['id'])}\n")
            time.sleep(work_s)
            return {
                **batch,
                "u": [plan.value(i).numpy() for i in batch["id"]],  # type: ignore[union-attr]
            }

    return Model


def by_dataset(sink: Sink, plan: Plan, arguments: argparse.Namespace) -> None:
    rows = [{"id": n, "part": n % 3} for n in range(plan.outputs)]
    ds = ray.data.from_items(rows, override_num_blocks=max(1, plan.outputs // 2))
    sink.run(
        ds,
        model_of(plan, arguments.calls, arguments.work_s),
        key="runs/part_{part}/sample_{id:04d}",  # as the plan has it
        columns="u",
        compute=ActorPoolStrategy(size=arguments.actors),
        num_cpus=1 if arguments.nodes > 1 else 0.5,
    )


def by_handle(sink: Sink, plan: Plan, arguments: argparse.Namespace) -> None:
    with sink.handle() as handle:
        for first in range(0, plan.outputs, arguments.batch):
            numbers = range(first, min(plan.outputs, first + arguments.batch))
            handle.write_batch([plan.key(n) for n in numbers], [plan.value(n) for n in numbers])


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("tests.faults.cluster_job")
    add: Any = parser.add_argument
    add("--staging", type=Path, required=True)
    add("--dest", required=True)
    add("--outputs", type=int, required=True)
    add("--elements", type=int, default=256)
    add("--work", choices=["dataset", "handle"], default="dataset")
    add("--work-s", type=float, default=0.05, help="what a call of the model takes")
    add("--batch", type=int, default=50)
    add("--nodes", type=int, default=1)
    add("--actors", type=int, default=1)
    add("--per-node", type=int, default=1)
    add("--node-local", action="store_true", help="staging is a folder on each node's own disk, which acks uploads")
    add("--ack", choices=["staged", "uploaded"], default="staged")
    add("--tight", action="store_true", help="the smallest budgets there are")
    add("--engine", choices=["obstore", "fsspec"], default="obstore")
    add("--uploaders", type=int, default=1)
    add("--calls", type=Path, help="file that gets a line for each call of the model")
    arguments = parser.parse_args(argv)
    plan = Plan(outputs=arguments.outputs, elements=arguments.elements)
    with cluster(arguments.nodes) as workers:
        if workers is not None:
            threading.Thread(target=obey, args=(workers,), daemon=True).start()
        sink = Sink(
            arguments.dest,
            staging=NodeLocal(arguments.staging) if arguments.node_local else arguments.staging,
            ack="uploaded" if arguments.node_local else arguments.ack,
            run_id="run-1",
            save_format=SaveFormat.NUMPY_NPY,
            writers=WriterOptions(per_node=arguments.per_node),
            upload=UploadOptions(engine=arguments.engine, uploaders=arguments.uploaders),
            limits=replace(_TIGHT if arguments.tight else Limits(), takeover_s=3.0, drain_s=5.0),
        )
        work = by_dataset if arguments.work == "dataset" else by_handle
        return followed(sink, lambda: work(sink, plan, arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
