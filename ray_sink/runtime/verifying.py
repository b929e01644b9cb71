"""Objects compared with their receipts by tasks on all nodes of a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import ray
from ray.exceptions import RayError

from ray_sink.checking import StoreChecks
from ray_sink.config import UploadOptions
from ray_sink.errors import ConfigError, RunError
from ray_sink.manifest import SUCCESS, run_path
from ray_sink.retry import Retry
from ray_sink.runtime.calls import result
from ray_sink.stores import open_store
from ray_sink.verification import PATIENCE, Piece, PieceVerdict

_MOST_TASKS: Final = 256


class ClusterChecks:
    """See `ray_sink.verification.Checks`. A piece is a task of one CPU, run again elsewhere if its node dies.

    Each task opens the destination for itself: credentials come from its node's environment, as an uploader's do.

    Args:
        dest: a URL, or the absolute path of a folder.
        upload: how it is reached, and how many objects one task reads at a time.
        on_piece: told of every piece that was looked at, with its size in bytes.
    """

    def __init__(self, dest: str, upload: UploadOptions, *, on_piece: Callable[[int], None] = lambda _: None) -> None:
        self._dest = dest
        self._upload = upload
        self._on_piece = on_piece

    def check(self, run_id: str, pieces: Iterable[Piece]) -> Iterator[PieceVerdict]:
        """See `Checks.check`.

        Raises:
            ConfigError: a node does not see the destination.
            RunError: tasks died again and again.
        """
        task = ray.remote(_checked).options(num_cpus=1, max_retries=3, scheduling_strategy="SPREAD")
        running: list[Any] = []
        try:
            for piece in pieces:
                while len(running) >= _room():
                    yield self._first(running)
                running.append(task.remote(self._dest, self._upload, run_id, piece))
            while running:
                yield self._first(running)
        finally:
            for ref in running:
                ray.cancel(ref, force=True)

    def _first(self, running: list[Any]) -> PieceVerdict:
        """The verdict of the task that ends first, which is taken off the list."""
        (done,), rest = ray.wait(running, num_returns=1)
        running[:] = rest
        try:
            verdict: PieceVerdict = result(done)
        except RayError as error:
            why = str(error).strip().rpartition("\n")[2][:300] or type(error).__name__
            raise RunError(f"the cluster could not check everything: {why}") from error
        self._on_piece(verdict.bytes)
        return verdict


def _room() -> int:
    """Tasks at a time: more than there are CPUs for, so that a cluster that can grow does."""
    return min(2 * int(ray.cluster_resources().get("CPU", 0)) + 2, _MOST_TASKS)


def _checked(dest: str, upload: UploadOptions, run_id: str, piece: Piece) -> PieceVerdict:
    store = open_store(dest, upload)
    try:
        # a folder that is not mounted here would look like one whose files are gone
        if Retry(PATIENCE).call(lambda _: store.head(run_path(run_id, SUCCESS))) is None:
            node = ray.util.get_node_ip_address()
            raise ConfigError(f"node {node} does not see {dest}: leave out --address, or mount it on all nodes")
        (verdict,) = StoreChecks(store, concurrency=upload.concurrency).check(run_id, [piece])
        return verdict
    finally:
        store.close()
