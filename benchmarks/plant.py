"""The pipeline as a model: GPUs, nodes with writers, one ledger, uploaders and a store, with what each step costs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from benchmarks.simulation import Budget, Journal, Process, Servers, Simulation, Then

GiB: Final = 2**30
CALLS_AT_ONCE: Final = 4  # batches that a writer actor has in hand
UPLOADS_AT_ONCE: Final = 16  # UploadOptions.concurrency


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of a step, for an output and for each of its bytes."""

    item_s: float
    byte_s: float

    def of(self, items: float, n_bytes: float) -> float:
        return items * self.item_s + n_bytes * self.byte_s


@dataclass(frozen=True, slots=True)
class Costs:
    """What was measured.

    Attributes:
        put: a core, into the object store.
        encode: a core of a writer, value to file contents. What an output takes is Python's, one thread at a time.
        stage: the staging filesystem's time for a file's write, sync and rename; the bytes of all share its bandwidth.
        upload: a core of an uploader, likewise.
        batch_s: CPU of all messages about a batch, ours at both of their ends.
        ledger_batch_s: CPU of the ledger for a batch, all told.
        ledger_item_s: the same for each output of it.
        sync_s: a journal record's sync, which concurrent batches share.
    """

    put: Cost
    encode: Cost
    stage: Cost
    upload: Cost
    batch_s: float
    ledger_batch_s: float
    ledger_item_s: float
    sync_s: float


@dataclass(frozen=True, slots=True)
class Plant:
    """What there is.

    Attributes:
        gpus: all of them.
        gpus_per_node: on one node.
        gpu_bytes_s: what one GPU puts out, bytes a second.
        output_bytes: of one output.
        batch: outputs of a batch.
        cores: of a node, for what the sink does there; all processes share those of the first node if `one_node`.
        writers: on each node.
        threads: of each writer.
        uploaders: all of them, each on a node of its own cores.
        object_store_bytes: budget on each node.
        inflight_outputs: of one producer.
        staging_bytes: budget of the staging folder.
        staging_bytes_s: what the staging filesystem takes at most, over all nodes; None: what one disk took.
        store_bytes_s: what the store takes at most.
        store_latency_s: until it answers a put.
        store_puts_s: puts a second that it takes at most, over all prefixes.
        one_node: driver, uploaders and producers are on one machine.
    """

    gpus: int
    gpu_bytes_s: float
    output_bytes: float
    batch: int = 8
    gpus_per_node: int = 8
    cores: int = 16
    writers: int = 1
    threads: int = 4
    uploaders: int = 1
    object_store_bytes: float = 32 * GiB
    inflight_outputs: int = 4096
    staging_bytes: float = 256 * GiB
    staging_bytes_s: float | None = None
    store_bytes_s: float = math.inf
    store_latency_s: float = 0.03
    store_puts_s: float = math.inf
    one_node: bool = False

    @property
    def nodes(self) -> int:
        return -(-self.gpus // self.gpus_per_node)

    @property
    def step_s(self) -> float:
        return self.batch * self.output_bytes / self.gpu_bytes_s


@dataclass(slots=True)
class Outcome:
    """What came of it.

    Attributes:
        waited: the part of their time that GPUs waited, once the pipeline is full.
        first_wait_s: when one waited for the first time.
        staged_bytes_s: bytes that were acknowledged a second, in the second half.
        uploaded_bytes_s: bytes that the store had, likewise.
        staged_bytes: what lay in staging in the end.
        unacknowledged: outputs of a node that were accepted and not acknowledged, on average.
        loads: the part of the time that each kind of thing worked; above 1 its queue grew.
        cores_s: seconds of cores, of all nodes.
        staged_s: when all `batches` were acknowledged.
        ended_s: when all of them were uploaded.
    """

    waited: float = 0.0
    first_wait_s: float | None = None
    staged_bytes_s: float = 0.0
    uploaded_bytes_s: float = 0.0
    staged_bytes: float = 0.0
    unacknowledged: float = 0.0
    loads: dict[str, float] = field(default_factory=dict)
    cores_s: float = 0.0
    staged_s: float | None = None
    ended_s: float | None = None


class _Writer:
    def __init__(self, simulation: Simulation, plant: Plant, cores: Servers) -> None:
        self.python = Process(simulation, cores)
        self.calls = Budget(simulation, CALLS_AT_ONCE)
        self.threads = Budget(simulation, plant.threads)
        self.given = 0


class _Node:
    def __init__(self, simulation: Simulation, plant: Plant) -> None:
        self.cores = Servers(simulation, plant.cores)
        self.credit = Budget(simulation, plant.object_store_bytes)
        self.writers = [_Writer(simulation, plant, self.cores) for _ in range(plant.writers)]


class _Uploader:
    def __init__(self, simulation: Simulation, plant: Plant, shared: Servers | None) -> None:
        self.python = Process(simulation, shared or Servers(simulation, plant.cores))
        self.slots = Budget(simulation, UPLOADS_AT_ONCE)


class Run:
    """A plant at work.

    Args:
        plant: what there is.
        costs: what each step takes.
        down_from_s: when the store stops to answer; never without.
        batches: batches of each GPU; without an end if None.
    """

    def __init__(
        self, plant: Plant, costs: Costs, *, down_from_s: float | None = None, batches: int | None = None
    ) -> None:
        self._plant, self._costs = plant, costs
        self._down_from_s = math.inf if down_from_s is None else down_from_s
        self._clock = clock = Simulation()
        self._nodes = [_Node(clock, plant) for _ in range(plant.nodes)]
        shared = self._nodes[0].cores if plant.one_node else None
        self._ledger = Process(clock, shared or Servers(clock, 1))
        self._journal = Journal(clock, costs.sync_s)
        self._staging = Servers(clock, 1)
        self._room = Budget(clock, plant.staging_bytes)
        self._uploaders = [_Uploader(clock, plant, shared) for _ in range(plant.uploaders)]
        self._store, self._requests = Servers(clock, 1), Servers(clock, 1)
        self._batch_bytes = plant.batch * plant.output_bytes
        self._staging_byte_s = 1 / plant.staging_bytes_s if plant.staging_bytes_s else costs.stage.byte_s
        self._left = [batches] * plant.gpus
        self._wanted = None if batches is None else batches * plant.gpus
        self._inflight = [Budget(clock, plant.inflight_outputs) for _ in range(plant.gpus)]
        self._blocked: dict[int, float] = {}
        self._waited_s = self._since_s = 0.0
        self._accepted = self._staged = self._uploaded = 0
        self._area = self._last_s = 0.0
        self.outcome = Outcome()

    def run(self, seconds: float) -> Outcome:
        """Simulate so long; what is told of rates is of the second half."""
        plant, outcome = self._plant, self.outcome
        for gpu in range(plant.gpus):
            self._clock.after(plant.step_s * gpu / plant.gpus, partial(self._step, gpu))
        self._clock.run(seconds / 2)
        self._since_s, self._waited_s = self._clock.now_s, 0.0
        staged, uploaded = self._staged, self._uploaded
        self._clock.run(seconds)
        self._count()
        for began_s in self._blocked.values():
            self._wait_over(began_s)
        outcome.waited = self._waited_s / (plant.gpus * seconds / 2)
        outcome.staged_bytes_s = (self._staged - staged) * self._batch_bytes / (seconds / 2)
        outcome.uploaded_bytes_s = (self._uploaded - uploaded) * self._batch_bytes / (seconds / 2)
        outcome.staged_bytes = self._room.used
        outcome.unacknowledged = self._area * plant.batch / seconds / plant.nodes
        outcome.cores_s = sum(node.cores.busy_s for node in self._nodes)
        outcome.loads = {
            "cores": sum(node.cores.load() for node in self._nodes) / plant.nodes,
            "writers": sum(writer.python.busy_s for node in self._nodes for writer in node.writers)
            / (plant.nodes * plant.writers * seconds),
            "ledger": self._ledger.busy_s / seconds,
            "staging": self._staging.load(),
            "uploaders": sum(uploader.python.busy_s for uploader in self._uploaders) / (plant.uploaders * seconds),
            "store": max(self._store.load(), self._requests.load()),
        }
        return outcome

    def _count(self) -> None:
        """Batches under way, over time."""
        self._area += (self._accepted - self._staged) * (self._clock.now_s - self._last_s)
        self._last_s = self._clock.now_s

    # -- a batch's way -----------------------------------------------------------------------------------------------

    def _step(self, gpu: int) -> None:
        if (left := self._left[gpu]) is not None:
            if left == 0:
                return
            self._left[gpu] = left - 1
        self._clock.after(self._plant.step_s, lambda: self._hand_over(gpu))

    def _hand_over(self, gpu: int) -> None:
        node = self._nodes[gpu // self._plant.gpus_per_node]
        self._blocked[gpu] = self._clock.now_s

        def accepted() -> None:
            self._wait_over(self._blocked.pop(gpu))
            self._count()
            self._accepted += 1
            cost_s = self._costs.put.of(self._plant.batch, self._batch_bytes)
            node.cores.serve(cost_s, lambda: self._to_writer(node, gpu))
            self._step(gpu)

        self._inflight[gpu].take(self._plant.batch, lambda: node.credit.take(self._batch_bytes, accepted))

    def _wait_over(self, began_s: float) -> None:
        now_s = self._clock.now_s
        if now_s > began_s:
            self._waited_s += max(0.0, now_s - max(began_s, self._since_s))
            first_s = self.outcome.first_wait_s
            if self._down_from_s == math.inf or began_s >= self._down_from_s:
                self.outcome.first_wait_s = began_s if first_s is None else min(first_s, began_s)

    def _to_writer(self, node: _Node, gpu: int) -> None:
        writer = min(node.writers, key=lambda one: one.given)
        writer.given += 1
        parts = min(self._plant.threads, self._plant.batch)
        items, n_bytes = self._plant.batch / parts, self._batch_bytes / parts
        left = parts

        def encode(extra_s: float) -> None:
            python_s = items * self._costs.encode.item_s + extra_s
            writer.python.serve(python_s, lambda: node.cores.serve(n_bytes * self._costs.encode.byte_s, write))

        def write() -> None:
            self._staging.serve(n_bytes * self._staging_byte_s, sync)

        def sync() -> None:
            self._clock.after(items * self._costs.stage.item_s, landed)

        def landed() -> None:
            nonlocal left
            left -= 1
            writer.threads.give(1)
            if not left:
                self._decide(lambda: self._acknowledge(node, gpu, writer))

        def reserved() -> None:
            for part in range(parts):
                extra_s = self._costs.batch_s if part == 0 else 0.0
                writer.threads.take(1, partial(encode, extra_s))

        writer.calls.take(1, lambda: self._room.take(self._batch_bytes, reserved))

    def _decide(self, then: Then) -> None:
        cost_s = self._costs.ledger_batch_s + self._plant.batch * self._costs.ledger_item_s
        self._ledger.serve(cost_s, lambda: self._journal.record(then))

    def _acknowledge(self, node: _Node, gpu: int, writer: _Writer) -> None:
        self._count()
        self._staged += 1
        if self._staged == self._wanted:
            self.outcome.staged_s = self._clock.now_s
        writer.given -= 1
        writer.calls.give(1)
        node.credit.give(self._batch_bytes)
        self._inflight[gpu].give(self._plant.batch)
        self._upload()

    # -- upload ------------------------------------------------------------------------------------------------------

    def _upload(self) -> None:
        """Keys are shared out by hash: each uploader has its part of a batch, several outputs at a time."""
        plant, costs = self._plant, self._costs
        parts = min(plant.batch, plant.uploaders * UPLOADS_AT_ONCE)
        items, n_bytes = plant.batch / parts, self._batch_bytes / parts
        left = parts

        def begin(uploader: _Uploader) -> None:
            read_s = n_bytes * costs.upload.byte_s
            python = uploader.python
            python.serve(items * costs.upload.item_s, lambda: python.cores.serve(read_s, lambda: put(uploader)))

        def put(uploader: _Uploader) -> None:
            if self._clock.now_s < self._down_from_s:  # else it is tried again: its place and its file stay taken
                self._requests.serve(items / plant.store_puts_s, lambda: send(uploader))

        def send(uploader: _Uploader) -> None:
            self._store.serve(
                n_bytes / plant.store_bytes_s,
                lambda: self._clock.after(items * plant.store_latency_s, lambda: uploaded(uploader)),
            )

        def uploaded(uploader: _Uploader) -> None:
            nonlocal left
            left -= 1
            uploader.slots.give(1)
            if left:
                return
            self._uploaded += 1
            self._room.give(self._batch_bytes)
            if self._uploaded == self._wanted:
                self.outcome.ended_s = self._clock.now_s

        for part in range(parts):
            uploader = self._uploaders[(self._staged + part) % plant.uploaders]
            uploader.slots.take(1, partial(begin, uploader))
