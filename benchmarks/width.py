"""How wide a run may be: what a batch costs the coordinator while the store is slow and hundreds of others wait.

The coordinator is the real one, as a plain object with its ledger. Everybody who calls it is played: on each
node eight producers that have used up its object store, and a writer with four calls under way; staging is full, and
one uploader makes room for a batch at a time. All of CPU counts, that of the players, too: theirs is the same for each
batch however many there are.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks.journals import attempt_of, info_of
from benchmarks.measuring import ROUNDS, Figure
from ray_sink.config import Limits, SaveFormat, UploadOptions, WriterOptions
from ray_sink.ledger import LedgerOptions
from ray_sink.measures import ProducerMeasures, UploaderMeasures, WriterMeasures
from ray_sink.records import UploadOutcome, Verification
from ray_sink.runtime.coordinator import Coordinator
from ray_sink.runtime.messages import RunSpec

NODES: Final = (1, 16, 128)
PRODUCERS, CALLS = 8, 4
ROWS: Final = 8
BATCH_BYTES: Final = ROWS * 16 * 2**20
BATCHES: Final = 150
FLAT: Final = 1.25


class _Run:
    """A run that is held up by its store.

    Args:
        root: an empty folder.
        nodes: how many there are.
    """

    def __init__(self, root: Path, nodes: int) -> None:
        (root / "staging").mkdir()
        limits = Limits(object_store_bytes=2 * CALLS * BATCH_BYTES, staging_bytes=4 * BATCH_BYTES)
        spec = RunSpec(
            info=info_of(root),
            epoch=1,
            format=SaveFormat.NUMPY_NPY,
            ack="staged",
            writers=WriterOptions(),
            upload=UploadOptions(),
            limits=limits,
        )
        self._coordinator = Coordinator(spec, LedgerOptions(), {})
        self._nodes = nodes
        self._numbers = itertools.count()
        self._chance = random.Random(0)

    async def cost_s(self) -> float:
        """CPU seconds of a batch."""
        players = []
        for number in range(self._nodes):
            node, batches = f"node{number}", asyncio.Queue[asyncio.Event]()
            players += [self._produce(node, f"{node}-{n}", batches) for n in range(PRODUCERS)]
            players += [self._write(batches) for _ in range(CALLS)]
        tasks = [asyncio.create_task(player) for player in players]
        try:
            await self._upload(BATCHES // 3)  # until everybody waits
            began_s = time.process_time()
            await self._upload(BATCHES)
            return (time.process_time() - began_s) / BATCHES
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await self._coordinator.stop(False)

    async def _produce(self, node: str, name: str, batches: asyncio.Queue[asyncio.Event]) -> None:
        measures = ProducerMeasures(name)
        held = granted = 0

        async def written(done: asyncio.Event) -> None:
            nonlocal held
            await done.wait()
            held -= BATCH_BYTES
            await self._coordinator.hold(node, held, granted, measures)

        waiting = set()
        while True:
            if more := await self._coordinator.acquire(name, node, held, granted, BATCH_BYTES):
                # one batch of a grant is used, and what is beyond it given back
                held, granted = held + BATCH_BYTES, granted + more
                await self._coordinator.hold(node, held, granted, measures)
                done = asyncio.Event()
                batches.put_nowait(done)
                waiting.add(asyncio.create_task(written(done)))

    async def _write(self, batches: asyncio.Queue[asyncio.Event]) -> None:
        measures = WriterMeasures("writer")
        coordinator = self._coordinator
        while True:
            done = await batches.get()
            number = next(self._numbers)
            while not await coordinator.reserve("writer", f"{number}.0", BATCH_BYTES):
                continue
            term = await coordinator.ready()
            rows = range(number * ROWS, (number + 1) * ROWS)
            proposals = [attempt_of(term, row, self._chance, BATCH_BYTES // ROWS) for row in rows]
            decisions = await coordinator.decide(proposals)
            await coordinator.published([(d.winner.key, d.winner.attempt) for d in decisions if d.winner is not None])
            await coordinator.batch_done("writer", f"{number}.0", measures, ProducerMeasures("producer"))
            done.set()

    async def _upload(self, batches: int) -> None:
        measures = UploaderMeasures("uploader")
        coordinator = self._coordinator
        uploaded = 0
        while uploaded < batches * ROWS:
            tasks = await coordinator.take_uploads(0, frozenset(), ROWS, BATCH_BYTES)
            assert tasks is not None
            outcomes = [UploadOutcome(task.key, task.attempt, Verification.VERIFIED) for task in tasks]
            files = await coordinator.uploaded(0, outcomes, measures)
            assert len(files) == len(tasks)
            await coordinator.freed(0)
            uploaded += len(tasks)


def cost_s(nodes: int) -> float:
    root = Path(tempfile.mkdtemp(prefix="rs-bench-"))
    try:
        return asyncio.run(_Run(root, nodes).cost_s())
    finally:
        shutil.rmtree(root)


def answer() -> Iterator[Figure]:
    found: dict[int, list[float]] = {nodes: [] for nodes in NODES}
    for _ in range(ROUNDS):
        for nodes in NODES:
            found[nodes].append(cost_s(nodes))
    cost = {nodes: median(seconds) for nodes, seconds in found.items()}
    for nodes in NODES[1:]:
        yield Figure(
            "width",
            f"CPU of a batch, {nodes} nodes with {PRODUCERS} producers each, all waiting",
            cost[nodes] / cost[NODES[0]],
            "x of one node",
            most=FLAT,
            seconds={f"{n} nodes": seconds for n, seconds in cost.items()},
        )
