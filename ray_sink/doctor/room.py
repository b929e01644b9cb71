"""How much the staging folder has room for."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ray_sink.config import Limits
from ray_sink.doctor.findings import Finding, Status

_AREA = "staging"
_FEW_FILES = 100_000


def examine(root: Path, limits: Limits) -> list[Finding]:
    """Free bytes against what the limits allow staging to hold, and free inodes."""
    free, wanted = shutil.disk_usage(root).free, limits.staging_bytes
    said = f"{free / 1e9:.1f} GB free"
    if free < wanted:
        advice = f"say Limits(staging_bytes=…) below that; it is {wanted / 1e9:.0f} GB"
        # a limit that somebody chose cannot be kept; where nobody did, it is the disk that holds producers back
        status = Status.NOTE if wanted == Limits().staging_bytes else Status.WEAK
        found = [Finding(_AREA, "free space", status, said, advice, ("P6",))]
    else:
        found = [Finding(_AREA, "free space", Status.OK, said, promises=("P6",))]
    files = os.statvfs(root)
    if files.f_files and files.f_favail < _FEW_FILES:
        advice = "use a filesystem with more inodes"
        found.append(Finding(_AREA, "free inodes", Status.WEAK, f"{files.f_favail} files more fit", advice, ("P6",)))
    return found
