"""B7: what is held while a store is slow: W4 through a Sink to a store with 50 ms before each answer and 20 MB/s.

Each process and the staging folder are looked at from outside, every tenth of a second; the object store as the raylet
counts what is held there. More goes through than all buffers together hold: each of them is full for most of the time.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from seaweedfs import SeaweedFS

from benchmarks.measuring import Figure
from benchmarks.slow_store import slowed
from benchmarks.watching import Look, job, look, sampled, step
from benchmarks.works import MiB, mixed
from ray_sink.config import Limits, SaveFormat, UploadOptions, WriterOptions

OUTPUTS: Final = 110
BYTES_A_SECOND: Final = 20e6
PAUSE_S: Final = 0.05
OBJECT_STORE_BYTES: Final = 256 * MiB
STAGING_BYTES: Final = 256 * MiB
BUFFER_BYTES: Final = 128 * MiB
WRITER_BYTES: Final = WriterOptions().memory_bytes
COORDINATOR_BYTES: Final = 64 * MiB
LARGEST_BYTES: Final = 100 * MiB
_BUCKET = "outputs"


def key_of(number: int) -> str:
    return f"mixed/{number:04d}"


def run(root: Path, outputs: int) -> None:
    """The job: the driver is the producer."""
    import ray
    from ray._private import internal_api

    from ray_sink import Sink

    ray.init(address="local", object_store_memory=1024 * MiB, include_dashboard=False, log_to_driver=False)
    node = ray.nodes()[0]
    used: list[int] = []

    def count() -> None:
        stats = internal_api.node_stats(
            node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False
        ).store_stats
        # what nobody holds any more lies there until its room is wanted, and is no use of it
        used.append(stats.object_store_bytes_primary_copy)
        spilled.append(stats.spilled_bytes_total)

    spilled: list[int] = []
    with Sink(
        f"s3://{_BUCKET}/run",
        staging=f"{root}/staging",
        save_format=SaveFormat.NUMPY_NPY,
        limits=Limits(object_store_bytes=OBJECT_STORE_BYTES, staging_bytes=STAGING_BYTES),
        upload=UploadOptions(buffer_bytes=BUFFER_BYTES),
    ) as sink:
        with sink.handle() as handle:
            handle.write("warm", next(mixed(1))).result()
            step("warm")
            with sampled(count):
                for number, value in enumerate(mixed(outputs)):
                    handle.write(key_of(number), value)
                handle.flush()
        step("written", json.dumps({"used": max(used), "spilled": max(spilled)}))
    step("sealed")
    ray.shutdown()


@dataclass(slots=True)
class Peaks:
    """The most that was seen, in bytes; of processes by role, beyond what they had before the work."""

    before: dict[int, Look] = field(default_factory=dict)
    own: dict[str, int] = field(default_factory=dict)
    staged: int = 0

    def take(self, pid: int, staging: Path) -> None:
        for process, found in look(pid).items():
            begun = self.before.setdefault(process, found) if self.before else found
            grown = found.own_bytes - begun.own_bytes
            self.own[found.role] = max(self.own.get(found.role, 0), grown)
        self.staged = max(self.staged, _bytes_below(staging))


def _bytes_below(folder: Path) -> int:
    total = 0
    for where, folders, names in os.walk(folder):
        if "journal" in folders:
            folders.remove("journal")  # what is staged is limited, and not what is known of it
        for name in names:
            with suppress(FileNotFoundError):
                total += Path(where, name).stat().st_size
    return total


def answer() -> Iterator[Figure]:
    root = Path(tempfile.mkdtemp(prefix="rs-bench-"))
    try:
        with SeaweedFS() as server:
            server.create_bucket(_BUCKET)
            with slowed(server.endpoint, bytes_a_second=BYTES_A_SECOND, pause_s=PAUSE_S) as endpoint:
                peaks, said = _watched(root, environment(server, endpoint))
            _verify(server)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    for role, limit, whose in (
        ("driver", 2 * LARGEST_BYTES, "the value and its copy, of the largest"),
        ("Writer", WRITER_BYTES, "WriterOptions.memory_bytes"),
        ("Uploader", BUFFER_BYTES, "UploadOptions.buffer_bytes"),
        ("Coordinator", COORDINATOR_BYTES, "carries no data"),
    ):
        yield _figure(f"{role}, grown by at most", peaks.own[role], limit, whose)
    yield _figure("our share of the object store", said["used"], OBJECT_STORE_BYTES, "Limits.object_store_bytes")
    yield _figure("staging folder", peaks.staged, STAGING_BYTES, "Limits.staging_bytes")
    yield _figure("spilled", said["spilled"], 0, "none of ours, nor anybody's")


def _figure(case: str, found_bytes: float, limit_bytes: float, whose: str) -> Figure:
    note = f"{whose}; {found_bytes - limit_bytes:+,.0f} bytes"
    return Figure("B7", f"W4, slow store: {case}", found_bytes / MiB, "MiB", most=limit_bytes / MiB, note=note)


def environment(server: SeaweedFS, endpoint: str) -> Mapping[str, str]:
    """What a job needs to sign in."""
    return {
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
        "AWS_REGION": server.region,
        "AWS_DEFAULT_REGION": server.region,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_EC2_METADATA_DISABLED": "true",
        "RAY_AUTH_MODE": "disabled",
    }


def _watched(root: Path, variables: Mapping[str, str]) -> tuple[Peaks, Mapping[str, int]]:
    peaks, said = Peaks(), {}
    (root / "staging").mkdir()
    with job("benchmarks.memory", [str(root), str(OUTPUTS)], variables) as running:
        steps = running.steps()
        assert next(steps)[0] == "warm"
        peaks.before = look(running.pid)
        with sampled(lambda: peaks.take(running.pid, root / "staging")):
            for name, text in steps:
                if name == "written":
                    said = json.loads(text)
                if name == "sealed":
                    break
        for _ in steps:
            pass
    assert {"driver", "Writer", "Uploader", "Coordinator"} <= peaks.own.keys(), peaks.own
    return peaks, said


def _verify(server: SeaweedFS) -> None:
    for number, value in enumerate(mixed(OUTPUTS)):
        found = server.client.get_object(Bucket=_BUCKET, Key=f"run/{key_of(number)}.npy")["Body"].read()
        assert np.array_equal(np.load(io.BytesIO(found)), value.numpy())


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]))
