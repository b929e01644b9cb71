"""Where writers keep their local temps."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from ray_sink.config import Limits
from ray_sink.doctor.findings import Finding, Status
from ray_sink.doctor.mounts import mount_of

_AREA = "temp"


def examine(temp_dir: Path | None, staging: Path | None) -> list[Finding]:
    """What can be said of the folder for local temps.

    Args:
        temp_dir: the folder; None: the system's.
        staging: the staging folder, which should be on another device.
    """
    folder = temp_dir if temp_dir is not None else Path(tempfile.gettempdir())
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
            file.flush()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        advice = "name another folder in WriterOptions(temp_dir=…)"
        return [Finding(_AREA, "writable", Status.FAILED, str(error), advice, ("P6",))]
    wanted = Limits().temp_bytes
    said = f"{folder}, {free / 1e9:.1f} GB free"
    if free < wanted:
        advice = f"say Limits(temp_bytes=…) below that; it is {wanted / 1e9:.1f} GB by default"
        found = [Finding(_AREA, "free space", Status.WEAK, said, advice, ("P6",))]
    else:
        found = [Finding(_AREA, "free space", Status.OK, said, promises=("P6",))]
    mount = mount_of(folder)
    if mount is not None and mount.kind in ("tmpfs", "ramfs"):
        advice = "count Limits.temp_bytes as memory of the writers' nodes, or name a disk in WriterOptions(temp_dir=…)"
        found.append(Finding(_AREA, "filesystem type", Status.NOTE, f"{folder} is memory", advice))
    if staging is not None and staging.is_dir():
        found.append(_device(folder, staging))
    return found


def _device(folder: Path, staging: Path) -> Finding:
    if folder.stat().st_dev != staging.stat().st_dev:
        message = "on another device than staging: temps are copied, never renamed across"
        return Finding(_AREA, "device", Status.OK, message, promises=("P1",))
    message = "on the same device as staging"
    advice = "fine on one machine; on a cluster a local disk spares the shared filesystem half of the writing"
    return Finding(_AREA, "device", Status.NOTE, message, advice)
