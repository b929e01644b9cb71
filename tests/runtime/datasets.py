"""Models, and what the tests of Ray Data share. Models travel by value: workers do not import the tests."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import ray.data
from ray.data import Dataset

import ray_sink
from ray_sink import Limits, Sink

LIMITS = Limits(takeover_s=5.0, drain_s=20.0)


def cases(count: int, blocks: int = 4) -> Dataset:
    """Rows with an ``id``, read in `blocks` tasks."""
    return ray.data.range(count, override_num_blocks=blocks)


def open_sink(staging: Any, **arguments: Any) -> Sink:
    return Sink(None, staging=staging, **{"limits": LIMITS, **arguments})


def doubling() -> type:
    """A model that adds ``p``, a 2x3 tensor of twice the id."""

    class Doubling:
        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            batch["p"] = np.ones((len(batch["id"]), 2, 3), np.float32) * 2 * batch["id"][:, None, None]
            return batch

    return Doubling


def check_doubled(sink: Sink, ids: range, key: str = "case/{id:04d}") -> None:
    """Every id has its output, and nothing else has one."""
    manifest: ray_sink.Manifest = sink.manifest
    assert sorted(manifest) == sorted(key.format(id=i) for i in ids)
    for i in ids:
        value: Any = manifest.load(key.format(id=i))
        assert tuple(value.shape) == (2, 3)
        assert (value == 2 * i).all()


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """The result or error of a call that must not hang."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(call())
        except BaseException as error:  # noqa: BLE001 -- handed to the caller
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert outcome, f"hung for {seconds} s"
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]
