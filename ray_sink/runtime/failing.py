"""The sink's own errors on their way out of Ray Data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ray.data import DataContext

from ray_sink.errors import SinkError


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
