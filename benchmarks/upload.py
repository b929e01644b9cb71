"""B4: staged files to objects on an endpoint that keeps nothing, against the engine alone and the usual clients.

The files lie in memory, as fresh ones do in the page cache. The engine alone is a pool of as many threads as the
uploader has, each reading a file and putting it: it compares no checksum with a receipt, makes no metadata and never
looks. The endpoint's log shows afterwards that every object came whole; it keeps and checks nothing, so that the
uploader is told what S3 itself would show it: that create-only puts and checksums are honoured.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final
from unittest.mock import patch

import boto3
import s3fs
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from obstore.store import S3Store

from benchmarks.endpoints import BUCKET, MEMORY, Endpoint, EndpointMissingError, Instant, instant
from benchmarks.measuring import Figure, medians
from ray_sink.checksum import checksum_of
from ray_sink.config import UploadOptions
from ray_sink.records import FileRecord, UploadOutcome, UploadTask, Verification
from ray_sink.stores import Capabilities, Store, s3_settings
from ray_sink.stores.multipart import MultipartPut
from ray_sink.stores.object_store import Findings, ObjectStore
from ray_sink.stores.obstore_objects import ObstoreObjects, S3Clients
from ray_sink.stores.s3_objects import S3Objects
from ray_sink.uploader import Uploader

MiB: Final = 2**20
_THREADS: Final = UploadOptions().concurrency
_HEADERS_BYTES: Final = 4096  # a request has no more of them
_PROMISED: Final = Findings(
    Capabilities(create_only=True, verification=Verification.VERIFIED, metadata=True, multipart=True),
    send_checksum=True,
    multipart_create_only=True,
    multipart_verified=True,
)

Way = Callable[[Sequence[FileRecord]], None]


@dataclass(frozen=True, slots=True)
class Case:
    """So many files of one size.

    Attributes:
        name: for the table.
        count: files for us and the engine.
        few: files for the slow clients and for us beside them.
        bytes: of each file.
        of_engine: the bar against the engine alone.
        of_s3fs: the bar against s3fs.
    """

    name: str
    count: int
    few: int
    bytes: int
    of_engine: float
    of_s3fs: float


CASES: Final = (
    Case("16 KiB", 2000, 400, 16 * 2**10, 0.8, 6),
    Case("1 MiB", 400, 100, MiB, 0.95, 3),
    Case("128 MiB", 6, 3, 128 * MiB, 0.95, 3),
)


def answer() -> Iterator[Figure]:
    try:
        with instant() as server, patch.dict(os.environ, server.endpoint.environment()):
            for case in CASES:
                yield from _measured(case, server)
    except EndpointMissingError as error:
        yield Figure("B4", "not measured", float("nan"), "", note=str(error))


def _measured(case: Case, server: Instant) -> Iterator[Figure]:
    root = Path(tempfile.mkdtemp(prefix="rs-bench-", dir=MEMORY))
    made = ExitStack()
    try:
        files = [_staged(root, f"{number:05}.npy", case.bytes) for number in range(case.count)]
        options = UploadOptions(storage_options={"endpoint_url": server.endpoint.url})
        # clients live as long as a run: what it takes to make one is not a file's
        ways: dict[str, Way] = {
            "ours": partial(ours, root, options, made.enter_context(closing(_store(options)))),
            "engine": partial(engine, root, _client(server)),
        }
        seconds, cpu = _seconds(ways, files, server)
        yield Figure(
            "B4",
            f"{case.count} x {case.name}",
            seconds["engine"] / seconds["ours"],
            "x engine",
            least=case.of_engine,
            seconds=seconds,
            note=f"{case.count * case.bytes / seconds['ours'] / 1e6:.0f} MB/s, {case.count / seconds['ours']:.0f}/s",
        )
        yield Figure(
            "B4", f"{case.count} x {case.name}, CPU of the client", cpu["ours"] / cpu["engine"], "x engine", seconds=cpu
        )
        few = files[: case.few]
        ways = {
            "ours": ways["ours"],
            "s3fs": partial(with_s3fs, root, server.endpoint),
            "boto3": partial(with_boto3, root, server.endpoint),
        }
        seconds, _ = _seconds(ways, few, server)
        for other, bar in (("s3fs", case.of_s3fs), ("boto3", None)):
            yield Figure(
                "B4",
                f"{case.few} x {case.name}",
                seconds[other] / seconds["ours"],
                f"x {other}",
                least=bar,
                seconds=seconds,
            )
    finally:
        made.close()
        shutil.rmtree(root)


def _staged(root: Path, path: str, size: int) -> FileRecord:
    data = os.urandom(size)
    (root / path).write_bytes(data)
    return FileRecord(path, size, checksum_of([data]))


def _seconds(
    ways: Mapping[str, Way], files: Sequence[FileRecord], server: Instant
) -> tuple[dict[str, float], dict[str, float]]:
    """Medians, of the clock and of this process's CPU; each round's objects are looked for in the endpoint's log."""
    cpu: dict[str, list[float]] = {name: [] for name in ways}

    def once(name: str) -> float:
        began_s, before_s = time.perf_counter(), time.process_time()
        ways[name](files)
        took_s = time.perf_counter() - began_s
        cpu[name].append(time.process_time() - before_s)
        taken = server.taken()
        assert taken.keys() == {file.path for file in files}, f"{name} put {len(taken)} of {len(files)} objects"
        for file in files:
            # botocore cuts bodies into chunks with headers of their own, others into parts
            most = file.bytes * 1.01 + _HEADERS_BYTES * (1 + file.bytes // (5 * MiB))
            assert file.bytes < taken[file.path] < most, f"{name}: {taken[file.path]} bytes came for {file}"
        return took_s

    clock = medians({name: partial(once, name) for name in ways})
    return clock, {name: median(found[1:]) for name, found in cpu.items()}


def ours(root: Path, options: UploadOptions, store: Store, files: Sequence[FileRecord]) -> None:
    outcomes: list[UploadOutcome] = []
    with Uploader(store, root, "bench", options) as uploader:
        for file in files:
            uploader.submit(UploadTask(file.path.removesuffix(".npy"), "0" * 32, (file,)), outcomes.append)
    assert len(outcomes) == len(files)
    assert all(outcome.error is None for outcome in outcomes), outcomes


def _store(options: UploadOptions) -> Store:
    """What `open_store` makes of an S3 URL, but for the probe: there is nothing to be found at this endpoint."""
    url = f"s3://{BUCKET}"
    settings = s3_settings.resolve(url, options)
    return ObjectStore(
        url,
        ObstoreObjects(url, S3Clients(settings), largest_bytes=options.multipart_above_bytes),
        multipart=MultipartPut(S3Objects(settings, connections=4 * options.concurrency)),
        multipart_above_bytes=options.multipart_above_bytes,
        buffer_bytes=options.buffer_bytes,
        prober=lambda: _PROMISED,
    )


def _client(server: Instant) -> S3Store:
    return S3Store(
        BUCKET,
        endpoint=server.endpoint.url,
        client_options={"allow_http": True},
        unsigned_payload=True,
        checksum_algorithm="CRC64NVME",
    )


def engine(root: Path, store: S3Store, files: Sequence[FileRecord]) -> None:
    with ThreadPoolExecutor(_THREADS) as pool:
        # a path instead of bytes is slower: the engine then reads 64 KiB at a time
        list(pool.map(lambda file: store.put(file.path, (root / file.path).read_bytes(), use_multipart=False), files))


def with_s3fs(root: Path, endpoint: Endpoint, files: Sequence[FileRecord]) -> None:
    filesystem = s3fs.S3FileSystem(
        endpoint_url=endpoint.url,
        config_kwargs={"max_pool_connections": 4 * _THREADS},
        skip_instance_cache=True,
        use_listings_cache=False,
    )
    filesystem.put(
        [str(root / file.path) for file in files], [f"{BUCKET}/{file.path}" for file in files], batch_size=_THREADS
    )


def with_boto3(root: Path, endpoint: Endpoint, files: Sequence[FileRecord]) -> None:
    client: Any = boto3.client("s3", config=Config(max_pool_connections=4 * _THREADS, s3={"addressing_style": "path"}))
    # its own threads only where there are parts for them
    transfer = TransferConfig(multipart_threshold=32 * MiB, multipart_chunksize=32 * MiB, max_concurrency=4)
    small = TransferConfig(multipart_threshold=32 * MiB, use_threads=False)

    def put(file: FileRecord) -> None:
        chosen = transfer if file.bytes > 32 * MiB else small
        client.upload_file(str(root / file.path), BUCKET, file.path, Config=chosen)

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(put, files))
