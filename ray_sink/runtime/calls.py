"""Waiting for an actor's answer, with the actor's own errors."""

from __future__ import annotations

from typing import Any

import ray
from ray.exceptions import RayTaskError

from ray_sink.errors import SinkError


def result(ref: Any, *, timeout_s: float | None = None) -> Any:
    """The value behind an ObjectRef.

    Raises:
        SinkError: as the actor raised it, not wrapped in Ray's.
        ray.exceptions.RayError: what Ray has to say.
    """
    try:
        return ray.get(ref, timeout=timeout_s)
    except RayTaskError as error:
        raise own_error(error) from None


def own_error(error: BaseException) -> BaseException:
    """The `SinkError` inside Ray's wrapping, if there is one, else `error`."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, SinkError):
        return error.cause
    return error
