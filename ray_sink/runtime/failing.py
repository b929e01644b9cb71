"""The sink's own errors on their way out of Ray Data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from ray.data import DataContext

from ray_sink.errors import DuplicateKeyError, OutputsFailed, SinkError
from ray_sink.records import Receipt
from ray_sink.runtime.ticket import Outcome, Ticket


@contextmanager
def unwrapped() -> Iterator[None]:
    """Have a `SinkError` that is raised inside reach the driver as itself.

    Ray Data wraps what a function raises, and pickles the wrapping without its cause. The option that says otherwise is
    set in this process's copy, for an execution that has failed.
    """
    try:
        yield
    except SinkError:
        DataContext.get_current().raise_original_map_exception = True
        raise


def own_error(error: BaseException) -> BaseException:
    """The `SinkError` that an execution failed with, if it is one, else `error`."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, SinkError) else error


def failures_of(tickets: Sequence[Ticket], outcomes: Sequence[Outcome]) -> dict[str, Exception]:
    """What went wrong, by key."""
    return {
        ticket.key: outcome
        for ticket, outcome in zip(tickets, outcomes, strict=True)
        if not isinstance(outcome, Receipt)
    }


def one_error(failures: Mapping[str, Exception]) -> Exception:
    """One error that names every key that has no receipt."""
    key, first = next(iter(failures.items()))
    if len(failures) == 1 and isinstance(first, SinkError) and key in str(first):
        return first
    one: SinkError = OutputsFailed.of({key: str(error) for key, error in failures.items()})
    if all(isinstance(error, DuplicateKeyError) for error in failures.values()):
        one = DuplicateKeyError("; ".join(str(error) for error in failures.values()), keys=list(failures))
    one.__cause__ = first
    return one
