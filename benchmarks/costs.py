"""What each step of the pipeline costs alone, for an output and for a byte."""

from __future__ import annotations

import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final
from unittest.mock import patch

import numpy as np
import ray
import torch

from benchmarks.journals import info_of, staging_of
from benchmarks.plant import Cost, Costs
from benchmarks.writer import Landing, plain
from ray_sink.checksum import checksum_of
from ray_sink.config import SaveFormat, UploadOptions
from ray_sink.ledger import Ledger, LedgerOptions
from ray_sink.records import FileRecord, Proposal, TempFile, UploadOutcome, Verification
from ray_sink.stores import open_store

SMALL_BYTES: Final = 4096
LARGE_BYTES: Final = 16 * 2**20
SMALL: Final = 64
LARGE: Final = 4
_CALLS: Final = 7  # write, reserve, decide, published, batch_done, take_uploads, uploaded
_ROUNDS: Final = 7
_SHM: Final = "/dev/shm"


def measured(root: Path) -> tuple[Costs, Costs]:
    """Costs on this machine: where the destination is a folder in memory, and where it is an S3 server."""
    small = [torch.randn(SMALL_BYTES // 4) for _ in range(SMALL)]
    large = [torch.randn(LARGE_BYTES // 4) for _ in range(LARGE)]
    with tempfile.TemporaryDirectory(prefix="rs-bench-", dir=_SHM) as memory:
        put, call_s = _through_ray(small, large)
        encode = _encode(root, small, large)
        stage = _stage(root, small, large)
        to_folder = _upload(Path(memory), f"file://{memory}/dest", UploadOptions())
        to_s3 = _upload_to_s3(Path(memory))
    batch_s, item_s, sync_s = _ledger(root)
    messages_s = _CALLS * call_s
    here = Costs(put, encode, stage, to_folder, messages_s, batch_s, item_s, sync_s)
    # on a cluster half of each message is the ledger's own work
    there = Costs(put, encode, stage, to_s3, messages_s / 2, batch_s + messages_s / 2, item_s, sync_s)
    return here, there


def read(path: Path) -> Costs:
    """Costs from `benchmarks.json`: what B5 saw of each process, and the waiting of B1's plain writes."""
    figures = json.loads(path.read_text())["figures"]

    def seconds(question: str, case: str) -> dict[str, float]:
        found: list[dict[str, float]] = [
            figure["seconds"]
            for figure in figures
            if figure["question"] == question and figure["case"].startswith(case)
        ]
        if not found:
            raise SystemExit(f"{path} has no {question} ({case}): run `make bench` first, or leave --costs out")
        return found[0]

    by_gb, by_item = seconds("B5", "W1"), seconds("B5", "W3")
    plain_large_s = seconds("B1", "W1 numpy_npy to disk")["plain"]
    plain_small_s = seconds("B1", "W3 numpy_npy to disk")["plain"] / 256

    def cost(role: str) -> Cost:
        return Cost(by_item[role], by_gb[role] / 1e9)

    return Costs(
        put=cost("driver"),
        encode=cost("Writer"),
        stage=Cost(plain_small_s, plain_large_s / (64 * 2**20)),
        upload=cost("Uploader"),
        batch_s=0.0,
        ledger_batch_s=0.0,
        ledger_item_s=by_item["Coordinator"],
        sync_s=plain_small_s,
    )


def _fit(small_s: float, large_s: float) -> Cost:
    """From seconds for one small and for one large output."""
    byte_s = max(0.0, large_s - small_s) / (LARGE_BYTES - SMALL_BYTES)
    return Cost(max(0.0, small_s - SMALL_BYTES * byte_s), byte_s)


def _median(work: Callable[[], float]) -> float:
    work()
    return median(work() for _ in range(_ROUNDS))


def _cpu(work: Callable[[], Any]) -> float:
    began_s = time.process_time()
    work()
    return time.process_time() - began_s


class _Echo:
    def echo(self, value: int) -> int:
        return value


def _through_ray(small: Sequence[torch.Tensor], large: Sequence[torch.Tensor]) -> tuple[Cost, float]:
    """What puts a batch into the object store, and one call of an actor, both ends together."""
    ray.init(address="local", num_cpus=4, object_store_memory=2**30, include_dashboard=False, log_to_driver=False)

    try:
        whole, one = torch.stack(list(small)).numpy(), large[0].numpy()

        def put(array: np.ndarray[Any, Any]) -> float:
            began_s = time.perf_counter()
            ref = ray.put(array)
            took_s = time.perf_counter() - began_s
            del ref
            return took_s

        for _ in range(2**30 // one.nbytes):
            put(one)  # every page is touched
        fitted = _fit(_median(lambda: put(whole)) / SMALL, _median(lambda: put(one)))
        actor: Any = ray.remote(_Echo)
        echo = actor.options(num_cpus=0).remote()

        def calls() -> float:
            began_s = time.perf_counter()
            for number in range(100):
                ray.get(echo.echo.remote(number))
            return (time.perf_counter() - began_s) / 100

        return fitted, _median(calls)
    finally:
        ray.shutdown()


def _encode(root: Path, small: Sequence[torch.Tensor], large: Sequence[torch.Tensor]) -> Cost:
    """CPU of a writer, the kernel's for its syncs with it: on some filesystems that is most of it."""
    landing = Landing(root / "encode", SaveFormat.NUMPY_NPY, root)

    def write(values: Sequence[torch.Tensor]) -> float:
        landed = []
        took_s = _cpu(lambda: landed.extend(landing.write(values)))
        landing.clear(landed)
        return took_s / len(values)

    fitted = _fit(_median(lambda: write(small)), _median(lambda: write(large)))
    landing.writer.close()
    return fitted


def _stage(root: Path, small: Sequence[torch.Tensor], large: Sequence[torch.Tensor]) -> Cost:
    """What the staging filesystem lets a plain write, sync and rename wait."""

    def write(values: Sequence[torch.Tensor]) -> float:
        contents = [value.numpy().data.cast("B") for value in values]
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        plain(root, contents)
        waited_s = time.perf_counter() - began_s - (time.process_time() - began_cpu_s)
        return max(0.0, waited_s) / len(values)

    return _fit(_median(lambda: write(small)), _median(lambda: write(large)))


def _upload(memory: Path, url: str, options: UploadOptions) -> Cost:
    """CPU of a store's puts, one after the other."""
    store = open_store(url, options)
    store.probe()
    numbers = iter(range(10**6))

    def put(n_bytes: int, count: int) -> float:
        names = [f"upload-{next(numbers)}" for _ in range(count)]
        data = random.Random(0).randbytes(n_bytes)
        records = [FileRecord(name, n_bytes, checksum_of([data])) for name in names]
        for name in names:
            (memory / name).write_bytes(data)

        def all_of_them() -> None:
            for record in records:
                store.put_file(
                    memory / record.path, record, metadata={}, replace=False, on_multipart=lambda begun: None
                )

        took_s = _cpu(all_of_them)
        for name in names:
            (memory / name).unlink()
            store.delete(name)
        return took_s / count

    fitted = _fit(_median(lambda: put(SMALL_BYTES, SMALL)), _median(lambda: put(LARGE_BYTES, LARGE)))
    store.close()
    return fitted


def _upload_to_s3(memory: Path) -> Cost:
    from benchmarks.endpoints import bucket_of, weed  # the demo's starter is not everywhere, and `read` needs none

    with weed() as server, bucket_of(server) as endpoint, patch.dict(os.environ, endpoint.environment()):
        return _upload(memory, f"s3://{endpoint.bucket}/costs", UploadOptions())


def _ledger(root: Path) -> tuple[float, float, float]:
    """CPU for a batch and for each of its outputs, and what one sync of the journal waits."""
    (root / "staging").mkdir()
    chance = random.Random(0)
    ledger = Ledger.open(staging_of(root), info_of(root), 1, LedgerOptions())
    numbers = iter(range(10**7))
    waits: list[float] = []

    def batches(outputs: int) -> float:
        began_s = time.process_time()
        for _ in range(20):
            proposals = [_proposal(ledger.term, next(numbers), chance) for _ in range(outputs)]
            decided_s, decided_cpu_s = time.perf_counter(), time.process_time()
            winners = [decision.winner for decision in ledger.decide(proposals)]
            waits.append(time.perf_counter() - decided_s - (time.process_time() - decided_cpu_s))
            ledger.published([(winner.key, winner.attempt) for winner in winners if winner is not None])
            tasks = ledger.take_uploads(0, max_outputs=outputs, max_bytes=2**40)
            ledger.uploaded([UploadOutcome(task.key, task.attempt, Verification.VERIFIED) for task in tasks])
        return (time.process_time() - began_s) / 20

    one_s, many_s = _median(lambda: batches(1)), _median(lambda: batches(SMALL))
    ledger.close()
    item_s = max(0.0, many_s - one_s) / (SMALL - 1)
    return max(0.0, one_s - item_s), item_s, max(0.0, median(waits))


def _proposal(term: str, number: int, chance: random.Random) -> Proposal:
    key, attempt = f"runs/{number:08d}", f"{chance.getrandbits(128):032x}"
    file = FileRecord(f"{key}.npy", SMALL_BYTES, f"crc64nvme:{chance.getrandbits(64):016x}")
    return Proposal(key, attempt, (TempFile(f"{term}/{attempt}.0", file),), None)
