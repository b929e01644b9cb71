"""A handle's way to the writers: batches under way, the room that they take, and what became of them."""

from __future__ import annotations

import os
import queue
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import ray
import torch
from ray.exceptions import (
    ActorUnschedulableError,
    LocalRayletDiedError,
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RaySystemError,
    RpcError,
)

from ray_sink.accelerator import Cuda
from ray_sink.aside import Aside
from ray_sink.errors import SinkClosedError, SinkError
from ray_sink.meters import ProducerMeter
from ray_sink.offload import Offload
from ray_sink.records import Receipt, State, Verification, uploaded_receipt
from ray_sink.runtime.calls import own_error, result
from ray_sink.runtime.lease import Lease
from ray_sink.runtime.messages import RunSpec, Submission, WriteReply, WriterInfo
from ray_sink.runtime.payload import Checked, Layout, Packed, copied, pack, packed_bytes, taken_apart
from ray_sink.runtime.route import Route
from ray_sink.runtime.ticket import Settling, Ticket, tickets_for

_BY_VALUE_BYTES = 64 * 1024
"""Smaller payloads travel inside the call: an object of their own costs more than it saves."""
_BESIDE = 2
"""Batches that wait to be copied beside their producer: each is in memory twice meanwhile."""
_TRIES = 20
_DIED = (
    RayActorError,
    OutOfMemoryError,  # Ray's memory monitor has ended it
    # a writer may outlive its node for a moment, and cannot have its uploader, its raylet or its objects any more
    ActorUnschedulableError,
    LocalRayletDiedError,
    NodeDiedError,
    RaySystemError,
    RpcError,
)
"""How a call ends whose actor is gone, or as good as gone."""
_REPORT_S = 5.0
_STRANDED = "it did not come into the object store"


@dataclass(slots=True)
class _Batch:
    """Outputs on their way to a writer, with all that is needed to send them again."""

    keys: tuple[str, ...]
    sources: tuple[str | None, ...]
    payload: Any
    n_bytes: int
    settled: Settling
    number: int
    tries: int = 0
    writer: str = ""


class Connection:
    """One producer of a run, in its process. Safe under several threads.

    Args:
        spec: what the run is.
        coordinator: its actor handle.
        needs_goodbye: the run cannot be sealed before `close`.
    """

    def __init__(self, spec: RunSpec, coordinator: Any, *, needs_goodbye: bool) -> None:
        """Say that we are here, and wait for a writer.

        Raises:
            SinkClosedError: the sink is closed.
        """
        self._spec = spec
        self._coordinator = coordinator
        self._needs_goodbye = needs_goodbye
        self._node = ray.get_runtime_context().get_node_id()
        self._nonce = os.urandom(6).hex()
        self._name = f"{socket.gethostname()}-{os.getpid()}-{self._nonce}"
        ask(coordinator.producer_opened.remote(self._name, needs_goodbye))
        self._lease = Lease(spec.limits.inflight_outputs, self._acquire)
        self._offload = Offload(spec.limits.device_bytes, Cuda())
        self._copier = Aside(1, _BESIDE, "ray_sink-copy")
        self._meter = ProducerMeter(self._name, lambda: self._offload.waited_s)
        self._lock = threading.Lock()
        self._todo: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._issued = 0
        self._ending = False
        self._failures: dict[str, str] = {}
        self._unreported: dict[str, Exception] = {}
        self._route = Route(self._node, self._ask_for_writers)
        threading.Thread(target=self._work, name="ray_sink-handle", daemon=True).start()

    def _ask_for_writers(self, gone: str | None) -> list[WriterInfo]:
        writers: list[WriterInfo] = ask(self._coordinator.writers.remote(self._node, gone))
        return writers

    def _acquire(self, held: int, granted: int, need: int) -> int:
        return int(ask(self._coordinator.acquire.remote(self._name, self._node, held, granted, need)))

    @property
    def outstanding(self) -> int:
        """Outputs accepted and neither acknowledged nor failed."""
        return self._lease.outputs

    def flush(self, timeout_s: float | None = None) -> dict[str, Exception]:
        """Wait until nothing is outstanding, or the time is up; returns what has failed since the last time, by key."""
        began_s = perf_counter()
        self._lease.wait_idle(timeout_s)
        self._meter.waited_for_receipts(perf_counter() - began_s)
        with self._lock:
            failed, self._unreported = self._unreported, {}
        return failed

    def close(self, *, complete: bool) -> None:
        """Say goodbye, behind the last `flush`.

        Not if that was not `complete`: the run must not be sealed then. What is outstanding is still seen to, for
        whoever waits for its tickets, as long as this process lives.
        """
        self._offload.close()
        self._copier.close(wait=False)
        if not complete:
            self._ending = True
            return
        self._todo.put(None)
        if self._needs_goodbye:
            goodbye = self._coordinator.producer_closed
            ask(goodbye.remote(self._node, self._meter.measures(), self._failures))
        else:
            self.report()

    # -- accepting ---------------------------------------------------------------------------------------------------

    def send(
        self, keys: tuple[str, ...], sources: tuple[str | None, ...], checked: Checked, *, copy: bool
    ) -> list[Ticket]:
        """Accept a batch; returns when the caller may overwrite it, or at once where it has given it away."""
        layout, tensors = taken_apart(checked)
        if self._offload.takes(tensors):
            try:
                return self._send_from_gpu(keys, sources, layout, tensors)
            except torch.OutOfMemoryError:
                pass  # then it is brought to the host while the producer waits
        n_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        if not copy and n_bytes > _BY_VALUE_BYTES:
            return self._send_beside(keys, sources, checked, n_bytes)
        with self._meter.copying():
            packed = pack(checked)
        with self._meter.wanting_credit():
            self._lease.take(len(keys), n_bytes)
        try:
            with self._meter.copying():
                payload = _payload(packed)
        except BaseException:
            self._lease.free_bytes(n_bytes)
            self._lease.free_outputs(len(keys))
            raise
        batch, tickets = self._accepted(keys, sources)
        batch.payload, batch.n_bytes = payload, n_bytes
        self._meter.sent(n_bytes)
        self._submit(batch)
        return tickets

    def _send_beside(
        self, keys: tuple[str, ...], sources: tuple[str | None, ...], checked: Checked, n_bytes: int
    ) -> list[Ticket]:
        """Accept a batch that nobody will write to: it is copied while the producer goes on."""
        with self._meter.wanting_credit():
            self._lease.take(len(keys), n_bytes)
        batch, tickets = self._accepted(keys, sources)
        batch.n_bytes = n_bytes

        def job() -> None:
            try:
                self._send_packed(batch, pack(checked))
            except BaseException as error:  # noqa: BLE001 -- told to whoever waits for the batch
                self._settle(batch, [_failure(error, key, _STRANDED) for key in keys])

        with self._meter.copying():
            taken = self._copier.submit(job)
        if not taken:  # closed meanwhile, by another thread
            job()
        return tickets

    def _send_from_gpu(
        self,
        keys: tuple[str, ...],
        sources: tuple[str | None, ...],
        layout: Layout,
        tensors: Sequence[torch.Tensor],
    ) -> list[Ticket]:
        """Accept the batch as soon as it is copied where it is; its way to the host is `ray_sink.offload`'s."""
        with self._meter.wanting_credit():
            self._lease.take_outputs(len(keys))
        try:
            with self._meter.copying():
                taken = self._offload.take(tensors)
        except BaseException:
            self._lease.free_outputs(len(keys))
            raise
        batch, tickets = self._accepted(keys, sources)

        def failed(error: BaseException) -> None:
            self._settle(batch, [_failure(error, key, _STRANDED) for key in keys])

        self._offload.bring(taken, deliver=lambda hosts: self._send_on(batch, layout.pack(hosts)), failed=failed)
        return tickets

    def _send_on(self, batch: _Batch, packed: Packed) -> None:
        """On the offload's thread, with a batch that is in host memory for as long as this takes."""
        n_bytes = packed_bytes(packed)
        self._lease.take_bytes(n_bytes)
        batch.n_bytes = n_bytes
        self._send_packed(batch, packed)

    def _send_packed(self, batch: _Batch, packed: Packed) -> None:
        """Beside the producer, with a batch that has its room."""
        try:
            if not ray.is_initialized():
                raise SinkClosedError("Ray was shut down before this output was written: close the sink first")
            batch.payload = _payload(packed)
            self._meter.sent(batch.n_bytes)
            self._submit(batch)
        except BaseException:
            self._let_go(batch, False)
            raise

    def _accepted(self, keys: tuple[str, ...], sources: tuple[str | None, ...]) -> tuple[_Batch, list[Ticket]]:
        """Tickets for a batch, which has no payload yet."""
        with self._lock:
            self._issued += len(keys)
            self._meter.accepted(len(keys))
            tickets, settled = tickets_for(keys, self._meter.waited_for_receipts)
            return _Batch(keys, sources, None, 0, settled, self._issued), tickets

    # -- the way to the writer ---------------------------------------------------------------------------------------

    def _submit(self, batch: _Batch) -> None:
        writer = self._route.take(batch.n_bytes)
        if writer is None:
            # all that it had leave: its own thread asks for others, and the producer goes on
            self._todo.put(lambda: self._send_again(batch))
            return
        batch.writer = writer.name
        attempts = tuple(f"{self._nonce}-{batch.number}-{batch.tries}-{row}" for row in range(len(batch.keys)))
        submission = Submission(batch.keys, attempts, batch.sources, self._meter.measures())
        ref = writer.actor.write.remote(submission, batch.payload)
        ref.future().add_done_callback(lambda done: self._replied(batch, done))

    def _replied(self, batch: _Batch, done: Future[WriteReply]) -> None:
        """On a thread of Ray's: nothing here may wait."""
        error = done.exception()
        if error is None:
            reply = done.result()
            self._route.replied(batch.writer, batch.n_bytes, leaving=reply.leaving)
            self._let_go(batch, reply.credit_wanted)
            self._staged(batch, reply.outcomes)
            return
        self._route.replied(batch.writer, batch.n_bytes)
        if isinstance(error, _DIED) and batch.tries < _TRIES:
            batch.tries += 1
            self._todo.put(lambda: self._send_again(batch))
        else:
            self._let_go(batch, False)
            what = "its writers died again and again" if isinstance(error, _DIED) else "its writer failed"
            self._settle(batch, [_failure(own_error(error), key, what) for key in batch.keys])

    def _send_again(self, batch: _Batch) -> None:
        """A writer died or leaves: its replacement, or another, gets the batch as a new attempt."""
        try:
            self._route.renew(batch.writer)
            self._submit(batch)
        except (SinkError, RayError) as error:
            self._let_go(batch, False)
            self._settle(batch, [_failure(error, key, "no writer could be had") for key in batch.keys])

    def _let_go(self, batch: _Batch, credit_wanted: bool) -> None:
        batch.payload = None
        self._lease.free_bytes(batch.n_bytes)
        if credit_wanted:
            self._todo.put(self.report)

    def _staged(self, batch: _Batch, outcomes: Sequence[Receipt | Exception]) -> None:
        dest = self._spec.info.dest
        staged = [out for out in outcomes if isinstance(out, Receipt) and out.state is State.STAGED]
        if self._spec.ack == "staged" or dest is None or not staged:
            self._settle(batch, outcomes)
            return
        ref = self._coordinator.await_uploaded.remote([receipt.key for receipt in staged])

        def uploaded(done: Future[list[Verification | SinkError]]) -> None:
            error = done.exception()
            what = "staged, and nobody can say whether it is uploaded"
            found = [_failure(own_error(error), r.key, what) for r in staged] if error else done.result()
            by_key: dict[str, Receipt | Exception] = {
                receipt.key: proof if isinstance(proof, Exception) else uploaded_receipt(receipt, dest, proof)
                for receipt, proof in zip(staged, found, strict=True)
            }
            self._settle(batch, [by_key.get(k, o) for k, o in zip(batch.keys, outcomes, strict=True)])

        ref.future().add_done_callback(uploaded)

    def _settle(self, batch: _Batch, outcomes: Sequence[Receipt | Exception]) -> None:
        with self._lock:
            for key, outcome in zip(batch.keys, outcomes, strict=True):
                if isinstance(outcome, Receipt):
                    self._failures.pop(key, None)
                else:
                    self._failures[key] = str(outcome)
                    self._unreported[key] = outcome
        batch.settled.set_result(outcomes)
        self._lease.free_outputs(len(batch.keys))

    def _work(self) -> None:
        """The handle's own thread: sends again what a dead writer had, and tells the coordinator that we live."""
        while True:
            try:
                job = self._todo.get(timeout=_REPORT_S)
            except queue.Empty:
                if not ray.is_initialized():
                    return
                if self._ending and not self.outstanding:
                    return
                job = self.report
            if job is None:
                return
            job()
            if ray.is_initialized():
                with suppress(SinkError, RayError):  # what is sent finds out
                    self._route.look_home()

    def report(self, *, wait_s: float = 0.0) -> None:
        """Tell the coordinator what this producer has counted, and give back what it does not use.

        Args:
            wait_s: how long its answer is waited for, at most, seconds. A report that is lost is followed by the next,
                but the last one by none, and a process that is killed right behind it may not have sent it.
        """
        if not ray.is_initialized():
            return  # shut down under us: a call would start it anew
        held, granted = self._lease.trim()
        heard = self._coordinator.hold.remote(self._node, held, granted, self._meter.measures())
        if wait_s:
            ray.wait([heard], timeout=wait_s)


def ask(ref: Any) -> Any:
    """The coordinator's answer.

    Raises:
        SinkClosedError: it is gone for good.
        SinkError: as it raised it.
    """
    try:
        return result(ref)
    except RayActorError as error:
        raise SinkClosedError("the sink is closed, or its driver has ended: its coordinator is gone") from error


def _payload(packed: Packed) -> Any:
    """What travels; either way it has memory of its own."""
    return copied(packed) if packed_bytes(packed) <= _BY_VALUE_BYTES else ray.put(packed)


def _failure(error: BaseException, key: str, what: str) -> Exception:
    if isinstance(error, SinkError):
        return error
    # an error within an actor says its whole traceback, which stays with the cause
    inner = getattr(error, "cause", None) or error
    failure = SinkError(f"key {key!r}: {what}: {type(inner).__name__}: {inner}")
    failure.__cause__ = error
    return failure
