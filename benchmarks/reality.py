"""The real pipeline at full speed, as the model is held against it: one producer, and a folder in memory as its end."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from statistics import median
from typing import Final

import ray
import torch

from benchmarks.plant import Plant
from benchmarks.watching import look
from ray_sink import Limits, SaveFormat, Sink, WriterOptions
from ray_sink.runtime.handle import SinkHandle

_ROUNDS: Final = 3
_STORE_BYTES: Final = 1024 * 2**20
_DEADLINE_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class Took:
    """Seconds until all was acknowledged, until all was uploaded, and of CPU until then, Ray's own processes' too."""

    staged_s: float
    uploaded_s: float
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Work:
    """So many batches of outputs of one size."""

    name: str
    output_bytes: int
    batch: int
    batches: int


def at_full_speed(work: Work, writers: int) -> Plant:
    """The model's like: a producer that computes nothing, everything on this machine."""
    return Plant(
        gpus=1,
        gpus_per_node=1,
        gpu_bytes_s=1e15,
        output_bytes=work.output_bytes,
        batch=work.batch,
        cores=len(os.sched_getaffinity(0)),
        writers=writers,
        object_store_bytes=_STORE_BYTES / 2,
        store_latency_s=0.0,
        one_node=True,
    )


def through(writers: int, works: Sequence[Work]) -> dict[str, Took]:
    """Medians for each work."""
    ray.init(
        address="local",
        num_cpus=4 + writers,
        object_store_memory=_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
    )
    took: dict[str, list[Took]] = {work.name: [] for work in works}
    try:
        for number in range(_ROUNDS + 1):
            for work in works:
                once = _once(writers, work)
                if number:
                    took[work.name].append(once)
    finally:
        ray.shutdown()
    return {
        name: Took(*(median(getattr(one, field.name) for one in times) for field in fields(Took)))
        for name, times in took.items()
    }


def _once(writers: int, work: Work) -> Took:
    batch = torch.randn(work.batch, work.output_bytes // 4)
    with (
        tempfile.TemporaryDirectory(prefix="rs-bench-") as staging,
        tempfile.TemporaryDirectory(prefix="rs-bench-", dir="/dev/shm") as dest,
        Sink(
            f"{dest}/run",
            staging=staging,
            save_format=SaveFormat.NUMPY_NPY,
            writers=WriterOptions(per_node=writers, temp_dir=staging),
            limits=Limits(object_store_bytes=_STORE_BYTES // 2),
        ) as sink,
        sink.handle() as handle,
    ):
        warm = 4 * writers
        for number in range(warm):  # until each writer is there and has had something
            _write(handle, batch, "warm", number, work.batch)
        handle.flush()
        _until_uploaded(sink, warm * work.batch)
        began_cpu_s = _cpu_s()
        began_s = time.perf_counter()
        for number in range(work.batches):
            _write(handle, batch, "timed", number, work.batch)
        handle.flush()
        staged_s = time.perf_counter() - began_s
        _until_uploaded(sink, (warm + work.batches) * work.batch)
        uploaded_s = time.perf_counter() - began_s
        cpu_s = _cpu_s() - began_cpu_s
    for number in range(0, work.batches, max(1, work.batches // 8)):
        found = sink.manifest  # sealed: every output is there; some are looked at
        assert found.receipt(f"timed/{number:04d}_00").files[0].bytes > work.output_bytes
    return Took(staged_s, uploaded_s, cpu_s)


def _cpu_s() -> float:
    return sum(found.cpu_s for found in look(os.getpid()).values())


def _write(handle: SinkHandle, batch: torch.Tensor, name: str, number: int, count: int) -> None:
    handle.write_batch([f"{name}/{number:04d}_{row:02d}" for row in range(count)], batch)


def _until_uploaded(sink: Sink, outputs: int) -> None:
    end_s = time.monotonic() + _DEADLINE_S
    while sink.status().uploaded < outputs:
        assert time.monotonic() < end_s
        time.sleep(0.01)
