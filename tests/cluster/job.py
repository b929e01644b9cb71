"""A run over a cluster that is there already; prints a JSON line for each thing that has happened.

In its folder, which all nodes see, the file ``pace`` says how long a call of the model takes, in seconds: whoever looks
on can hold the run up and let it go. The folder ``calls`` gets a line for each call. With ``--held``, writers wait
before they stage for as long as there is a file ``hold``; the folder ``held`` gets a file for each thread that does.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import ray
import ray.data
from ray.data import ActorPoolStrategy
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_sink import Limits, NodeLocal, SaveFormat, Sink, WriterOptions
from ray_sink.formats.npy import NpyFormat
from tests.faults.cluster_job import followed, say
from tests.faults.plan import Plan

if TYPE_CHECKING:
    from ray_sink.formats.base import Value


def paced(folder: Path) -> None:
    """As long as a call of the model takes: until then, or until the pace is quickened."""
    began_s = time.monotonic()
    while time.monotonic() - began_s < float((folder / "pace").read_text() or 0):
        time.sleep(0.05)


def called(folder: Path, first: int, began_s: float) -> None:
    line = json.dumps({"host": socket.gethostname(), "first": first, "began": began_s, "ended": time.monotonic()})
    # a file of its own for each process: appending to one from several nodes is not what is tested
    with (folder / "calls" / f"{socket.gethostname()}-{os.getpid()}").open("a") as file:
        file.write(line + "\n")


class HeldFormat(NpyFormat):
    """Encodes, and so stages, only when there is no file ``hold``: a writer has room by then and has not asked yet."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def encode(self, value: Value, file: BinaryIO) -> Sequence[str]:
        while (self._folder / "hold").exists():
            (self._folder / "held" / f"{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}").touch()
            time.sleep(0.05)
        return super().encode(value, file)


def model_of(plan: Plan, folder: Path) -> Any:
    class Model:
        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            began_s = time.monotonic()
            paced(folder)
            values = [plan.value(i).numpy() for i in batch["id"]]  # type: ignore[union-attr]
            called(folder, int(min(batch["id"])), began_s)
            return {**batch, "u": values}

    return Model


def in_turn(share: int) -> Callable[[], dict[str, Any]]:
    """Where a producer goes: one after another on each node that has room for some, and elsewhere when that is gone."""
    ids = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("producer")]
    places = itertools.cycle(ids)

    def options() -> dict[str, Any]:
        place = NodeAffinitySchedulingStrategy(next(places), soft=True)
        return {"num_cpus": 0.5, "resources": {"producer": share}, "scheduling_strategy": place}

    return options


def by_dataset(sink: Sink, plan: Plan, folder: Path, producers: int, share: int) -> None:
    rows = [{"id": n, "part": n % 3} for n in range(plan.outputs)]
    ds = ray.data.from_items(rows, override_num_blocks=max(1, plan.outputs // 2))
    sink.run(
        ds,
        model_of(plan, folder),
        key="runs/part_{part}/sample_{id:04d}",  # as the plan has it
        columns="u",
        compute=ActorPoolStrategy(size=producers),
        ray_remote_args_fn=in_turn(share),
    )


class Producer:
    """Writes its share of the outputs through a handle, two at a time, and measures how long that holds it up."""

    def __init__(self, handle: Any, plan: Plan, folder: Path) -> None:
        self._handle = handle
        self._plan = plan
        self._folder = folder

    def produce(self, numbers: Sequence[int]) -> list[tuple[float, float]]:
        """When each write began, on this machine's clock, and how long it held the producer up."""
        waits = []
        with self._handle as handle:
            for first in range(0, len(numbers), 2):
                some = numbers[first : first + 2]
                began_s = time.monotonic()
                paced(self._folder)
                values = [self._plan.value(n) for n in some]
                called(self._folder, some[0], began_s)
                began_s = time.monotonic()
                handle.write_batch([self._plan.key(n) for n in some], values)
                waits.append((began_s, time.monotonic() - began_s))
        return waits


def by_handles(sink: Sink, plan: Plan, folder: Path, producers: int, share: int) -> None:
    options = in_turn(share)
    make: Any = ray.remote(Producer)
    actors = [make.options(**options()).remote(sink.handle(), plan, folder) for _ in range(producers)]
    shares = [list(range(n, plan.outputs, producers)) for n in range(producers)]
    done = [actor.produce.remote(share) for actor, share in zip(actors, shares, strict=True)]
    for waits in ray.get(done):
        say(waits=waits)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("tests.cluster.job")
    add: Any = parser.add_argument
    add("--address", required=True)
    add("--folder", type=Path, required=True)
    add("--dest", required=True)
    add("--outputs", type=int, required=True)
    add("--elements", type=int, required=True)
    add("--work", choices=["dataset", "handles"], default="dataset")
    add("--producers", type=int, default=2)
    add("--share", type=int, default=1, help="of a node's room for producers, 2, that each of them takes")
    add("--held", action="store_true", help="writers wait while there is a file hold")
    add("--node-local", action="store_true", help="staging is each node's own /tmp")
    add("--writers-apart", action="store_true", help="on nodes of their own")
    arguments = parser.parse_args(argv)
    # `ray job stop` and pytest's end: the with block is left by an exception
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    plan = Plan(outputs=arguments.outputs, elements=arguments.elements)
    ray.init(arguments.address, log_to_driver=False)
    sink = Sink(
        arguments.dest,
        staging=NodeLocal("/tmp") if arguments.node_local else arguments.folder / "staging",
        ack="uploaded" if arguments.node_local else "staged",
        run_id="run-1",
        save_format=HeldFormat(arguments.folder) if arguments.held else SaveFormat.NUMPY_NPY,
        writers=WriterOptions(resources={"writer": 1} if arguments.writers_apart else {}),
        limits=Limits(takeover_s=10.0, drain_s=10.0),
        progress=False,
    )
    work = by_dataset if arguments.work == "dataset" else by_handles
    return followed(sink, lambda: work(sink, plan, arguments.folder, arguments.producers, arguments.share))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
