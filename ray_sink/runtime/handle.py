"""The producer's end of a sink."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import torch
from ray.exceptions import RayError

from ray_sink.config import DictMode
from ray_sink.errors import (
    DuplicateKeyError,
    OutputsFailed,
    RunError,
    SinkClosedError,
    SinkError,
    UnsupportedValueError,
)
from ray_sink.formats import resolve
from ray_sink.keys import check_key
from ray_sink.runtime.connection import Connection, ask
from ray_sink.runtime.messages import RunSpec
from ray_sink.runtime.payload import Checked, as_tensor
from ray_sink.runtime.ticket import Ticket
from ray_sink.writer import check_output

_LAST_S = 2.0


class SinkHandle:
    """Writes outputs from any process of the cluster; picklable, and each copy is a producer of its own.

    When `write` or `write_batch` returns, the caller may overwrite its tensors, unless it gave them away. `close` (or
    the ``with`` block) flushes and says goodbye; a producer that never did makes ``Sink.close()`` raise. Leaving the
    block by an exception waits for ``limits.drain_s`` at most, and says goodbye if all had their receipts by then. Safe
    under several threads.
    """

    def __init__(self, spec: RunSpec, coordinator: Any, *, needs_goodbye: bool = True) -> None:
        self._spec = spec
        self._coordinator = coordinator
        self._needs_goodbye = needs_goodbye
        self._format = resolve(spec.format)
        self._dict_mode = DictMode(spec.info.dict_mode)
        self._connecting = threading.Lock()
        self._connection: Connection | None = None
        self._closed = False

    def __reduce__(self) -> tuple[Any, ...]:
        return _make_handle, (self._spec, self._coordinator, self._needs_goodbye)

    def __enter__(self) -> SinkHandle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        try:
            self._close(self._spec.limits.drain_s)
        except SinkError as own:
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
        self,
        keys: Sequence[str],
        batch: object,
        *,
        sources: Sequence[str | None] | None = None,
        copy: bool = True,
    ) -> list[Ticket]:
        """Accept a batch of outputs, as one object.

        Args:
            keys: a key for each output, all different.
            batch: a mapping of tensors or numpy arrays by name, or one of them, whose first dimension runs over the
                outputs; or a sequence with a value for each output, as in `write`.
            sources: identities of the input rows, where they are known.
            copy: False gives the batch away: nobody writes to its memory any more, and it is copied beside the caller,
                who does not wait for that. Tensors on a GPU are copied there in either case.

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
        return self._connect().send(keys, tuple(sources or [None] * len(keys)), checked, copy=copy)

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

    def _connect(self) -> Connection:
        with self._connecting:
            if self._connection is None:
                self._connection = Connection(self._spec, self._coordinator, needs_goodbye=self._needs_goodbye)
            return self._connection

    def let_go(self) -> None:
        """Give back room that is leased and not in use: this process may end without a goodbye."""
        if self._connection is not None:
            self._connection.report(wait_s=_LAST_S)

    @property
    def outstanding(self) -> int:
        """Outputs accepted and neither acknowledged nor failed."""
        return 0 if self._connection is None else self._connection.outstanding

    # -- the end -----------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Wait until every output accepted so far has its receipt.

        Raises:
            OutputsFailed: naming the outputs that failed since the last flush, unless ``Limits.max_failures`` lets the
                run go on without them.
        """
        if self._connection is not None:
            self._flush(self._connection, None)

    def _flush(self, connection: Connection, timeout_s: float | None) -> None:
        failed = connection.flush(timeout_s)
        if failed and not self.set_aside(failed):
            raise OutputsFailed.of({key: str(error) for key, error in failed.items()})

    def close_sources(self, sources: Sequence[str]) -> None:
        """Say that all outputs of these input rows have their receipts: a resumed run need not compute them again."""
        ask(self._coordinator.close_sources.remote(sources))

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
        return bool(ask(self._coordinator.set_aside.remote({key: str(e) for key, e in failures.items()})))

    def close(self) -> None:
        """Flush and say goodbye. A second call does nothing.

        Raises:
            OutputsFailed: naming the outputs that failed since the last flush.
        """
        self._close(None)

    def _close(self, timeout_s: float | None) -> None:
        if self._closed:
            return
        self._closed = True
        connection = self._connection
        if connection is None:
            return
        try:
            self._flush(connection, timeout_s)
        finally:
            left = 0 if timeout_s is None else connection.outstanding
            connection.close(complete=not left)
        if left:
            raise SinkError(
                f"{left} output(s) had no receipt after limits.drain_s = {timeout_s:g} s: the run is not sealed. Run"
                " the same script again: it resumes"
            )


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
