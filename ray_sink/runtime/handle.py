"""The producer's end of a sink."""

from __future__ import annotations

import os
import queue
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from time import perf_counter
from types import TracebackType
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import RayActorError, RayError

from ray_sink.accelerator import Cuda
from ray_sink.config import DictMode
from ray_sink.errors import DuplicateKeyError, RunError, SinkClosedError, SinkError, UnsupportedValueError
from ray_sink.formats import resolve
from ray_sink.keys import check_key
from ray_sink.meters import ProducerMeter
from ray_sink.offload import Offload
from ray_sink.records import Receipt, State, Verification, uploaded_receipt
from ray_sink.runtime.calls import own_error, result
from ray_sink.runtime.coordinator import failed_error
from ray_sink.runtime.lease import Lease
from ray_sink.runtime.messages import RunSpec, Submission, WriteReply, WriterInfo
from ray_sink.runtime.payload import Checked, Layout, Packed, as_tensor, copied, pack, packed_bytes, taken_apart
from ray_sink.runtime.ticket import Settling, Ticket, tickets_for
from ray_sink.writer import check_output

_BY_VALUE_BYTES = 64 * 1024
"""Smaller payloads travel inside the call: an object of their own costs more than it saves."""
_TRIES = 20
_REPORT_S = 5.0


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


@dataclass(slots=True)
class _Connection:
    """What a handle has in its own process, and does not pickle."""

    name: str
    node: str
    lease: Lease
    offload: Offload
    meter: ProducerMeter
    lock: threading.Lock = field(default_factory=threading.Lock)
    writers: list[WriterInfo] = field(default_factory=list)
    load: dict[str, int] = field(default_factory=dict)
    todo: queue.SimpleQueue[Callable[[], None] | None] = field(default_factory=queue.SimpleQueue)
    issued: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    unreported: dict[str, Exception] = field(default_factory=dict)


class SinkHandle:
    """Writes outputs from any process of the cluster; picklable, and each copy is a producer of its own.

    When `write` or `write_batch` returns, the caller may overwrite its tensors. `close` (or the ``with`` block) flushes
    and says goodbye; a producer that never did makes ``Sink.close()`` raise. Safe under several threads.
    """

    def __init__(self, spec: RunSpec, coordinator: Any, *, needs_goodbye: bool = True) -> None:
        self._spec = spec
        self._coordinator = coordinator
        self._needs_goodbye = needs_goodbye
        self._format = resolve(spec.format)
        self._dict_mode = DictMode(spec.info.dict_mode)
        self._connecting = threading.Lock()
        self._connection: _Connection | None = None
        self._closed = False

    def __reduce__(self) -> tuple[Any, ...]:
        return _make_handle, (self._spec, self._coordinator, self._needs_goodbye)

    def __enter__(self) -> SinkHandle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except SinkError as own:
            if error is None:
                raise
            error.add_note(f"and closing the sink's handle raised {type(own).__name__}: {own}")

    # -- writing -----------------------------------------------------------------------------------------------------

    def write(self, key: str, value: object, *, source: str | None = None) -> Ticket:
        """Accept one output.

        Args:
            key: relative path without extension.
            value: a tensor or numpy array, a mapping of them by name, or a sequence of them.
            source: identity of the input row, where it is known, as ``<execution>/<row>``.

        Returns:
            Its ticket.

        Raises:
            InvalidKeyError: the key cannot name an output.
            UnsupportedValueError: the value is none of these, or the format cannot hold it (a TypeError).
            SinkClosedError: the handle or the sink is closed.
        """
        return self.write_batch([key], [value], sources=None if source is None else [source])[0]

    def write_batch(
        self, keys: Sequence[str], batch: object, *, sources: Sequence[str | None] | None = None
    ) -> list[Ticket]:
        """Accept a batch of outputs, as one object.

        Args:
            keys: a key for each output, all different.
            batch: a mapping of tensors or numpy arrays by name, or one of them, whose first dimension runs over the
                outputs; or a sequence with a value for each output, as in `write`.
            sources: identities of the input rows, where they are known.

        Returns:
            A ticket for each output.

        Raises:
            DuplicateKeyError: a key occurs twice in the batch.
            InvalidKeyError: a key cannot name an output.
            UnsupportedValueError: a value is of a wrong type, shape or dtype.
            SinkClosedError: the handle or the sink is closed.
        """
        if self._closed:
            raise SinkClosedError("this handle is closed: take a new one from sink.handle()")
        keys = tuple(keys)
        repeated = sorted({str(key) for key in keys if keys.count(key) > 1}) if len(set(keys)) < len(keys) else []
        if repeated:
            raise DuplicateKeyError(f"keys occur more than once in one batch: {', '.join(repeated[:5])}", keys=repeated)
        if sources is not None and len(sources) != len(keys):
            raise UnsupportedValueError(f"{len(keys)} keys and {len(sources)} sources: give one of each per output")
        checked = self._checked(keys, batch)
        if not keys:
            return []
        return self._send(keys, tuple(sources or [None] * len(keys)), checked)

    def _checked(self, keys: tuple[str, ...], batch: object) -> Checked:
        """Check everything, and look at no data."""
        if isinstance(batch, Mapping | torch.Tensor | np.ndarray):
            columns = batch if isinstance(batch, Mapping) else {None: batch}
            tensors = {name: as_tensor(column, f"column {name!r}") for name, column in columns.items()}
            for name, tensor in tensors.items():
                if tensor.ndim == 0 or len(tensor) != len(keys):
                    what = "the batch" if name is None else f"column {name!r}"
                    raise UnsupportedValueError(
                        f"{what} has shape {tuple(tensor.shape)} and there are {len(keys)} keys: its first dimension"
                        " runs over the outputs"
                    )
            if not tensors:
                raise UnsupportedValueError("a batch without columns: there is nothing to save")
            for number, key in enumerate(keys):
                if number == 0:
                    first: Any = {name: tensor[0] for name, tensor in tensors.items()}
                    suffixes = [
                        piece.path.removeprefix(key)
                        for piece in check_output(key, first.get(None, first), self._format, self._dict_mode)
                    ]
                    longest = max(suffixes, key=len)
                else:  # same columns, same dtypes, same shapes: only the key is new
                    check_key(key, suffix=longest)
            return tensors
        if isinstance(batch, str | bytes) or not isinstance(batch, Sequence) or len(batch) != len(keys):
            size = len(batch) if isinstance(batch, Sequence) else "no"
            raise UnsupportedValueError(
                f"a batch is a mapping of tensors, a tensor, or a sequence of values, one per key: got"
                f" {type(batch).__name__} with {size} values for {len(keys)} keys"
            )
        values = [as_value(value, key) for key, value in zip(keys, batch, strict=True)]
        for key, value in zip(keys, values, strict=True):
            check_output(key, value, self._format, self._dict_mode)
        return values

    def _send(self, keys: tuple[str, ...], sources: tuple[str | None, ...], checked: Checked) -> list[Ticket]:
        connection = self._connect()
        layout, tensors = taken_apart(checked)
        if connection.offload.takes(tensors):
            try:
                return self._send_from_gpu(connection, keys, sources, layout, tensors)
            except torch.OutOfMemoryError:
                pass  # then it is brought to the host while the producer waits
        with connection.meter.copying():
            packed = pack(checked)
        n_bytes = packed_bytes(packed)
        with connection.meter.wanting_credit():
            connection.lease.take(len(keys), n_bytes)
        try:
            with connection.meter.copying():
                payload = _payload(packed)
        except BaseException:
            connection.lease.free_bytes(n_bytes)
            connection.lease.free_outputs(len(keys))
            raise
        batch, tickets = _accepted(connection, keys, sources)
        batch.payload, batch.n_bytes = payload, n_bytes
        connection.meter.sent(n_bytes)
        self._submit(connection, batch)
        return tickets

    def _send_from_gpu(
        self,
        connection: _Connection,
        keys: tuple[str, ...],
        sources: tuple[str | None, ...],
        layout: Layout,
        tensors: Sequence[torch.Tensor],
    ) -> list[Ticket]:
        """Accept the batch as soon as it is copied where it is; its way to the host is `ray_sink.offload`'s."""
        with connection.meter.wanting_credit():
            connection.lease.take_outputs(len(keys))
        try:
            with connection.meter.copying():
                taken = connection.offload.take(tensors)
        except BaseException:
            connection.lease.free_outputs(len(keys))
            raise
        batch, tickets = _accepted(connection, keys, sources)

        def failed(error: BaseException) -> None:
            self._settle(connection, batch, [_stranded(error, key) for key in keys])

        connection.offload.bring(
            taken, deliver=lambda hosts: self._send_on(connection, batch, layout.pack(hosts)), failed=failed
        )
        return tickets

    def _send_on(self, connection: _Connection, batch: _Batch, packed: Packed) -> None:
        """On the offload's thread, with a batch that is in host memory for as long as this takes."""
        if not ray.is_initialized():
            raise SinkClosedError("Ray was shut down before this output was written: close the sink first")
        n_bytes = packed_bytes(packed)
        connection.lease.take_bytes(n_bytes)
        batch.n_bytes = n_bytes
        try:
            batch.payload = _payload(packed)
            connection.meter.sent(n_bytes)
            self._submit(connection, batch)
        except BaseException:
            self._let_go(connection, batch, False)
            raise

    # -- the way to the writer ---------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Have a writer started for this node, beside what the caller does next; what fails is said by the first write.

        Without it the first write waits for the writer's process to come up.
        """
        threading.Thread(target=self._prepare, name="ray_sink-prepare", daemon=True).start()

    def _prepare(self) -> None:
        try:
            self._connect()
        except (SinkError, RayError):
            return  # the first write connects again, and raises

    def _connect(self) -> _Connection:
        with self._connecting:
            if self._connection is None:
                node = ray.get_runtime_context().get_node_id()
                nonce = os.urandom(6).hex()
                name = f"{socket.gethostname()}-{os.getpid()}-{nonce}"

                def acquire(held: int, granted: int, need: int) -> int:
                    return int(self._ask(self._coordinator.acquire.remote(name, node, held, granted, need)))

                self._ask(self._coordinator.producer_opened.remote(name, self._needs_goodbye))
                limits = self._spec.limits
                lease = Lease(limits.inflight_outputs, acquire)
                offload = Offload(limits.device_bytes, Cuda())
                meter = ProducerMeter(name, lambda: offload.waited_s)
                made = _Connection(name, node, lease, offload, meter)
                made.writers = self._ask(self._coordinator.writers.remote(node))
                threading.Thread(target=self._work, args=(made,), name="ray_sink-handle", daemon=True).start()
                self._connection = made
            return self._connection

    def _ask(self, ref: Any) -> Any:
        try:
            return result(ref)
        except RayActorError as error:
            raise SinkClosedError("the sink is closed, or its driver has ended: its coordinator is gone") from error

    def _submit(self, connection: _Connection, batch: _Batch) -> None:
        with connection.lock:
            if not connection.writers:
                # all that it had leave: the handle's own thread asks for others, and the producer goes on
                connection.todo.put(lambda: self._send_again(connection, batch))
                return
            writer = min(connection.writers, key=lambda info: connection.load.get(info.name, 0))
            connection.load[writer.name] = connection.load.get(writer.name, 0) + batch.n_bytes
        batch.writer = writer.name
        nonce = connection.name.rpartition("-")[2]
        attempts = tuple(f"{nonce}-{batch.number}-{batch.tries}-{row}" for row in range(len(batch.keys)))
        submission = Submission(batch.keys, attempts, batch.sources, connection.meter.measures())
        ref = writer.actor.write.remote(submission, batch.payload)
        ref.future().add_done_callback(lambda done: self._replied(connection, batch, done))

    def _replied(self, connection: _Connection, batch: _Batch, done: Future[WriteReply]) -> None:
        """On a thread of Ray's: nothing here may wait."""
        with connection.lock:
            connection.load[batch.writer] -= batch.n_bytes
        error = done.exception()
        if error is None:
            reply = done.result()
            if reply.leaving:
                with connection.lock:
                    connection.writers = [writer for writer in connection.writers if writer.name != batch.writer]
            self._let_go(connection, batch, reply.credit_wanted)
            self._staged(connection, batch, reply.outcomes)
        elif isinstance(error, RayActorError) and batch.tries < _TRIES:
            batch.tries += 1
            connection.todo.put(lambda: self._send_again(connection, batch))
        else:
            self._let_go(connection, batch, False)
            self._settle(connection, batch, [_failure(own_error(error), key) for key in batch.keys])

    def _send_again(self, connection: _Connection, batch: _Batch) -> None:
        """A writer died or leaves: its replacement, or another, gets the batch as a new attempt."""
        try:
            writers = self._ask(self._coordinator.writers.remote(connection.node, batch.writer))
            with connection.lock:
                connection.writers = writers
            self._submit(connection, batch)
        except (SinkError, RayError) as error:
            self._let_go(connection, batch, False)
            self._settle(connection, batch, [_failure(error, key) for key in batch.keys])

    def _let_go(self, connection: _Connection, batch: _Batch, credit_wanted: bool) -> None:
        batch.payload = None
        connection.lease.free_bytes(batch.n_bytes)
        if credit_wanted:
            connection.todo.put(lambda: self._report(connection))

    def _staged(self, connection: _Connection, batch: _Batch, outcomes: Sequence[Receipt | Exception]) -> None:
        dest = self._spec.info.dest
        staged = [out for out in outcomes if isinstance(out, Receipt) and out.state is State.STAGED]
        if self._spec.ack == "staged" or dest is None or not staged:
            self._settle(connection, batch, outcomes)
            return
        ref = self._coordinator.await_uploaded.remote([receipt.key for receipt in staged])

        def uploaded(done: Future[list[Verification | SinkError]]) -> None:
            error = done.exception()
            found = [_failure(own_error(error), receipt.key) for receipt in staged] if error else done.result()
            by_key: dict[str, Receipt | Exception] = {
                receipt.key: proof if isinstance(proof, Exception) else uploaded_receipt(receipt, dest, proof)
                for receipt, proof in zip(staged, found, strict=True)
            }
            self._settle(connection, batch, [by_key.get(k, o) for k, o in zip(batch.keys, outcomes, strict=True)])

        ref.future().add_done_callback(uploaded)

    def _settle(self, connection: _Connection, batch: _Batch, outcomes: Sequence[Receipt | Exception]) -> None:
        with connection.lock:
            for key, outcome in zip(batch.keys, outcomes, strict=True):
                if isinstance(outcome, Receipt):
                    connection.failures.pop(key, None)
                else:
                    connection.failures[key] = str(outcome)
                    connection.unreported[key] = outcome
        batch.settled.set_result(outcomes)
        connection.lease.free_outputs(len(batch.keys))

    def _work(self, connection: _Connection) -> None:
        """The handle's own thread: sends again what a dead writer had, and tells the coordinator that we live."""
        while True:
            try:
                job = connection.todo.get(timeout=_REPORT_S)
            except queue.Empty:
                if not ray.is_initialized():
                    return  # Ray was shut down under us, and a call would start it anew
                self._report(connection)
                continue
            if job is None:
                return
            job()

    def _report(self, connection: _Connection) -> None:
        held, granted = connection.lease.trim()
        # nobody waits for this: a report that is lost is followed by the next
        self._coordinator.hold.remote(connection.node, held, granted, connection.meter.measures())

    @property
    def outstanding(self) -> int:
        """Outputs accepted and neither acknowledged nor failed."""
        return 0 if self._connection is None else self._connection.lease.outputs

    # -- the end -----------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Wait until every output accepted so far has its receipt.

        Raises:
            OutputsFailed: naming the outputs that failed since the last flush, unless ``Limits.max_failures`` lets the
                run go on without them.
        """
        connection = self._connection
        if connection is None:
            return
        began_s = perf_counter()
        connection.lease.wait_idle()
        connection.meter.waited_for_receipts(perf_counter() - began_s)
        with connection.lock:
            failed, connection.unreported = connection.unreported, {}
        if failed and not self.set_aside(failed):
            raise failed_error({key: str(error) for key, error in failed.items()})

    def close_sources(self, sources: Sequence[str]) -> None:
        """Say that all outputs of these input rows have their receipts: a resumed run need not compute them again."""
        self._ask(self._coordinator.close_sources.remote(sources))

    def set_aside(self, failures: Mapping[str, BaseException]) -> bool:
        """Have outputs that failed counted against ``Limits.max_failures``.

        Args:
            failures: what their tickets raised, by key.

        Returns:
            Whether the run may go on without them. Never where it is no fault of the output: of two rows under one key
            or of a run that was closed, sealed or taken over.
        """
        whole = (DuplicateKeyError, SinkClosedError, RunError)
        if not self._spec.limits.max_failures or any(isinstance(error, whole) for error in failures.values()):
            return False
        return bool(self._ask(self._coordinator.set_aside.remote({key: str(e) for key, e in failures.items()})))

    def close(self) -> None:
        """Flush and say goodbye. A second call does nothing.

        Raises:
            OutputsFailed: naming the outputs that failed since the last flush.
        """
        if self._closed:
            return
        self._closed = True
        connection = self._connection
        if connection is None:
            return
        try:
            self.flush()
        finally:
            connection.offload.close()
            connection.todo.put(None)
            if self._needs_goodbye:
                goodbye = self._coordinator.producer_closed
                self._ask(goodbye.remote(connection.node, connection.meter.measures(), connection.failures))
            else:
                self._report(connection)


def _make_handle(spec: RunSpec, coordinator: Any, needs_goodbye: bool) -> SinkHandle:
    return SinkHandle(spec, coordinator, needs_goodbye=needs_goodbye)


def as_value(value: object, key: str) -> Any:
    """`value` with its numpy arrays as tensors.

    Raises:
        UnsupportedValueError: it is no tensor, mapping or sequence of tensors.
    """
    if isinstance(value, Mapping):
        return {name: as_tensor(item, f"{key!r}[{name!r}]") for name, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [as_tensor(item, f"{key!r}[{index}]") for index, item in enumerate(value)]
    return as_tensor(value, f"the value of {key!r}")


def _accepted(
    connection: _Connection, keys: tuple[str, ...], sources: tuple[str | None, ...]
) -> tuple[_Batch, list[Ticket]]:
    """Tickets for a batch, which has no payload yet."""
    with connection.lock:
        connection.issued += len(keys)
        connection.meter.accepted(len(keys))
        tickets, settled = tickets_for(keys, connection.meter.waited_for_receipts)
        return _Batch(keys, sources, None, 0, settled, connection.issued), tickets


def _payload(packed: Packed) -> Any:
    """What travels; either way it has memory of its own."""
    return copied(packed) if packed_bytes(packed) <= _BY_VALUE_BYTES else ray.put(packed)


def _stranded(error: BaseException, key: str) -> Exception:
    if isinstance(error, SinkError):
        return error
    failure = SinkError(f"key {key!r}: it did not come from the GPU into the object store: {error}")
    failure.__cause__ = error
    return failure


def _failure(error: BaseException | None, key: str) -> Exception:
    if isinstance(error, SinkError):
        return error
    failure = SinkError(f"key {key!r}: its writers failed again and again: {error}")
    failure.__cause__ = error
    return failure
