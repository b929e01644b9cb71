"""What costs nothing to see when a Sink starts: refused where no run is possible, else told to the log."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ray_sink.config import Limits
from ray_sink.doctor import destination, mounts, room
from ray_sink.doctor.findings import Finding, Status
from ray_sink.errors import StagingError
from ray_sink.events import PromiseWeaker, emit
from ray_sink.stores.base import Capabilities


def check_staging(root: Path, limits: Limits) -> None:
    """Look at the kind of filesystem, and at its free space; what must be tried, `checked_staging` has tried.

    Raises:
        StagingError: it is a bucket shown as a folder.
    """
    mount = mounts.mount_of(root)
    found = mounts.judge(mount, "staging")
    if mount is not None and mounts.is_bucket(mount):
        raise StagingError(f"the staging folder {root} cannot be used: {found[0].message}. {found[0].advice}")
    _tell([*found, *room.examine(root, limits)])


def check_store(found: Capabilities) -> None:
    """Say what the destination does not keep its word on; the seal records the uploads' proof."""
    _tell(destination.promised(found))


def _tell(findings: Iterable[Finding]) -> None:
    for finding in findings:
        if finding.status in (Status.WEAK, Status.FAILED):
            promises = ",".join(finding.promises)
            emit(PromiseWeaker(finding.area, finding.name, promises, finding.message, finding.advice))
