"""B6: end to end, a model in Ray Data with its outputs in a real S3 server, against what users do today.

The clock runs from the model's first call until every output is in the bucket, and with us until the run is sealed;
what Ray takes to start actors is not in it, for anybody. One actor computes for 50 ms a batch; the server is
SeaweedFS in memory, each run has a bucket of its own; staging, and the folder that rclone copies, are on the machine's
disk. We fsync, the others do not.

After each run every object is counted. Where there is a file for each output all names and sizes are looked at and
eight files, spread over the run, are read back and compared whole; of tables every row is.
"""

from __future__ import annotations

import io
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import boto3
import numpy as np
import pyarrow.parquet
import ray
import torch
from botocore.config import Config
from seaweedfs import SeaweedFS

from benchmarks.baselines import BASELINES, Arrays, Job, Model, arrow, key_of
from benchmarks.endpoints import Endpoint, EndpointMissingError, bucket_of, weed
from benchmarks.measuring import ROUNDS, Figure, medians
from ray_sink import Sink

_READ_BACK: Final = 8
_COMPUTE_S: Final = 0.05
# outputs and batch of each work: so many that it is the outputs that count, and not how a job begins and ends
_SIZES: Final = {"W1": (8, 1), "W2": (384, 8), "W3": (4096, 64), "W4": (48, 2)}
# a packed row costs less than a file, until we pack
_NO_BAR: Final = {("W3", "c write_numpy"), ("W3", "d write_parquet")}
# different shapes in one .npy are pickled
_IMPOSSIBLE: Final = {("W4", "c write_numpy")}


def answer(rounds: int = ROUNDS) -> Iterator[Figure]:
    try:
        with weed() as server, bucket_of(server) as any_bucket, patch.dict(os.environ, any_bucket.environment()):
            ray.init(
                address="local",
                num_cpus=4,
                object_store_memory=2**30,
                include_dashboard=False,
                log_to_driver=False,
            )
            ray.data.DataContext.get_current().enable_progress_bars = False
            try:
                for work in _SIZES:
                    yield from _measured(work, server, rounds)
            finally:
                ray.shutdown()
    except EndpointMissingError as error:
        yield Figure("B6", "not measured", float("nan"), "", note=str(error))


def _measured(work: str, server: SeaweedFS, rounds: int) -> Iterator[Figure]:
    count, batch = _SIZES[work]
    others = {name: way for name, way in BASELINES.items() if (work, name) not in _IMPOSSIBLE}
    ways: dict[str, Callable[[Job, Endpoint, str], None]] = {"ours": ours, **others}
    with tempfile.TemporaryDirectory(prefix="rs-bench-") as folder:

        def once(name: str) -> float:
            prefix = uuid.uuid4().hex
            job = Job(work, count, batch, _COMPUTE_S, Path(folder) / prefix)
            with bucket_of(server) as endpoint:
                ways[name](job, endpoint, prefix)
                took_s = time.time() - float(job.mark.read_text())
                _verify(name, job, endpoint, prefix)
            return took_s

        # the clock leaves out what starts: there is little to warm up, and much to wait for
        seconds = medians({name: partial(once, name) for name in ways}, rounds=rounds, warm_up=False)
    for name in others:
        bar = None if (work, name) in _NO_BAR else 1.0
        yield Figure(
            "B6", f"{work}, {count} outputs", seconds[name] / seconds["ours"], f"x {name}", least=bar, seconds=seconds
        )


def ours(job: Job, endpoint: Endpoint, prefix: str) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="rs-bench-") as staging,
        Sink(f"s3://{endpoint.bucket}/{prefix}", staging=staging) as sink,
    ):
        sink.run(
            job.dataset(),
            Model,
            key="key",
            columns=list(job.output(0)) if job.work == "W2" else "p",
            batch_size=job.batch,
            concurrency=1,
            fn_constructor_args=(job,),
        )
        sink.close()


def _verify(name: str, job: Job, endpoint: Endpoint, prefix: str) -> None:
    client: Any = boto3.client(
        "s3",
        endpoint_url=endpoint.url,
        # by name: boto3 keeps the first keys that this process ever found, another server's perhaps
        aws_access_key_id=endpoint.access_key,
        aws_secret_access_key=endpoint.secret_key,
        config=Config(s3={"addressing_style": "path"}),
    )
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=endpoint.bucket, Prefix=f"{prefix}/")
    sizes = {
        item["Key"].removeprefix(f"{prefix}/"): item["Size"] for page in pages for item in page.get("Contents", ())
    }

    def read(path: str) -> bytes:
        data: bytes = client.get_object(Bucket=endpoint.bucket, Key=f"{prefix}/{path}")["Body"].read()
        return data

    if name == "c write_numpy":
        # Arrow puts an empty object for the folder
        rows = [row for path in sizes if path for row in np.load(io.BytesIO(read(path)), allow_pickle=False)]
        _same_rows(job, [dict(zip(job.output(0), row, strict=True)) for row in rows])
    elif name == "d write_parquet":
        table = pyarrow.parquet.read_table(f"{endpoint.bucket}/{prefix}", filesystem=arrow(endpoint))
        columns = {column: _arrays(table.column(column)) for column in job.output(0)}
        _same_rows(job, [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])
    else:
        outputs = {path: size for path, size in sizes.items() if not path.startswith("_ray_sink/")}
        sizes_of = _sizes(job.work, job.count)
        expected = {f"{key_of(number)}.pt": number for number in range(job.count)}
        assert outputs.keys() == expected.keys(), f"{name}: {len(outputs)} of {len(expected)} outputs are there"
        for path, number in expected.items():
            assert outputs[path] > sizes_of[number]
        for number in range(0, job.count, max(1, job.count // _READ_BACK)):
            found = torch.load(io.BytesIO(read(f"{key_of(number)}.pt")), weights_only=True)
            tensors = found if isinstance(found, dict) else {"p": found}
            _same(job.output(number), {column: tensor.numpy() for column, tensor in tensors.items()})


@cache
def _sizes(work: str, count: int) -> list[int]:
    """Bytes of each output of a work."""
    outputs = (Job(work, count, 1, 0, Path()).output(number) for number in range(count))
    return [sum(array.nbytes for array in output.values()) for output in outputs]


def _arrays(column: Any) -> list[np.ndarray[Any, Any]]:
    return [array for chunk in column.chunks for array in chunk.to_numpy(zero_copy_only=False)]


def _same_rows(job: Job, rows: list[Arrays]) -> None:
    assert len(rows) == job.count
    numbers = set()
    for row in rows:
        number = int(next(iter(row.values())).reshape(-1).view(np.uint8)[:4].view("<i4")[0])
        numbers.add(number)
        _same(job.output(number), row)
    assert len(numbers) == job.count


def _same(expected: Arrays, found: Arrays) -> None:
    assert expected.keys() == found.keys()
    for name, array in expected.items():
        assert found[name].tobytes() == array.tobytes(), name
