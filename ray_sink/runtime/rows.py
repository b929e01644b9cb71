"""The stage in front of the model: it takes out rows whose output is there already, and tells rows apart."""

from __future__ import annotations

import uuid
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import ray
from ray.data._internal.execution.interfaces.task_context import TaskContext

from ray_sink.errors import SinkError
from ray_sink.keys import hash_keys
from ray_sink.runtime.batches import Batch
from ray_sink.runtime.calls import result
from ray_sink.runtime.failing import unwrapped
from ray_sink.runtime.keying import KeyTemplate, missing_error

SOURCE: Final = "__ray_sink_source__"
"""Column of row identities between the admission stage and the model."""

_COUNTS: Final = "ray_sink_rows"


class Remaining:
    """Takes out the rows whose key is committed, or whose source is closed.

    The hashes are a snapshot: what is committed later stays in, so that a task that Ray runs again sees the same rows.

    Args:
        template: the key, or the source.
        committed: reference to sorted hashes of the committed keys, or of the closed sources; None if there are none.
        required: a batch without the template's columns is an error, and not left as it is.
        argument: which argument the template was given as.
    """

    def __init__(
        self, template: KeyTemplate, committed: Any, *, required: bool, argument: Literal["key", "source"] = "key"
    ) -> None:
        self.argument = argument
        self._template = template
        self._committed = committed
        self._required = required

    def __call__(self, block: Any) -> Any:
        """The rows of a block, an arrow table or a data frame, that are still to be done."""
        with unwrapped():
            return self.rest(block)

    def rest(self, block: Any) -> Any:
        """See `__call__`."""
        batch = Batch(block)
        missing = self._template.missing(batch.names)
        if missing and self._required and batch.names:
            raise missing_error(self._template, missing, "the dataset", batch.describe(), argument=self.argument)
        if missing or self._committed is None or not batch.rows:
            return block
        keep = ~_is_in(self.hashes(batch), ray.get(self._committed))
        if keep.all():
            return block
        return block.filter(pa.array(keep)) if isinstance(block, pa.Table) else block[keep]

    def hashes(self, batch: Batch) -> npt.NDArray[Any]:
        """Hashes of the keys, or sources, of a batch that has the template's columns."""
        return hash_keys(self._template.keys_of(batch))


class Admission:
    """Takes out what is committed, gives each row an identity, and counts; where rows go by sources, lists these.

    A row's identity is ``<execution>/<task>-<place among the task's rows>``: a task that Ray runs again, because it was
    retried or its output was lost, gets the same input in the same order, and so gives the same identities. Executions
    are told apart because Ray Data does not number tasks the same way twice.
    """

    def __init__(self, remaining: Remaining, coordinator: Any, dataset_id: str) -> None:
        self._remaining = remaining
        self._coordinator = coordinator
        self._dataset_id = dataset_id
        self._execution = ""

    def __getstate__(self) -> dict[str, Any]:
        # Ray Data pickles an operator's functions once for each execution, and all of its tasks share that
        return {**self.__dict__, "_execution": uuid.uuid4().hex[:12]}

    def __call__(self, block: Any) -> Any:
        """Handle one block; blocks of a task come in order, in one process."""
        with unwrapped():
            return self._admit(block)

    def _admit(self, block: Any) -> Any:
        context = TaskContext.get_current()
        if context is None:
            raise SinkError("this stage must run as tasks of Ray Data: it was moved into an actor")
        rows_in, rows_skipped = context.kwargs.get(_COUNTS, (0, 0))
        left = self._remaining.rest(block)
        sources = _sources(f"{self._execution}/{context.task_idx}-", rows_in, len(left))
        if self._remaining.argument == "source" and len(block):
            hashes, place = self._remaining.hashes(Batch(block)), f"{context.task_idx}-{rows_in}"
            result(self._coordinator.sources_seen.remote(self._dataset_id, self._execution, place, hashes))
        rows_in += len(block)
        rows_skipped += len(block) - len(left)
        context.kwargs[_COUNTS] = rows_in, rows_skipped
        # one sum for each task, so that a repeated task, and a repeated execution, counts once
        report = self._coordinator.rows_seen.remote(self._dataset_id, str(context.task_idx), rows_in, rows_skipped)
        result(report)
        if isinstance(left, pd.DataFrame):
            return left.assign(**{SOURCE: sources.to_pandas()})
        return left.append_column(SOURCE, sources)


def _sources(prefix: str, first: int, count: int) -> pa.Array:
    numbers = pa.array(np.arange(first, first + count)).cast(pa.string())
    return pa.compute.binary_join_element_wise(pa.scalar(prefix), numbers, pa.scalar(""))


def _is_in(values: npt.NDArray[Any], sorted_values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    if not len(sorted_values):
        return np.zeros(len(values), dtype=np.bool_)
    places = np.searchsorted(sorted_values, values).clip(max=len(sorted_values) - 1)
    return np.asarray(sorted_values[places] == values)
