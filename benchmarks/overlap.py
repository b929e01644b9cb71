"""How well waiting for receipts overlaps with inference, on one actor: the span on the model, over shapes of datasets.

    python benchmarks/overlap.py [--batches 40] [--work-s 0.1] [--wait-s 0.2]

Each output waits for its receipt for as long as its upload takes: a format that takes ``wait-s`` to encode stands for a
store that does. The ideal is ``batches x work-s``; one after the other is ``batches x (work-s + wait-s)``. Beside the
sink's way stand those that Ray Data offers for the same model and the same waiting, without the sink.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import ray
import ray.data
from ray.data import ActorPoolStrategy, Dataset

from ray_sink import Sink, WriterOptions

_BLOCKS = (40, 4, 1)


@dataclass
class Slow:
    """A format whose files take their time."""

    wait_s: float
    name: str = "slow"
    suffix: str = ".bin"

    def check(self, value: Any) -> None:
        """Everything is taken."""

    def encode(self, value: Any, file: BinaryIO) -> Sequence[str]:
        time.sleep(self.wait_s)
        file.write(value.numpy().tobytes())
        return ()

    def decode(self, file: BinaryIO) -> Any:
        raise NotImplementedError


def spans(rows: Sequence[Mapping[str, Any]]) -> float:
    """From the model's first call to the end of its last, in seconds."""
    return float(max(row["t1"] for row in rows) - min(row["t0"] for row in rows))


class Model:
    """Works for a while on each batch."""

    def __init__(self, work_s: float) -> None:
        self.work_s = work_s

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        began = time.time()
        time.sleep(self.work_s)
        rows = len(batch["id"])
        return {"id": batch["id"], "t0": [began] * rows, "t1": [time.time()] * rows, "p": np.ones((rows, 4))}


class Waiting:
    """The model, and then the waiting, in an async UDF; the model under a lock, since calls may have threads."""

    def __init__(self, work_s: float, wait_s: float) -> None:
        self.model, self.wait_s = Model(work_s), wait_s
        self.lock = threading.Lock()

    def work(self, batch: dict[str, Any]) -> dict[str, Any]:
        with self.lock:
            out = self.model(batch)
        del out["p"]
        return out


class AsyncWaiting(Waiting):
    async def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        out = await asyncio.get_running_loop().run_in_executor(None, self.work, batch)
        await asyncio.sleep(self.wait_s)
        return out


class SyncWaiting(Waiting):
    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        out = self.work(batch)
        time.sleep(self.wait_s)
        return out


def with_sink(ds: Dataset, work_s: float, wait_s: float) -> float:
    with tempfile.TemporaryDirectory() as folder:
        # more threads than waits at a time: the writer is not what is measured
        with Sink(None, staging=folder, save_format=Slow(wait_s), writers=WriterOptions(threads=32)) as sink:
            with sink.handle() as handle:
                handle.write("first", np.ones(4)).result()  # what a writer's start takes is not measured either
            receipts = sink.run(ds, Model, key="id", batch_size=1, concurrency=1, fn_constructor_args=(work_s,))
            assert all(Path(row["uri"]).exists() for row in receipts.take(3))
        return spans(receipts.take_all())


def without(ds: Dataset, waiting: type, work_s: float, wait_s: float, **pool: Any) -> float:
    made = ds.map_batches(
        waiting, batch_size=1, compute=ActorPoolStrategy(size=1, **pool), fn_constructor_args=(work_s, wait_s)
    )
    return spans(made.take_all())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--work-s", type=float, default=0.1)
    parser.add_argument("--wait-s", type=float, default=0.2)
    given = parser.parse_args(arguments)
    work_s, wait_s = given.work_s, given.wait_s
    ray.init(address="local", num_cpus=4, object_store_memory=200 * 2**20, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    threads = {"max_concurrent_calls_per_actor": 4, "enable_true_multi_threading": True}
    ways: dict[str, Any] = {
        "sink.run": lambda ds: with_sink(ds, work_s, wait_s),
        "async UDF, 1 call": lambda ds: without(ds, AsyncWaiting, work_s, wait_s, max_concurrent_calls_per_actor=1),
        "sync UDF, 4 threads": lambda ds: without(ds, SyncWaiting, work_s, wait_s, **threads),
        "sync UDF, 1 call": lambda ds: without(ds, SyncWaiting, work_s, wait_s),
    }
    ideal, serial = given.batches * work_s, given.batches * (work_s + wait_s)
    lines = [f"{'span on the model, s':24}" + "".join(f"{n:>4} block{'s' if n > 1 else ' '}" for n in _BLOCKS)]
    for name, way in ways.items():
        found = [way(ray.data.range(given.batches, override_num_blocks=blocks)) for blocks in _BLOCKS]
        lines.append(f"{name:24}" + "".join(f"{span:11.1f}" for span in found))
    lines.append(f"ideal {ideal:.1f}, one after the other {serial:.1f}")
    sys.stdout.write("\n".join(lines) + "\n")
    ray.shutdown()


if __name__ == "__main__":
    main()
