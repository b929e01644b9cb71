"""A sink at the end of a pipeline whose model is no class of the user's: ``ds.write_datasink(sink.datasink(…))``."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable, Iterator
from typing import Any, Final

from ray.data import DataContext
from ray.data._internal.execution.interfaces.task_context import TaskContext
from ray.data._internal.planner.plan_write_op import WRITE_UUID_KWARG_NAME
from ray.data.block import Block, BlockAccessor
from ray.data.datasource import Datasink, WriteResult

from ray_sink.config import MiB
from ray_sink.errors import ConfigError
from ray_sink.records import Receipt, RowCounts
from ray_sink.runtime.batches import Batch, is_tensor
from ray_sink.runtime.columns import select
from ray_sink.runtime.execution import WatchedDataset, gist, lost_blocks
from ray_sink.runtime.failing import failures_of, one_error, unwrapped
from ray_sink.runtime.handle import SinkHandle
from ray_sink.runtime.keying import KeyTemplate, missing_error, require_unique
from ray_sink.runtime.rows import Remaining
from ray_sink.runtime.ticket import Ticket, settled

_SLICE_BYTES: Final = 32 * MiB
"""Rows of a block that are handed over as one object, so that writers begin before the block's end is copied."""


class SinkDatasink(Datasink[RowCounts]):
    """Writes every row of a dataset under its key; a write task returns only with the receipts of all its rows.

    Ray Data calls `on_write_start` in the driver before the first task, `write` in each task, again for a task that is
    repeated, then `on_write_complete` or `on_write_failed` in the driver. What was decided by a task that died gets the
    first attempt's receipt. One object serves one dataset; the same one may be tried again after a failure.

    Args:
        handle: a producer's end that needs no goodbye.
        watched: the dataset in the ledger, open already.
        remaining: takes out the rows whose key was committed when the datasink was made.
        key: the key template.
        columns: the columns to save, as `check_columns` returns them; None: all tensor columns.
    """

    def __init__(
        self,
        handle: SinkHandle,
        watched: WatchedDataset,
        remaining: Remaining,
        key: KeyTemplate,
        columns: str | tuple[str, ...] | None,
    ) -> None:
        self._handle = handle
        self._watched: WatchedDataset | None = watched
        self._remaining = remaining
        self._key = key
        self._columns = columns
        self._executor: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_watched": None, "_executor": None}  # the driver's alone

    # -- in the driver -----------------------------------------------------------------------------------------------

    def on_write_start(self, schema: Any = None) -> None:
        """Called on the thread of the execution, which is what knows of blocks that were dropped."""
        self._executor = threading.current_thread()

    def on_write_complete(self, write_result: WriteResult[RowCounts]) -> None:
        rows = sum(write_result.write_returns, RowCounts())
        self._ended(rows, self._dropped())

    def on_write_failed(self, error: Exception) -> None:
        self._ended(RowCounts(), f"failed: {gist(error)}")

    def _dropped(self) -> str | None:
        if self._executor is not None:
            return lost_blocks(self._executor)
        # no block ever came: there are no rows, or Ray Data dropped all of them
        may_drop = DataContext.get_current().max_errored_blocks
        return (
            "wrote nothing, and Ray Data may have dropped all of it (DataContext.max_errored_blocks)"
            if may_drop
            else None
        )

    def _ended(self, rows: RowCounts, reason: str | None) -> None:
        assert self._watched is not None
        self._executor = None
        self._watched.ended(rows, reason)

    # -- in a write task ---------------------------------------------------------------------------------------------

    def write(self, blocks: Iterable[Block], ctx: TaskContext) -> RowCounts:
        with unwrapped():
            return self._write(blocks, f"{ctx.kwargs.get(WRITE_UUID_KWARG_NAME)}/{ctx.task_idx}-")

    def _write(self, blocks: Iterable[Block], task: str) -> RowCounts:
        tickets: list[Ticket] = []
        rows_in = 0
        with copy.copy(self._handle) as handle:  # a copy is a producer of its own
            for block in blocks:
                # the snapshot is the same for a task that is repeated, and so are the numbers of its rows
                left = self._remaining.rest(block)
                rows_in += len(block)
                for part in _slices(left):
                    tickets += self._hand_over(handle, Batch(part), task, len(tickets))
            outcomes = settled(tickets)
            failures = failures_of(tickets, outcomes)
            if failures and not handle.set_aside(failures):
                raise one_error(failures)
        rows_out = sum(isinstance(outcome, Receipt) for outcome in outcomes)
        return RowCounts(rows_in, rows_out, rows_in - len(tickets))

    def _hand_over(self, handle: SinkHandle, batch: Batch, task: str, first: int) -> list[Ticket]:
        missing = self._key.missing(batch.names)
        if missing:
            raise missing_error(self._key, missing, "the dataset", batch.describe())
        keys = self._key.keys_of(batch)
        require_unique(keys, "the dataset")
        value = select(self._names(batch), batch, {}).value
        return handle.write_batch(keys, value, sources=[f"{task}{first + row}" for row in range(batch.rows)])

    def _names(self, batch: Batch) -> str | tuple[str, ...]:
        if self._columns is not None:
            return self._columns
        names = tuple(name for name in batch.names if is_tensor(batch.column(name)))
        if not names:
            raise ConfigError(
                "the dataset has no tensor column, so that there is nothing to save. Name what is to be saved:"
                f" columns='…'. It has {batch.describe()}"
            )
        return names[0] if len(names) == 1 else names


def _slices(block: Block) -> Iterator[Block]:
    accessor = BlockAccessor.for_block(block)
    rows = accessor.num_rows()
    step = max(1, rows * _SLICE_BYTES // max(1, accessor.size_bytes()))
    for start in range(0, rows, step):
        yield accessor.slice(start, min(start + step, rows), copy=False)
