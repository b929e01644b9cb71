"""Slurm on this machine: its controller, one node and its authentication, in namespaces that end with it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from seaweedfs import ServerProcess

from tests.faults.processes import needs

_ADDRESS = "10.99.1.1"
_CONFIG = """
ClusterName=test
SlurmctldHost={host}({address})
SlurmUser=root
AuthType=auth/munge
# credentials of a few seconds: so long Slurm keeps a job back that is queued again
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/linear
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=2
MpiDefault=none
KillWait=5
NodeName={host} NodeAddr={address} CPUs=2
PartitionName=all Nodes=ALL Default=YES
"""
_START = """
set -e
folder=$1
ip link set lo up
ip link add v0 type veth peer name v1
ip addr add {address}/24 dev v0
ip link set v0 up && ip link set v1 up
munged --force --socket="$folder/munge.socket" --key-file="$folder/munge.key" --pid-file="$folder/munge.pid" \\
    --log-file="$folder/munge.log" --seed-file="$folder/munge.seed"
slurmctld -c
slurmd
until sinfo --noheader --format=%t | grep -q idle; do sleep 0.1; done
touch "$folder/up"
# the shell stays, to reap what it inherits
sleep infinity &
wait
"""


class Slurm:
    """Runs Slurm's commands in its namespaces."""

    def __init__(self, folder: Path, pid: int) -> None:
        self._folder = folder
        self._pid = pid

    def run(self, *command: str, env: Mapping[str, str] | None = None) -> str:
        """What a command prints."""
        enter = ["nsenter", "-t", str(self._pid), "-n", "-p", "-m"]
        settings = {**os.environ, **(env or {}), "SLURM_CONF": str(self._folder / "slurm.conf")}
        done = subprocess.run([*enter, *command], capture_output=True, text=True, timeout=60, env=settings)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """A job's, in Slurm's own word."""
        shown = self.run("scontrol", "show", "job", job)
        return shown.split("JobState=")[1].split()[0]


@contextmanager
def slurm() -> Iterator[Slurm]:
    """Slurm with one node of two CPUs, empty."""
    tools = ("slurmctld", "slurmd", "munged", "sbatch", "unshare", "nsenter", "ip")
    needs("root and Slurm", os.geteuid() == 0 and all(shutil.which(tool) for tool in tools))
    host = os.uname().nodename.split(".")[0]
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/var/tmp"))
    folder.chmod(0o755)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    (folder / "slurm.conf").write_text(_CONFIG.format(host=host, address=_ADDRESS, folder=folder))
    server = ServerProcess(
        [
            *("env", f"SLURM_CONF={folder}/slurm.conf"),
            *("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
            *("bash", "-c", _START.format(address=_ADDRESS), "slurm", str(folder)),
        ],
        folder=folder,
    )
    try:
        server.wait_until((folder / "up").exists, deadline_s=60)
        yield Slurm(folder, _controller(folder))
    finally:
        server.stop()


def _controller(folder: Path) -> int:
    """The controller's process, by its id out here: it is in all of the namespaces."""
    for entry in Path("/proc").iterdir():
        try:
            if not entry.name.isdigit() or (entry / "comm").read_text() != "slurmctld\n":
                continue
            if f"SLURM_CONF={folder}/".encode() in (entry / "environ").read_bytes():
                return int(entry.name)
        except OSError:  # it has ended meanwhile
            continue
    raise ProcessLookupError("slurmctld is gone")
