"""B2: how long `write_batch` holds the producer, against one memcpy of the batch into warm shared memory.

The object store's pages are touched first: shared memory that nobody has used yet costs many times a memcpy, once.
Between two calls the batch before is waited for, so that what is measured is no queue. Small outputs are written one
call after the other as well: a producer that does nothing else is held up at the writer's pace, which is told beside it
and has no bar here.
"""

from __future__ import annotations

import mmap
import shutil
import tempfile
import time
from collections.abc import Iterator

import numpy as np
import ray
import torch

from benchmarks.measuring import Figure, medians
from benchmarks.works import MiB, embeddings, fields
from ray_sink import SaveFormat, Sink
from ray_sink.runtime.handle import SinkHandle

_STORE_BYTES = 640 * MiB
_BATCH = 64
_CALLS = 200


def answer() -> Iterator[Figure]:
    ray.init(
        address="local",
        num_cpus=4,
        object_store_memory=_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
    )
    folder = tempfile.mkdtemp(prefix="rs-bench-", dir="/dev/shm")  # a staging folder that is not what is measured
    try:
        with Sink(None, staging=folder, save_format=SaveFormat.NUMPY_NPY) as sink, sink.handle() as handle:
            yield _large(handle, next(fields(1)))
            yield from _small(handle)
        assert len(sink.manifest) == sink.manifest.seal.outputs
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _large(handle: SinkHandle, tensor: torch.Tensor) -> Figure:
    source = tensor.numpy()
    shared = np.frombuffer(mmap.mmap(-1, source.nbytes), source.dtype).reshape(source.shape)
    numbers = iter(range(10**6))

    def memcpy() -> float:
        began_s = time.perf_counter()
        np.copyto(shared, source)
        return time.perf_counter() - began_s

    def write() -> float:
        key = f"large/{next(numbers)}"
        began_s = time.perf_counter()
        tickets = handle.write_batch([key], [tensor])
        took_s = time.perf_counter() - began_s
        for ticket in tickets:
            ticket.result(60)
        return took_s

    for _ in range(2 * _STORE_BYTES // source.nbytes):
        write()  # every page of the store is touched
    seconds = medians({"memcpy": memcpy, "write_batch": write}, rounds=9)
    ratio = seconds["write_batch"] / seconds["memcpy"]
    return Figure("B2", "W1, a call with one output", ratio, "x memcpy", most=1.3, seconds=seconds)


def _small(handle: SinkHandle) -> Iterator[Figure]:
    vectors = embeddings(_BATCH)
    numbers = iter(range(10**6))
    for case, wait in (("each waited for", True), ("one after the other", False)):
        tickets = []
        took_s = []
        first_s = time.perf_counter()
        for _ in range(_CALLS):
            keys = [f"small/{next(numbers)}" for _ in range(_BATCH)]
            began_s = time.perf_counter()
            tickets += handle.write_batch(keys, vectors)
            took_s.append(time.perf_counter() - began_s)
            if wait:
                tickets[-1].result(60)
        for ticket in tickets:
            ticket.result(120)
        all_s = time.perf_counter() - first_s
        took_s.sort()
        slow_ms, rate = 1e3 * took_s[len(took_s) * 95 // 100], _CALLS * _BATCH / all_s
        yield Figure(
            "B2",
            f"W3, a call with {_BATCH} outputs, {case}",
            1e3 * took_s[len(took_s) // 2],
            "ms",
            most=2.0 if wait else None,
            note=f"95 % within {slow_ms:.2g} ms; {rate:.0f} outputs a second",
        )
