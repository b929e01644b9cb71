"""A cluster that a command looks into for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import ray

from ray_sink.errors import ConfigError


@contextmanager
def joined(address: str) -> Iterator[None]:
    """Be a driver of the cluster at `address`; one that this process has joined already is used and stays.

    Raises:
        ConfigError: there is no cluster.
    """
    joins = not ray.is_initialized()
    if joins:
        try:
            ray.init(address, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConfigError(f"no Ray cluster can be joined at {address!r}: {error}") from error
    try:
        yield
    finally:
        if joins:
            ray.shutdown()
