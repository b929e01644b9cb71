"""GlusterFS on this machine: a real shared filesystem, mounted as often as a test wants, without its daemon.

A volume file is what ``gluster volume create`` would make, cut down to a brick, its locks and the network in between.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from seaweedfs import ServerProcess, free_ports

from tests.faults.mounts import mounted
from tests.faults.processes import needs
from tests.servers import listens

_SERVER = """
volume posix
  type storage/posix
  option directory {brick}
end-volume
volume locks
  type features/locks
  subvolumes posix
end-volume
volume server
  type protocol/server
  option transport-type socket
  option transport.socket.bind-address {host}
  option transport.socket.listen-port {port}
  option auth.addr.locks.allow *
  subvolumes locks
end-volume
"""
_CLIENT = """
volume client
  type protocol/client
  option transport-type socket
  option remote-host {host}
  option remote-port {port}
  option remote-subvolume locks
  option ping-timeout 5
end-volume
"""


class GlusterFS:
    """One brick behind a server; each mount of it is a client of its own, as on another machine.

    Attributes:
        volume: what a client has to know.
    """

    def __init__(self, host: str, port: int) -> None:
        self.volume = _CLIENT.format(host=host, port=port)

    @contextmanager
    def mount(self, at: Path, *, cached_s: float = 0, absent_s: float = 0) -> Iterator[Path]:
        """Mount it.

        Args:
            at: where; made.
            cached_s: how long this mount goes by what it knows of a name, seconds.
            absent_s: how long it goes by having found no such name, seconds.
        """
        folder = Path(tempfile.mkdtemp(prefix="gluster-client-"))
        (folder / "client.vol").write_text(self.volume)
        at.mkdir(parents=True)
        command = [
            *("glusterfs", "--no-daemon", "-f", f"{folder}/client.vol", "-l", f"{folder}/log"),
            *(f"--entry-timeout={cached_s}", f"--attribute-timeout={cached_s}", f"--negative-timeout={absent_s}"),
            str(at),
        ]
        with mounted(command, folder, at):
            yield at


@contextmanager
def glusterfs(host: str = "127.0.0.1") -> Iterator[GlusterFS]:
    """A server with an empty brick, which listens at `host`."""
    for program, package in (("glusterfsd", "glusterfs-server"), ("glusterfs", "glusterfs-client")):
        needs(f"{program} (Debian package {package})", shutil.which(program) is not None)
    needs("/dev/fuse and root, to mount", os.path.exists("/dev/fuse") and os.geteuid() == 0)
    with ExitStack() as cleanup:
        folder = Path(tempfile.mkdtemp(prefix="gluster-server-"))
        brick = folder / "brick"
        brick.mkdir()
        needs("a disk with trusted attributes for the brick", _takes_attributes(brick))
        (port,) = free_ports(1)
        (folder / "server.vol").write_text(_SERVER.format(brick=brick, host=host, port=port))
        command = ["glusterfsd", "--no-daemon", "-f", f"{folder}/server.vol", "-l", f"{folder}/log"]
        server = ServerProcess(command, folder=folder)
        cleanup.callback(server.stop)
        server.wait_until(lambda: listens(port, host), deadline_s=30)
        yield GlusterFS(host, port)


def _takes_attributes(folder: Path) -> bool:
    try:
        os.setxattr(folder, "trusted.tried", b"yes")
        os.removexattr(folder, "trusted.tried")
    except OSError:
        return False
    return True
