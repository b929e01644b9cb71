"""The end of a run as its driver brings it about."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from ray_sink.errors import SinkError
from ray_sink.filesystem import PosixFilesystem
from ray_sink.manifest import Seal, seal
from ray_sink.records import RunInfo, RunStatus
from ray_sink.runtime.actors import RunActors
from ray_sink.runtime.calls import result
from ray_sink.runtime.destination import Destination
from ray_sink.staging import Staging
from ray_sink.stores.base import Store

_log = logging.getLogger("ray_sink")


def seal_run(actors: RunActors, info: RunInfo, epoch: int, status: RunStatus, where: Destination | Store) -> Seal:
    """Write manifest and seal; see `ray_sink.manifest.seal`.

    Args:
        actors: drained.
        info: the run.
        epoch: the caller's.
        status: where it stands.
        where: the destination, which an uploader seals; or the staging folder, where there is no other.
    """
    receipts = actors.receipts()
    if isinstance(where, Destination):
        _abort_left(actors, where)
        return where.seal(epoch, receipts, status)
    return seal(where, info, epoch, result(receipts), status)


def _abort_left(actors: RunActors, destination: Destination) -> None:
    """End the uploads in parts that uploaders left which died."""
    for upload in actors.open_multiparts():
        try:
            destination.abort(upload)
        except SinkError:  # it costs room, and no output
            _log.warning("multipart.left", exc_info=True, extra={"path": upload.path, "upload": upload.upload_id})


def set_aside(made: Seal) -> None:
    """Name what failed, in the staging folder too: what is staged of it stays there."""
    run = made.run
    staging = Staging(PosixFilesystem(), Path(run.staging), run.run_id)
    note = json.dumps(dict(made.failures), indent=1, ensure_ascii=False).encode() + b"\n"
    named = staging.set_aside(f"{made.epoch:06d}.json", note)
    _log.warning("run.partial", extra={"run_id": run.run_id, "failures": len(made.failures), "named": str(named)})
