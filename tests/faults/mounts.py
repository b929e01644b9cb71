"""Small filesystems of their own; only root can mount."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from seaweedfs import ServerProcess

from tests.faults.processes import needs


@contextmanager
def tmpfs(at: Path, size_bytes: int) -> Iterator[Path]:
    """A filesystem in memory that is full after so many bytes."""
    at.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(at)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    needs(f"the right to mount (mount says: {done.stderr.strip()})", done.returncode == 0 and os.path.ismount(at))
    try:
        yield at
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True)


def resize(at: Path, size_bytes: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size_bytes}", str(at)], check=True)


@contextmanager
def mounted(command: Sequence[str], folder: Path, at: Path) -> Iterator[Path]:
    """A filesystem that a process of its own serves: what `command` mounts at `at`.

    Args:
        command: stays in the foreground.
        folder: where it runs and logs; taken away with it, so `at` must not lie in there.
        at: an empty folder.
    """
    assert folder not in at.parents
    # when this process dies, however it does, the kernel closes the other end: a mount would stay without its server
    guard = subprocess.Popen(
        ["sh", "-c", 'read _; umount -l "$1"', "sh", str(at)],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    process = ServerProcess(command, folder=folder)
    try:
        process.wait_until(lambda: os.path.ismount(at), deadline_s=30)
        yield at
    finally:
        guard.communicate()
        process.stop()
