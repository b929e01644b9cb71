"""Whether a dataset ran to its end, as Ray Data's executor knows it.

Counting rows cannot tell: a dataset that was cut short, and one whose blocks were dropped, has fewer rows everywhere.
So each execution is watched from inside. What is looked at there is not public; where it is missing, in a later Ray, an
execution counts as incomplete, with that as its reason.

Ray Data takes the callbacks from the context of the dataset that is executed. `other.union(ours)` is executed under the
other's, and so is not seen: the dataset stays open, which `close()` reports. A callback for all executions can be named
in an environment variable only, for this process and its children: too wide for one sink.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import weakref
from collections.abc import Callable
from typing import Any, ClassVar

from ray.data import Dataset
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.exceptions import RayError

from ray_sink.records import RowCounts
from ray_sink.runtime.calls import result

_log = logging.getLogger("ray_sink")

_CUT_SHORT = "was cut short (by take(), limit(), schema() or an iterator that was dropped): run it to its end"


class WatchedDataset:
    """A dataset that runs through the sink, however often it is executed. Once complete it stays so.

    Making one writes it down as open: the run cannot be sealed until it has come to its end.

    Attributes:
        dataset_id: its name in the ledger, and in that of the operator that writes to the sink.
    """

    def __init__(self, coordinator: Any, dataset_id: str) -> None:
        self.dataset_id = dataset_id
        self._coordinator = coordinator
        self._complete = False
        result(coordinator.dataset_opened.remote(dataset_id))

    def ended(self, rows: RowCounts, reason: str | None) -> None:
        """An execution has ended; `rows` is what was not reported yet, `reason` says why it was not complete."""
        if self._complete:
            return
        try:
            result(self._coordinator.rows_ended.remote(self.dataset_id, rows))
            result(self._coordinator.dataset_closed.remote(self.dataset_id, reason is None, reason))
        except RayError:
            # the run has ended, and the dataset is written down as open: that is what close() says, or has said
            _log.warning("dataset.end_unreported", extra={"dataset": self.dataset_id}, exc_info=True)
            return
        self._complete = reason is None


class Watch(ExecutionCallback):
    """Watches one execution; Ray Data makes an instance for each.

    The operator ended by itself if it had all of its input and no task left. Ray Data ends it early, through
    ``mark_execution_finished``, when all that comes after it has enough.
    """

    dataset: ClassVar[WatchedDataset]

    def __init__(self) -> None:
        self._operator: Any = None
        self._ended_by_itself = False
        self._unknown: str | None = None
        self._actors: weakref.WeakSet[Any] = weakref.WeakSet()

    def before_execution_starts(self, executor: Any) -> None:
        """Find the operator; a dataset made before or beside ours has none."""
        try:
            found = [operator for operator in executor._topology if self.dataset.dataset_id in operator.name]
            if not found:
                return
            self._operator = found[-1]
            # an earlier dataset in a cycle of references still has its actors, and with them the CPUs
            gc.collect()
            self._observe_ending(self._operator)
        except AttributeError as error:
            self._unknown = str(error)

    def _observe_ending(self, operator: Any) -> None:
        mark: Callable[[], None] = operator.mark_execution_finished

        def observed() -> None:
            self._look(operator)
            mark()

        operator.mark_execution_finished = observed

    def _look(self, operator: Any) -> None:
        if not operator._is_execution_marked_finished:
            self._ended_by_itself = self._ended_by_itself or operator.has_execution_finished()

    def on_execution_step(self, executor: Any) -> None:
        """An operator that nothing follows is not marked."""
        self._remember_actors(executor)
        if self._operator is None or self._ended_by_itself or self._unknown:
            return
        try:
            before = self._ended_by_itself
            self._look(self._operator)
            if executor._shutdown:  # it may have been emptied while we looked
                self._ended_by_itself = before
        except AttributeError as error:
            self._unknown = str(error)

    def _remember_actors(self, executor: Any) -> None:
        """All actors of the execution, for its failure.

        Ray Data lets go of them then, but the failed tasks hold them in their tracebacks: their GPUs and CPUs would be
        taken until the garbage collector comes by, or as long as somebody has the exception, and the next dataset would
        wait for them for ever.
        """
        if self._operator is None:
            return
        with contextlib.suppress(AttributeError):
            for operator in executor._topology:
                pool = getattr(operator, "_actor_pool", None)
                if pool is not None:
                    self._actors.update([*pool._running_actors, *pool._pending_actors.values()])

    def after_execution_succeeds(self, executor: Any) -> None:
        """Also called when an iterator was dropped half way."""
        self._report(executor, None if self._ended_by_itself else _CUT_SHORT)

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        """A failure after the sink's operator has ended leaves nothing undone. The actors are told to end."""
        self._report(executor, None if self._ended_by_itself else f"failed: {gist(error)}")
        for actor in list(self._actors):
            actor.__ray_terminate__.options(max_task_retries=0).remote()  # dead already is as good

    def _report(self, executor: Any, reason: str | None) -> None:
        if self._operator is None and self._unknown is None:
            return
        try:
            rows_out = self._operator.metrics.row_outputs_taken if self._operator is not None else 0
        except AttributeError as error:
            self._unknown, rows_out = str(error), 0
        lost = _untold(self._unknown) if self._unknown is not None else lost_blocks(executor)
        self.dataset.ended(RowCounts(0, rows_out, 0), lost or reason)


def lost_blocks(executor: Any) -> str | None:
    """Why an execution is incomplete that Ray Data calls a success: blocks were dropped."""
    try:
        dropped = executor._num_errored_blocks
    except AttributeError as error:
        return _untold(str(error))
    return f"lost {dropped} block(s), which Ray Data dropped (DataContext.max_errored_blocks)" if dropped else None


def _untold(what: str) -> str:
    return f"ended, and this version of Ray does not tell whether all of it ran ({what})"


def gist(error: Exception) -> str:
    """One line: the last of the first traceback that Ray has put into the text, before what Ray adds to it."""
    began = str(error).partition("\n\nThe above exception was")[0].partition("\nFailed to apply UDF transform")[0]
    return (began.strip().splitlines() or [type(error).__name__])[-1][:300]


def watch(ds: Dataset, dataset: WatchedDataset) -> Dataset:
    """The same dataset, with every execution of it and of what is made of it being watched."""
    # the context is shared with the dataset that this one was made of, perhaps with all datasets of the driver
    watched: Dataset = Dataset.copy(ds, _deep_copy=True)
    watched.context.custom_execution_callback_classes.append(type("Watch", (Watch,), {"dataset": dataset}))
    return watched


def unwatch(ds: Dataset, dataset: WatchedDataset) -> None:
    """Stop watching a dataset that has a context of its own, and what is made of it."""
    classes = ds.context.custom_execution_callback_classes
    classes[:] = [cls for cls in classes if getattr(cls, "dataset", None) is not dataset]
