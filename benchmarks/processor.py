"""B5: CPU of all our processes together, over a run, against what encoding, putting and uploading take alone.

Driver (the producer), coordinator, writer and uploader are looked at from outside; Ray's own servers are not. Alone is:
`Format.encode` to a file with its fsync, `ray.put` of the batch, and the store's `put_file`, one after the other in one
process, uploads as many at a time as an uploader's. Both upload to one S3 server here, whose work is not counted.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from seaweedfs import SeaweedFS

from benchmarks.measuring import Figure
from benchmarks.memory import environment
from benchmarks.watching import job, look, step
from benchmarks.works import MiB, embeddings, fields
from ray_sink.checksum import checksum_of
from ray_sink.config import SaveFormat, UploadOptions
from ray_sink.formats import resolve
from ray_sink.records import FileRecord
from ray_sink.stores import open_store

if TYPE_CHECKING:
    from ray_sink.runtime.handle import SinkHandle

MOST: Final = 1.25
ROUNDS: Final = 5
FIELDS: Final = 4
VECTORS: Final = 1024
_BATCH: Final = 64
_OURS: Final = ("driver", "Coordinator", "Writer", "Uploader")
_BUCKET = "outputs"


def works() -> dict[str, list[torch.Tensor]]:
    """Batches by work; the first dimension runs over the outputs."""
    return {
        "W1": [field[None] for field in fields(FIELDS)],
        "W3": list(embeddings(VECTORS).split(_BATCH)),
    }


def run(root: Path) -> None:
    """The job: each work in turn through a sink, and then bare."""
    import ray

    from ray_sink import Sink

    ray.init(address="local", object_store_memory=1024 * MiB, include_dashboard=False, log_to_driver=False)
    batches = works()
    with (
        Sink(
            f"s3://{_BUCKET}/run", staging=f"{root}/staging", save_format=SaveFormat.NUMPY_NPY, ack="uploaded"
        ) as sink,
        sink.handle() as handle,
    ):
        for number in range(ROUNDS + 1):
            for work, values in batches.items():
                step("begin")
                through(handle, f"{work}/{number}", values)
                step("end")
                step("alone", json.dumps([number, work, alone(root, f"{work}/{number}", values)]))
    ray.shutdown()


def through(handle: SinkHandle, name: str, batches: Sequence[torch.Tensor]) -> None:
    tickets = []
    for number, batch in enumerate(batches):
        tickets += handle.write_batch([f"{name}/{number:03d}_{row:02d}" for row in range(len(batch))], batch)
    handle.flush()
    assert all(ticket.result().verification is not None for ticket in tickets)


def alone(root: Path, name: str, batches: Sequence[torch.Tensor]) -> dict[str, float]:
    """CPU seconds of each part, in this process, without a sink."""
    import ray

    format_ = resolve(SaveFormat.NUMPY_NPY)
    folder = root / "alone"
    folder.mkdir()
    names = [f"{number:03d}_{row:02d}" for number, batch in enumerate(batches) for row in range(len(batch))]
    values = [value for batch in batches for value in batch]

    def encode() -> None:
        for path, value in zip(names, values, strict=True):
            with open(folder / path, "wb") as file:
                format_.encode(value, file)
                file.flush()
                os.fsync(file.fileno())

    def put() -> None:
        for batch in batches:
            ray.put(batch.numpy())

    spent = {"encode": _cpu(encode), "put": _cpu(put)}
    records = [
        FileRecord(path, (folder / path).stat().st_size, checksum_of([(folder / path).read_bytes()])) for path in names
    ]
    store = open_store(f"s3://{_BUCKET}/alone/{name}", UploadOptions())
    store.probe()

    def put_one(record: FileRecord) -> None:
        store.put_file(folder / record.path, record, metadata={}, replace=False, on_multipart=lambda begun: None)

    def upload() -> None:
        with ThreadPoolExecutor(UploadOptions().concurrency) as pool:
            list(pool.map(put_one, records))

    spent["upload"] = _cpu(upload)
    store.close()
    shutil.rmtree(folder)
    return spent


def _cpu(work: Callable[[], None]) -> float:
    began_s = time.process_time()
    work()
    return time.process_time() - began_s


def answer() -> Iterator[Figure]:
    root = Path(tempfile.mkdtemp(prefix="rs-bench-"))
    (root / "staging").mkdir()
    try:
        with SeaweedFS() as server:
            server.create_bucket(_BUCKET)
            rounds = list(_rounds(root, environment(server, server.endpoint)))
            _verify(server)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    for work, outputs, unit in (("W1", FIELDS * 64 * MiB / 1e9, "GB"), ("W3", VECTORS, "output")):
        mine = [(ours, alone) for name, ours, alone in rounds if name == work]
        seconds = {role: median(ours[role] for ours, _ in mine) / outputs for role in _OURS}
        seconds |= {f"{part} alone": median(alone[part] for _, alone in mine) / outputs for part in mine[0][1]}
        ratio = median(sum(ours.values()) / sum(alone.values()) for ours, alone in mine)
        yield Figure("B5", f"{work}, npy: CPU a {unit}", ratio, "x its parts alone", most=MOST, seconds=seconds)


def _rounds(root: Path, variables: Mapping[str, str]) -> Iterator[tuple[str, dict[str, float], dict[str, float]]]:
    with job("benchmarks.processor", [str(root)], variables) as running:
        looks: dict[str, dict[str, float]] = {}
        for name, said in running.steps():
            looks[name] = _spent(running.pid)
            if name == "alone":
                number, work, alone = json.loads(said)
                if number:
                    yield work, {role: looks["end"][role] - looks["begin"][role] for role in _OURS}, alone


def _spent(pid: int) -> dict[str, float]:
    spent = dict.fromkeys(_OURS, 0.0)
    for found in look(pid).values():
        if found.role in spent:
            spent[found.role] += found.cpu_s
    return spent


def _verify(server: SeaweedFS) -> None:
    for work, batches in works().items():
        for number, batch in enumerate(batches):
            for row, value in enumerate(batch):
                name = f"run/{work}/{ROUNDS}/{number:03d}_{row:02d}.npy"
                found = server.client.get_object(Bucket=_BUCKET, Key=name)["Body"].read()
                assert np.array_equal(np.load(io.BytesIO(found)), value.numpy())


if __name__ == "__main__":
    run(Path(sys.argv[1]))
