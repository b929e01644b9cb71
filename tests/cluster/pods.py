"""Nodes as far as one machine has them: each with an address, temporary files, shared memory and pids of its own."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from seaweedfs import ServerProcess

from tests.cluster.network import Cable
from tests.cluster.patience import eventually
from tests.faults.clusters import PROJECT

SHARED = Path("/tmp/shared")
"""Where every pod has the shared filesystem: in a /tmp that is its own."""
_OWN = {"TMPDIR": "/tmp", "HOME": "/tmp", "RAY_TMPDIR": "/tmp"}
_MARK = "RS_POD"

# The first process of the pod's own pid namespace: when it ends, the kernel ends all that is in there. In "$own" is
# what the pod has as /tmp; what this project needs of the machine's /tmp is bound into it.
_INIT = """
own=$1 name=$2 shm=$3 project=$4; shift 4
mount --make-rprivate / && hostname "$name" && mount -t tmpfs -o "size=$shm" shm /dev/shm || exit 1
while [ "$1" != -- ]; do
    mkdir -p "$own/${1#/tmp/}" && mount --bind "$1" "$own/${1#/tmp/}" || exit 1
    shift
done
shift
mount --rbind "$own" /tmp || exit 1
glusterfs --no-daemon -f /tmp/client.vol -l /tmp/glusterfs.log \\
    --entry-timeout=0 --attribute-timeout=0 --negative-timeout=0 /tmp/shared &
until mountpoint -q /tmp/shared; do sleep 0.05; done
cd "$project" || exit 1
"$@" &
wait $!
"""


class Pod:
    """A command in namespaces of its own, with the shared filesystem mounted.

    Args:
        name: its host name.
        cable: what leads to it.
        volume: the volume file of the shared filesystem.
        command: what runs in it; when that ends, everything in the pod does.
        env: set for the command, on top of this process's environment.
        shm_bytes: size of its /dev/shm.

    Attributes:
        tmp: its /tmp, as this process has it.
    """

    def __init__(
        self,
        name: str,
        cable: Cable,
        volume: str,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        shm_bytes: int = 256 * 2**20,
    ) -> None:
        self.name = name
        self.cable = cable
        self._command = [*command]
        self._mark = uuid.uuid4().hex
        self._folder = Path(tempfile.mkdtemp(prefix="pod-"))
        self.tmp = own = self._folder / "tmp"
        (own / SHARED.name).mkdir(parents=True)
        (own / "client.vol").write_text(volume)
        own.chmod(0o1777)
        settings = {**env, **_OWN, _MARK: self._mark}
        self._process = ServerProcess(
            [
                *("ip", "netns", "exec", cable.namespace),
                *("unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"),
                *_env(settings),
                *("bash", "-c", _INIT, "pod", str(own), name, str(shm_bytes), str(PROJECT)),
                *(str(path) for path in _needed_of_tmp()),
                *("--", *command),
            ],
            folder=self._folder,
        )

    def _processes(self) -> Iterator[tuple[int, list[str]]]:
        """Their ids, as this machine knows them, and their command lines."""
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    if f"{_MARK}={self._mark}".encode() in (entry / "environ").read_bytes():
                        words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                        yield int(entry.name), words
                except OSError:
                    continue

    def pids(self, *names: str) -> list[int]:
        """Its processes that go by one of these names, or begin with it; without any, all."""
        found = self._processes()
        return sorted(pid for pid, words in found if not names or Path(words[0]).name.startswith(names))

    @property
    def command(self) -> int:
        """The process that was started in it."""
        return next(pid for pid, words in self._processes() if words[: len(self._command)] == self._command)

    @property
    def first(self) -> int:
        """Its first process."""
        for pid in self.pids("bash"):
            try:
                status = Path(f"/proc/{pid}/status").read_text()
            except OSError:
                continue
            if any(line.split()[-1] == "1" for line in status.splitlines() if line.startswith("NSpid:")):
                return pid
        raise ProcessLookupError(f"pod {self.name} is gone")

    def entering(self) -> list[str]:
        """In front of a command, it runs in this pod."""
        return ["nsenter", "-t", str(self.first), "-m", "-u", "-i", "-n", "-p", "-w", *_env(_OWN)]

    def signal(self, name: str, number: int) -> None:
        for pid in self.pids(name):
            os.kill(pid, number)

    def says(self) -> str:
        """What its command has written."""
        log = self._folder / "server.log"
        return log.read_text(errors="replace") if log.exists() else ""

    @property
    def ended(self) -> bool:
        """Its command has ended, and with it everything in it."""
        return self._process.ended

    @property
    def gone(self) -> bool:
        """None of its processes is left."""
        return not self.pids()

    def stop(self) -> None:
        """All of it ends at once, as when the power goes."""
        try:
            os.kill(self.first, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.stop()
        eventually(lambda: self.gone, deadline_s=60)
        shutil.rmtree(self._folder, ignore_errors=True)


def _env(settings: Mapping[str, str]) -> list[str]:
    return ["env", *(f"{name}={value}" for name, value in settings.items())]


def _needed_of_tmp() -> list[Path]:
    """Folders below /tmp without which nothing of this project runs."""
    paths = {PROJECT, Path(sys.prefix), Path(sys.base_prefix), *map(Path, os.environ.get("PYTHONPATH", "").split(":"))}
    return sorted(path for path in paths if Path("/tmp") in path.parents)
