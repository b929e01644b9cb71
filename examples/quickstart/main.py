"""A Ray Data job on real images that loses nothing while one of its writers is killed.

    python main.py                                              an S3 server of its own, gone afterwards
    python main.py --dest s3://bucket/demo --staging /mnt/shared/demo    any other place; run it again and it resumes

Computes dense features of photographs twice: first with the outputs saved by the model's own actor, as it is done
today, then through the sink, where one writer is killed half way. Then every output is computed anew and compared.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import ray.data
import torch
from direct import SavingFeatures
from features import FINGERPRINT, Features
from killing import aim_at_a_writer
from photographs import KEY, Tile, read, tiles
from report import Run, conclusion, table
from rich.console import Console
from seaweedfs import SeaweedFS
from steps import Steps
from verification import compare, verdict

import ray_sink
from ray_sink import Sink, WriterOptions

_BATCH = 2
_OBJECT_STORE_BYTES = 512 * 2**20

# A log that is kept is no terminal: there, no line should break where some terminal would end.
console = Console() if sys.stdout.isatty() else Console(width=110)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--tiles", type=int, default=64, help="outputs to make, about 9 MB each (%(default)s)")
    parser.add_argument("--dest", help="any fsspec URL or folder; if left out, an S3 server of its own")
    parser.add_argument("--staging", help="an empty or earlier staging folder, on a filesystem that all nodes mount")
    parser.add_argument("--actors", type=int, default=1, help="model actors (%(default)s)")
    parser.add_argument("--writer-resource", help="Ray resource of the nodes that writers are to run on")
    parser.add_argument("--json", type=Path, help="write the table's numbers into this file, too")
    given = parser.parse_args()
    if given.dest and not given.staging:
        parser.error("--dest needs --staging: a folder on a filesystem that all nodes mount")
    try:
        tiles(given.tiles)
    except ValueError as error:
        parser.error(f"--tiles: {error}")
    return given


def main() -> int:
    given = arguments()
    with ExitStack() as stack:
        dest = given.dest or stack.enter_context(own_server())
        staging = given.staging or stack.enter_context(tempfile.TemporaryDirectory(prefix="staging-"))
        stack.enter_context(cluster(own_store=given.dest is None))
        runs = demo(given, f"{dest.rstrip('/')}/{given.tiles}-tiles", Path(staging))
    if given.json:
        given.json.write_text(json.dumps({"tiles": given.tiles, "runs": [run.as_json() for run in runs]}, indent=1))
    return 0 if all(run.verdict.good and run.verdict.same == given.tiles for run in runs) else 1


@contextmanager
def own_server() -> Iterator[str]:
    """SeaweedFS with an empty bucket, and the environment that S3 clients find it by."""
    console.print("Starting an S3 server (SeaweedFS) on this machine …")
    with SeaweedFS() as server:
        server.create_bucket("demo")
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            del os.environ[name]  # the user's own profile, token or endpoint would get in the way
        os.environ |= {
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_ACCESS_KEY_ID": server.access_key,
            "AWS_SECRET_ACCESS_KEY": server.secret_key,
            "AWS_REGION": server.region,
            "AWS_DEFAULT_REGION": server.region,
            "AWS_ENDPOINT_URL": server.endpoint,
        }
        yield "s3://demo"


@contextmanager
def cluster(*, own_store: bool) -> Iterator[None]:
    """The cluster that RAY_ADDRESS names, or one of our own on this machine."""
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # the bars are ours
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if "RAY_ADDRESS" in os.environ:
        # our own server's sign-in; those of other places are the cluster's business
        found = {name: value for name, value in os.environ.items() if own_store and name.startswith("AWS_")}
        ray.init(**common, runtime_env={"env_vars": found} if found else None)
        if own_store and len([node for node in ray.nodes() if node["Alive"]]) > 1:
            raise SystemExit("This cluster has several nodes, which a server on one of them cannot serve: give --dest")
    else:
        console.print("Starting Ray on this machine …")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what it has to say about a dead worker comes anyway
        ray.init(
            **common,
            address="local",
            num_cpus=max(2, os.cpu_count() or 2),
            object_store_memory=_OBJECT_STORE_BYTES,
            include_dashboard=False,
        )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    try:
        yield
    finally:
        ray.shutdown()


def demo(given: argparse.Namespace, place: str, staging: Path) -> list[Run]:
    work = tiles(given.tiles)
    gpus = 1 if ray.cluster_resources().get("GPU", 0) else 0
    pool = {
        "batch_size": _BATCH,
        "num_cpus": 1,
        "num_gpus": gpus,
        "compute": ray.data.ActorPoolStrategy(size=given.actors),
    }
    console.print(
        f"{len(work)} tiles of {len({tile.photo for tile in work})} photographs, {given.actors} model actor(s) on"
        f" {'GPU' if gpus else 'CPU'}, into {place}"
    )
    ds = dataset(work)
    with Steps(console) as steps:
        direct = run_direct(ds, len(work), f"{place}/direct", pool, steps)
        sink = run_sink(ds, len(work), f"{place}/sink", staging, given.writer_resource, pool, steps)
        check(ds, len(work), direct, sink, pool, steps)
    console.print(table([direct, sink], len(work)))
    console.print(conclusion(direct, sink))

    key = work[-1].key
    value = ray_sink.open(sink.dest).load(key)
    assert isinstance(value, torch.Tensor)
    console.print(f"ray_sink.open({sink.dest!r}).load({key!r}) → {tuple(value.shape)} {value.dtype}")
    return [direct, sink]


def dataset(work: list[Tile]) -> ray.data.Dataset:
    """The tiles, read beforehand: what is measured is saving. A block is a batch."""
    blocks = max(1, len(work) // _BATCH)
    rows = ray.data.from_items([asdict(tile) for tile in work], override_num_blocks=blocks)
    made: ray.data.Dataset = rows.map(read).materialize()
    return made


def run_direct(ds: ray.data.Dataset, total: int, dest: str, pool: dict[str, Any], steps: Steps) -> Run:
    """As it is done today: a save and a put in each call of the model."""
    run = Run("saved in the model's actor", dest)
    show = steps.begin("1 of 3, saved in the model's actor", total)
    start = time.monotonic()
    rows = []
    for row in ds.map_batches(SavingFeatures, fn_constructor_args=(dest,), **pool).iter_rows():
        rows.append(row)
        show(len(rows))
    run.clock(rows, start, time.monotonic())
    return run


def run_sink(
    ds: ray.data.Dataset,
    total: int,
    dest: str,
    staging: Path,
    writer_resource: str | None,
    pool: dict[str, Any],
    steps: Steps,
) -> Run:
    """The same job, with the sink; one of its writers is killed when half of the outputs are accepted."""
    run = Run("through the sink", dest)
    show = steps.begin("2 of 3, through the sink", total)
    staging.mkdir(parents=True, exist_ok=True)
    # two of them: while a new one takes the killed one's place, the other goes on, and the model need not wait
    writers = WriterOptions(per_node=2, resources={writer_resource: 1.0} if writer_resource else {})
    start = time.monotonic()
    with Sink(dest, staging=staging, fingerprint=FINGERPRINT, writers=writers) as sink:
        before = accepted(sink)

        def kill(aimed: Callable[[], int]) -> None:
            run.killed_at = accepted(sink)
            console.print(f"killing a writer after {run.killed_at} of {total} outputs; Ray says that a worker died")
            run.killed_pid = aimed()

        with watched(lambda: accepted(sink), before, total, kill, show):
            receipts = sink.run(ds, Features, key=KEY, columns="features", **pool)
    run.clock(receipts.iter_rows(), start, time.monotonic())
    show(len(sink.manifest))
    if before:
        console.print(f"{before} outputs were there from an earlier try and were not computed again")
    if run.killed_pid is None and total - before > 1:
        raise RuntimeError("no writer was killed: the run was over before half of its outputs were seen")
    return run


def accepted(sink: Sink) -> int:
    return sink.status().decided


@contextmanager
def watched(
    count: Callable[[], int],
    before: int,
    total: int,
    kill: Callable[[Callable[[], int]], None],
    show: Callable[[int], None],
) -> Iterator[None]:
    """Show progress while the block runs, and kill a writer once, when half of what was left is accepted.

    What goes wrong with that is raised when the block ends.
    """
    over = threading.Event()
    errors: list[Exception] = []

    def watch() -> None:
        aimed: Callable[[], int] | None = None
        killed = False
        try:
            while not over.wait(0.2):
                now = count()
                show(now)
                if now > before and aimed is None:
                    aimed = aim_at_a_writer()
                if aimed is not None and not killed and (before + total) // 2 <= now:
                    killed = True
                    kill(aimed)
        except Exception as error:  # noqa: BLE001 - raised below, in the main thread
            errors.append(error)

    watcher = threading.Thread(target=watch, name="watcher")
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
    if errors:
        raise errors[0]


def check(ds: ray.data.Dataset, total: int, direct: Run, sink: Run, pool: dict[str, Any], steps: Steps) -> None:
    """Compute every output anew and compare it with what is stored, in both places."""
    show = steps.begin("3 of 3, computed anew and compared", total)
    rows = []
    for row in compare(ds, [direct.dest, sink.dest], **pool).iter_rows():
        rows.append(row)
        show(len(rows))
    direct.verdict = verdict(rows, 0, direct.dest)
    sink.verdict = verdict(rows, 1, sink.dest, list(ray_sink.open(sink.dest).keys()))


if __name__ == "__main__":
    sys.exit(main())
